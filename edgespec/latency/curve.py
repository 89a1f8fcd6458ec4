"""One measured cost curve: milliseconds over sizes and context lengths, and between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """Milliseconds of one operation over its size, at several context lengths.

    Medians are kept as measured, staircases and dips included: at a measured size and context the
    answer is the measured median. Raises ValueError for points that make no curve.
    """

    sizes: tuple[int, ...]
    """Ascending: rows, tokens or pictures."""
    contexts: tuple[int, ...]
    """Ascending: rows in the cache before the operation; (0,) where there is none."""
    median_ms: tuple[tuple[float, ...], ...]
    """[contexts][sizes]"""
    p95_ms: tuple[tuple[float, ...], ...]
    """[contexts][sizes]"""

    def __post_init__(self) -> None:
        _check_axis("sizes", self.sizes, 1)
        _check_axis("contexts", self.contexts, 0)
        for name in ("median_ms", "p95_ms"):
            _check_table(name, getattr(self, name), len(self.contexts), len(self.sizes))
        for context, medians, tails in zip(self.contexts, self.median_ms, self.p95_ms, strict=True):
            for size, median, tail in zip(self.sizes, medians, tails, strict=True):
                if tail < median:
                    raise ValueError(
                        f"p95_ms is {tail} at size {size}, context {context}: below its median "
                        f"{median}"
                    )

    @classmethod
    def constant(cls, ms: float, size: int = 1) -> Curve:
        """A curve of one point: ``ms`` whatever the size."""
        return cls((size,), (0,), ((ms,),), ((ms,),))

    def at(self, size: float, context: float = 0) -> float:
        """Median at any size and context: linear between measured points, by the last slope
        above them, and the smallest measured size's value below."""
        return float(self._line(context, np.asarray([size], dtype=np.float64))[0])

    def row(self, context: float, most: int) -> Floats:
        """Medians of the sizes 0..most at ``context``, [most + 1]."""
        return self._line(context, np.arange(most + 1, dtype=np.float64))

    def _line(self, context: float, sizes: Floats) -> Floats:
        measured, xs = self._at_context(context), self._sizes
        line = np.interp(sizes, xs, measured)
        if len(xs) > 1 and len(sizes) and sizes[-1] > xs[-1]:
            slope = max((measured[-1] - measured[-2]) / (xs[-1] - xs[-2]), 0.0)
            line += np.maximum(sizes - xs[-1], 0.0) * slope
        return line

    def _at_context(self, context: float) -> Floats:
        """Medians of the measured sizes, [sizes]: linear between contexts, the first one's below
        them, by the last slope (never a falling one) above."""
        contexts, table = self.contexts, self._table
        if context <= contexts[0] or len(contexts) == 1:
            return np.asarray(table[0])
        above = min(int(np.searchsorted(contexts, context)), len(contexts) - 1)
        low, high = table[above - 1], table[above]
        share = (context - contexts[above - 1]) / (contexts[above] - contexts[above - 1])
        if share > 1:
            return np.asarray(high + (share - 1) * np.maximum(high - low, 0.0))
        return np.asarray(low * (1 - share) + high * share)

    @cached_property
    def _sizes(self) -> Floats:
        return np.asarray(self.sizes, dtype=np.float64)

    @cached_property
    def _table(self) -> Floats:
        return np.asarray(self.median_ms, dtype=np.float64)


def _check_axis(name: str, values: Sequence[int], least: int) -> None:
    if not values:
        raise ValueError(f"{name} is empty; a curve needs at least one point")
    previous = least - 1
    for value in values:
        if value < least:
            raise ValueError(f"{name} has {value}; they start at {least}")
        if value <= previous:
            raise ValueError(f"{name} has {value} after {previous}; they must ascend")
        previous = value


def _check_table(name: str, rows: Sequence[Sequence[float]], contexts: int, sizes: int) -> None:
    if len(rows) != contexts:
        raise ValueError(f"{name} has {len(rows)} rows for {contexts} contexts")
    for row in rows:
        if len(row) != sizes:
            raise ValueError(f"{name} has a row of {len(row)} values for {sizes} sizes")
        for value in row:
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} has {value}; milliseconds are finite and above 0")
