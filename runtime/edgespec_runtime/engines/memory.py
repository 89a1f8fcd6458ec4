"""Memory of an accelerator as device engines see it: plain pointers and one stream.

``CudaMemory`` (``cuda``) is the one that runs; the tests bring one over the host's own memory, so
that everything but CUDA itself runs without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from edgespec_runtime.engines.base import Array

SIZES = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
"""Bytes of one element, by the name that a graph's tensors give their type."""


class Block:
    """Bytes on the device; they live as long as this object."""

    def __init__(self, pointer: int, size: int) -> None:
        self.pointer = pointer
        self.size = size


class Memory(Protocol):
    """Allocations and copies, all enqueued on one stream but ``synchronise`` and allocations.

    Every method raises EngineError where the device refuses.
    """

    @property
    def device(self) -> str:
        """As ONNX Runtime names the place: "cuda", "cpu"."""

    @property
    def card(self) -> str:
        """What the device calls itself."""

    @property
    def stream(self) -> int:
        """Handle of the stream, for engines that enqueue on it."""

    @property
    def lock(self) -> AbstractContextManager[Any]:
        """Held, as often as wanted, by whoever enqueues: while one thread records a launch no other
        may use the stream."""

    def held(self) -> int:
        """Bytes of the device taken since this was opened, by whomever."""

    def allocate(self, size: int) -> Block:
        """``size`` bytes, whatever they hold."""

    def clear(self, block: Block) -> None:
        """Enqueues zeros over all of it."""

    def pinned(self, size: int) -> Array:
        """``size`` bytes [size] uint8 of the host, zeros, within the device's own reach."""

    def upload(self, pointer: int, source: Array) -> None:
        """Enqueues a copy of pinned ``source``, which must not change before ``synchronise``."""

    def download(self, target: Array, pointer: int) -> None:
        """Enqueues a copy to pinned ``target``; it holds after ``synchronise``."""

    def copy_rows(
        self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, rows: int
    ) -> None:
        """Enqueues ``rows`` copies of ``width`` bytes, the next one a pitch further on either side;
        sources and targets must not overlap."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Records what ``work`` enqueues, which does not run; the result enqueues it again."""

    def synchronise(self) -> None:
        """Waits for everything enqueued so far. Raises EngineError for what failed in it."""


class Shelf:
    """Blocks given back, for those who come next: allocating stalls the device, and recorded calls
    hold for the addresses they were recorded with."""

    def __init__(self, memory: Memory, spare: int = 2) -> None:
        """``spare``: blocks kept at most while nobody has them."""
        self._memory = memory
        self._spare = spare
        self._free: list[Block] = []

    def take(self, size: int) -> Block:
        """A block of exactly ``size`` bytes, zeros."""
        fit = next((block for block in self._free if block.size == size), None)
        if fit is None:
            fit = self._memory.allocate(size)
        else:
            self._free.remove(fit)
        self._memory.clear(fit)
        return fit

    def give_back(self, block: Block) -> None:
        self._free.append(block)
        del self._free[: -self._spare]


ALIGNED = 256
"""Bytes; what accelerators want tensors to start on."""


def aligned(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED


def shaped(raw: Array, dtype: str, shape: tuple[int, ...]) -> Array:
    """A uint8 array as a tensor on the same memory."""
    count = int(np.prod(shape))
    view: Array = raw[: count * SIZES[dtype]].view(np.dtype(dtype)).reshape(shape)
    return view
