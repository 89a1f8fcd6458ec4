"""The KV cache of one decoder: one preallocated array, written in place by the engine.

Layout [layers, 2, B, KV, capacity, D]: every [B, KV, capacity, D] slice is one graph input, and
committing accepted rows is a single fancy-index assignment over all layers, keys and values.
"""

from __future__ import annotations

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


class KVCache:
    """Rows below ``length`` are committed; ``pending`` rows behind them belong to a tree."""

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
        self.capacity = rows.shape[4]
        self.length = 0
        self.pending = 0

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
        start, count = self.length, len(kept)
        if count and kept[-1] != count - 1:  # else they already lie where they belong
            source = [start + i for i in kept]
            self.rows[..., start : start + count, :] = self.rows[..., source, :]
        self.length = start + count
        self.pending = 0
