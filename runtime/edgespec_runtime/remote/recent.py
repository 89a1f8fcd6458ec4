"""Robust figures of what was measured lately."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

WINDOW = 9
"""Measurements that count."""
STEP = 3
"""Measurements in a row, all off on one side, that say that it is no longer as it was."""
OFF = 0.35
"""How far off, as a share of the median, and at least four deviations."""
NORMAL = 1.4826
"""Standard deviation over median absolute deviation of a normal distribution."""


class Recent:
    """The last ``WINDOW`` measurements of one quantity. Requests on several threads share one, so
    values are replaced as a whole, and every figure is of one set of them."""

    def __init__(self, window: int = WINDOW) -> None:
        self._window = window
        self._values: tuple[float, ...] = ()
        self.count = 0
        """Measurements ever taken."""
        self._run = self._last = 0

    def add(self, value: float) -> None:
        """Takes a measurement; a negative one is a rounding and counts as 0. Where the last few
        are all off on one side, those before them are forgotten."""
        value = max(value, 0.0)
        side = self._side(value)
        self._run = self._run + 1 if side and side == self._last else abs(side)
        self._last = side
        self._values = (*self._values, value)[-self._window :]
        self.count += 1
        if self._run >= STEP:
            self._run = self._last = 0
            self._values = self._values[-STEP:]

    def _side(self, value: float) -> int:
        """-1, 0 or 1: below, within or above what was measured so far."""
        if not self._values:
            return 0
        centre = self.median
        if abs(value - centre) <= max(4.0 * self.spread, OFF * centre):
            return 0
        return 1 if value > centre else -1

    def __bool__(self) -> bool:
        return bool(self._values)

    @property
    def median(self) -> float:
        """0 before the first measurement, here and below."""
        return _median(self._values)

    @property
    def spread(self) -> float:
        """Standard deviation, by the median absolute deviation."""
        return _spread(self._values)

    @property
    def mean(self) -> float:
        """Of the measurements, hiccups cut off at four deviations (or once the median,
        where that is more) above the median: what a round will take on average, jitter
        included."""
        values = self._values
        centre = _median(values)
        most = centre + max(4.0 * _spread(values), centre)
        return sum(min(value, most) for value in values) / len(values) if values else 0.0


def _median(values: Sequence[float]) -> float:
    return median(values) if values else 0.0


def _spread(values: Sequence[float]) -> float:
    centre = _median(values)
    return NORMAL * _median([abs(value - centre) for value in values])
