"""The KV cache of one decoder: one preallocated array, written in place by the engine.

Layout [layers, 2, B, KV, capacity, D]: every [B, KV, capacity, D] slice is one graph input, and
committing accepted rows is a single fancy-index assignment over all layers, keys and values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.bundle import GraphSpec

BLOCK = 64  # rows; capacities are rounded up to whole blocks


@dataclass(frozen=True)
class CacheShape:
    """What a decoder graph says of its cache."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: str = "float32"
    """Of its numbers; "bfloat16" is kept as numpy knows it: by its bits."""

    @classmethod
    def of(cls, spec: GraphSpec) -> CacheShape:
        """The cache of a decoder graph."""
        meta = spec.meta
        caches = (t.dtype for t in spec.inputs if t.name.startswith("past_key."))
        return cls(
            int(meta["layers"]),
            int(meta["kv_heads"]),
            int(meta["head_dim"]),
            next(caches, "float32"),
        )

    @property
    def storage(self) -> np.dtype[Any]:
        return np.dtype("uint16" if self.dtype == "bfloat16" else self.dtype)

    def stored(self, values: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        """``values`` as the cache keeps them."""
        if self.dtype == "bfloat16":  # cut, not rounded
            return (values.view(np.uint32) >> 16).astype(np.uint16)
        return values.astype(self.storage)

    @property
    def row_bytes(self) -> int:
        """Of one row of context, over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.storage.itemsize


def blank_rows(shape: CacheShape, capacity: int, batch: int = 1) -> npt.NDArray[Any]:
    """Zeros [layers, 2, batch, KV, capacity, D], the capacity rounded up to whole blocks. Memory is
    taken as rows are written."""
    rows = -(-capacity // BLOCK) * BLOCK
    sizes = (shape.layers, 2, batch, shape.kv_heads, rows, shape.head_dim)
    return np.zeros(sizes, dtype=shape.storage)


class Cache(ABC):
    """Rows below ``length`` are committed; ``pending`` rows behind them belong to a tree."""

    shape: CacheShape
    capacity: int
    length = 0
    pending = 0

    @property
    def used(self) -> int:
        """Rows written so far; the next step's rows go behind them."""
        return self.length + self.pending

    def settle(self, rows: int) -> None:
        """Commits the first ``rows`` pending rows where they lie; the others stay pending."""
        self.length += rows
        self.pending -= rows

    def commit(self, kept: Sequence[int]) -> None:
        """Keeps the pending rows ``kept`` (ascending), moved together in place; drops the rest."""
        count = len(kept)
        if count and kept[-1] != count - 1:  # else they already lie where they belong
            self._gather(kept)
        self.length += count
        self.pending = 0

    @abstractmethod
    def fill(self, row: npt.NDArray[np.float32]) -> None:
        """Puts ``row`` [layers, 2, B, KV, 1, D] into every row: for measurements."""

    @abstractmethod
    def _gather(self, kept: Sequence[int]) -> None:
        """Moves the pending rows ``kept`` together, the first to row ``length``."""


class KVCache(Cache):
    """A cache in host memory, which a CPU engine writes in place."""

    def __init__(self, shape: CacheShape, capacity: int, batch: int = 1) -> None:
        self._hold(blank_rows(shape, capacity, batch))

    @classmethod
    def over(cls, rows: npt.NDArray[Any]) -> KVCache:
        """An empty cache in memory of somebody else's: ``rows`` [layers, 2, B, KV, capacity, D],
        a part of a pool for instance."""
        cache = cls.__new__(cls)
        cache._hold(rows)
        return cache

    def _hold(self, rows: npt.NDArray[Any]) -> None:
        self.rows = rows
        dtype = "bfloat16" if rows.dtype == np.uint16 else rows.dtype.name
        self.shape = CacheShape(rows.shape[0], rows.shape[3], rows.shape[5], dtype)
        self.capacity = rows.shape[4]

    def fill(self, row: npt.NDArray[np.float32]) -> None:
        self.rows[:] = self.shape.stored(row)

    def _gather(self, kept: Sequence[int]) -> None:
        start, count = self.length, len(kept)
        source = [start + i for i in kept]
        self.rows[..., start : start + count, :] = self.rows[..., source, :]
