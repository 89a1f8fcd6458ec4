"""Tree masks as engine calls read them: [S, used + S], laid out as a graph wants it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.bundle import GraphSpec
from edgespec_runtime.kv import KVCache

BEHIND = "behind"
"""``mask_span`` of graphs that hand new rows out instead of writing them into the cache."""
TOTAL = "total"
"""``mask_span`` of graphs whose mask is as wide as the rows in use; others have the capacity's."""


class MaskInput:
    """One mask input of a binding, [1, 1, S, T]: T is used + S ("total"), the cache's capacity, or
    that and S more columns for the new rows, which lie "behind" the cache.

    Its memory is bound by address. A plain step's mask is one column wider than the last one's, and
    making an engine's value of every one costs more than all else that is done for a mask.
    """

    def __init__(self, binding: Any, name: str, spec: GraphSpec) -> None:
        self._bind = binding.bind_input
        self._name = name
        self._span = spec.meta["mask_span"]
        self._memory = np.zeros(0, dtype=np.bool_)
        self._address = 0
        self._shape = (0, 0)

    def fill(self, mask: npt.NDArray[np.bool_], cache: KVCache) -> None:
        """Binds a copy of ``mask`` [S, used + S] for the coming run."""
        rows, seen, capacity = len(mask), mask.shape[1], cache.capacity
        if self._span == TOTAL:
            self._room(rows, seen, capacity)[:] = mask
        elif self._span == BEHIND:
            laid, used = self._room(rows, capacity + rows, capacity + rows), cache.used
            laid[:, used:capacity] = False
            laid[:, :used], laid[:, capacity:] = mask[:, :used], mask[:, used:]
        else:
            laid = self._room(rows, capacity, capacity)
            laid[:, seen:] = False
            laid[:, :seen] = mask

    def _room(self, rows: int, width: int, widest: int) -> npt.NDArray[np.bool_]:
        """[rows, width] of the memory, bound; taken for ``widest`` columns where there is less."""
        if rows * width > self._memory.size:
            self._memory = np.zeros(rows * widest, dtype=np.bool_)
            self._address = self._memory.ctypes.data
            self._shape = (0, 0)
        if (rows, width) != self._shape:
            self._bind(self._name, "cpu", 0, np.bool_, (1, 1, rows, width), self._address)
            self._shape = (rows, width)
        return self._memory[: rows * width].reshape(rows, width)
