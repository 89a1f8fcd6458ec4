"""What was clocked so far: milliseconds by operation, context and size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgespec.latency import Curve

NEXT_TO_NOTHING = 1e-3
"""Milliseconds that pictures take where nobody here looks at them."""
FEWEST = 5
"""Repeats below which a median says nothing."""


class Samples:
    """Milliseconds of every point; a point is an operation at a size and a context."""

    def __init__(self) -> None:
        self._points: dict[str, dict[tuple[int, int], list[float]]] = {}

    def add(self, operation: str, size: int, ms: float, context: int = 0) -> None:
        self._points.setdefault(operation, {}).setdefault((context, size), []).append(ms)

    def curve(self, operation: str) -> Curve | None:
        """Medians and 95th percentiles of an operation, or None where it was never clocked.

        Every size was clocked at every context, as a curve wants it.
        """
        points = self._points.get(operation)
        if not points:
            return None
        contexts = tuple(sorted({context for context, _ in points}))
        sizes = tuple(sorted({size for _, size in points}))
        rows = [[_percentiles(points[context, size]) for size in sizes] for context in contexts]
        return Curve(
            sizes,
            contexts,
            tuple(tuple(median for median, _ in row) for row in rows),
            tuple(tuple(p95 for _, p95 in row) for row in rows),
        )

    def median(self, operation: str) -> float:
        """Median over all points of an operation, 0 where it was never clocked."""
        values = [ms for point in self._points.get(operation, {}).values() for ms in point]
        return float(np.median(values)) if values else 0.0

    def line(self, operation: str) -> tuple[float, float]:
        """(at size 0, per size) of an operation, neither negative: least squares over the medians
        of the sizes, each weighing as much as it was clocked often."""
        points = self._points.get(operation, {})
        sizes = np.array([size for _, size in points], dtype=np.float64)
        if not len(sizes):
            return 0.0, 0.0
        medians = np.array([np.median(ms) for ms in points.values()])
        weights = np.array([len(ms) for ms in points.values()], dtype=np.float64)
        mean, level = np.average(sizes, weights=weights), np.average(medians, weights=weights)
        spread = np.average((sizes - mean) ** 2, weights=weights)
        rise = np.average((sizes - mean) * (medians - level), weights=weights)
        slope = max(float(rise / spread), 0.0) if spread else 0.0
        return max(float(level - slope * mean), 0.0), slope

    @property
    def fewest(self) -> int:
        """Repeats of the point that has the fewest."""
        counts = [len(ms) for points in self._points.values() for ms in points.values()]
        return min(counts, default=0)

    @property
    def noise(self) -> float:
        """Median over all points of p95 / median: 1 is a quiet machine."""
        ratios = []
        for points in self._points.values():
            for ms in points.values():
                median, p95 = _percentiles(ms)
                ratios.append(p95 / median)
        return float(np.median(ratios)) if ratios else 1.0


def _percentiles(ms: Sequence[float]) -> tuple[float, float]:
    median, p95 = np.percentile(ms, (50, 95))
    return float(median), float(p95)
