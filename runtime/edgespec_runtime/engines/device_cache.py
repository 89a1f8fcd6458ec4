"""The KV cache of one decoder in an accelerator's memory.

Layout [layers, 2, B, KV, capacity, D] in one block, as on the host: every [B, KV, capacity, D]
slice is one graph input. Rows are one behind the other, so moving a run of them over all layers,
keys, values and heads is one strided copy, and what a tree leaves is moved without the host.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from edgespec_runtime.engines.memory import Memory, Shelf
from edgespec_runtime.kv import BLOCK, Cache, CacheShape


class DeviceCache(Cache):
    """See ``Cache``. Rows that were never written are zeros: an attention that hides them under a
    mask still multiplies them, and what freshly allocated memory holds may be no number."""

    def __init__(self, memory: Memory, shelf: Shelf, shape: CacheShape, capacity: int) -> None:
        """``capacity`` is rounded up to whole blocks of ``BLOCK`` rows."""
        self.shape = shape
        self.capacity = -(-capacity // BLOCK) * BLOCK
        self.row = shape.head_dim * shape.storage.itemsize
        """Bytes of one row of one head."""
        self.pitch = self.capacity * self.row
        """Bytes from one head's rows to the next one's."""
        self.slices = shape.layers * 2 * shape.kv_heads
        """Runs of rows: one for each layer, key or value, and head."""
        with memory.lock:
            self.block = shelf.take(self.slices * self.pitch)
        self._memory = memory
        weakref.finalize(self, shelf.give_back, self.block)

    @property
    def slice_shape(self) -> tuple[int, ...]:
        """Of one graph input: [1, KV, capacity, D]."""
        return (1, self.shape.kv_heads, self.capacity, self.shape.head_dim)

    def pointers(self) -> Iterator[tuple[str, int]]:
        """("key.0", pointer), ("value.0", pointer), ... of the inputs [1, KV, capacity, D]."""
        pointer = self.block.pointer
        for layer in range(self.shape.layers):
            for kind in ("key", "value"):
                yield f"{kind}.{layer}", pointer
                pointer += self.shape.kv_heads * self.pitch

    def append(self, source: int, pitch: int, rows: int) -> None:
        """Copies ``rows`` new rows of every head behind those in use; ``source`` points at
        [layers, 2, 1, KV, S, D], ``pitch`` bytes from one head's rows to the next one's."""
        row = self.row
        self._memory.copy_rows(
            self.block.pointer + self.used * row,
            self.pitch,
            source,
            pitch,
            rows * row,
            self.slices,
        )

    def fill(self, row: npt.NDArray[np.float32]) -> None:
        shape, memory = self.shape, self._memory
        one = np.ascontiguousarray(row[..., 0, :])
        raw = shape.stored(one).reshape(-1).view(np.uint8)
        with memory.lock:
            staged, block = memory.pinned(raw.size), memory.allocate(raw.size)
            staged[:] = raw
            memory.upload(block.pointer, staged)
            to, size = self.block.pointer, self.row
            memory.copy_rows(to, self.pitch, block.pointer, size, size, self.slices)
            done = 1
            while done < self.capacity:
                more = min(done, self.capacity - done)
                at = to + done * size
                memory.copy_rows(at, self.pitch, to, self.pitch, more * size, self.slices)
                done += more
            memory.synchronise()

    def _gather(self, kept: Sequence[int]) -> None:
        row, slices = self.row, self.slices
        start = self.block.pointer + self.length * row
        with self._memory.lock:
            for target, source, rows in moves(kept):
                to, at = start + target * row, start + source * row
                self._memory.copy_rows(to, self.pitch, at, self.pitch, rows * row, slices)


def moves(kept: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(target, source, rows) of the copies that bring rows ``kept`` (ascending) together from 0 on,
    in this order. No copy overlaps its own target: a long run that moves a short way goes in
    parts as long as the way."""
    target = 0
    while target < len(kept):
        source = kept[target]
        run = 1
        while target + run < len(kept) and kept[target + run] == source + run:
            run += 1
        way = source - target
        if way:
            for part in range(0, run, way):
                yield target + part, source + part, min(way, run - part)
        target += run
