"""The KV memory of all sessions: one pool, a slot of it for each session.

The pool is [layers, 2, slots, KV, capacity, D], so that one engine call can bind a run of
neighbouring slots as its batch. What a slot holds (rows, their codes, whose they are) changes on
the engine's thread alone; who holds a slot changes in the event loop alone.
"""

from __future__ import annotations

import math
import mmap
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec_runtime.kv import BLOCK, CacheShape, KVCache
from edgespec_runtime.server.reuse import Codes, common


class Slot:
    """Room for one session's rows."""

    def __init__(self, index: int, cache: KVCache) -> None:
        self.index = index
        self.cache = cache
        self.tenant: str | None = None
        """Whose rows it holds; None: nobody may have them."""
        self.broken = False
        """Its rows may hold anything: work on them failed."""
        self._codes: Codes = np.zeros(cache.capacity, dtype=np.int64)

    @property
    def codes(self) -> Codes:
        """What the committed rows stand for (see ``reuse``)."""
        return self._codes[: self.cache.length]

    def note(self, codes: Sequence[int] | Codes) -> None:
        """Says what the last committed rows stand for."""
        end = self.cache.length
        self._codes[end - len(codes) : end] = codes

    def spoil(self) -> None:
        """Gives its rows up: work on them failed."""
        self.tenant, self.broken = None, True

    def prepare(self, tenant: str, codes: Codes, most: int, others: Iterable[Slot]) -> int:
        """Makes the slot ``tenant``'s, with as many leading rows of ``codes`` (``most`` of them at
        most) as it holds itself or another slot of the tenant does; returns how many."""
        wanted = codes[:most]
        if self.broken:  # zeros: a graph may multiply what it does not attend to by zero
            self.cache.rows[...] = 0.0
            self.broken = False
        own = common(self.codes, wanted) if self.tenant == tenant else 0
        best, source = own, self
        for other in others:
            if other is not self and other.tenant == tenant:
                shared = common(other.codes, wanted)
                if shared > best:
                    best, source = shared, other
        if source is not self:
            self.cache.rows[..., own:best, :] = source.cache.rows[..., own:best, :]
        self.tenant = tenant
        self.cache.length, self.cache.pending = best, 0
        self._codes[:best] = wanted[:best]
        return best


class Slots:
    """The pool: who holds which slot. Freed slots keep their rows until they are taken."""

    def __init__(self, shape: CacheShape, count: int, capacity: int) -> None:
        """``capacity``: rows of a slot, rounded up to whole blocks."""
        capacity = -(-capacity // BLOCK) * BLOCK
        sizes = (shape.layers, 2, count, shape.kv_heads, capacity, shape.head_dim)
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        size = shape.storage.itemsize * math.prod(sizes)
        self._memory = mmap.mmap(-1, size, flags=private)
        self.rows: npt.NDArray[Any] = np.frombuffer(self._memory, shape.storage).reshape(sizes)
        """[layers, 2, slots, KV, capacity, D]; zeros take no memory until they are written."""
        self.all = [Slot(i, KVCache.over(self.rows[:, :, i : i + 1])) for i in range(count)]
        self._free = deque(self.all)  # the next to take is leftmost

    @property
    def slot_bytes(self) -> int:
        return self.rows.nbytes // len(self.all)

    @property
    def held(self) -> int:
        """Slots that sessions hold."""
        return len(self.all) - len(self._free)

    def take(self) -> Slot | None:
        """A free slot: an unused one, else the one that was given back longest ago."""
        return self._free.popleft() if self._free else None

    def shrink(self) -> Iterator[None]:
        """Lets go of the memory of slots that are free now, in a step on the engine's thread."""
        free = list(self._free)

        def step() -> Iterator[None]:
            for slot in free:
                slot.tenant, slot.broken = None, False
                slot.cache.length = slot.cache.pending = 0
                self._release(slot.index)
            yield None

        return step()

    def _release(self, index: int) -> None:
        """Turns a slot's rows back into zeros that take no memory."""
        size = self.rows[0, 0, 0].nbytes
        for start in range(index * size, self.rows.nbytes, len(self.all) * size):
            if start % mmap.PAGESIZE or size % mmap.PAGESIZE:
                self.rows[:, :, index] = 0.0
                return
            self._memory.madvise(mmap.MADV_DONTNEED, start, size)

    def give_back(self, slot: Slot) -> None:
        """Ends a hold; the rows may serve another session of the tenant."""
        self._free.append(slot)
