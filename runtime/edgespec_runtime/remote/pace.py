"""How long answers take, to tell a late one from a lost one."""

from __future__ import annotations

from statistics import median

KEPT = 32
FEW = 3
FLOOR_S = 0.5
"""No deadline is shorter: a busy server is late, not lost."""


class Pace:
    """Recent waits, in seconds; deadlines are drawn from them."""

    def __init__(self, most_s: float) -> None:
        self._most_s = most_s
        self._waits: tuple[float, ...] = ()  # replaced as a whole: requests share it

    def took(self, seconds: float) -> None:
        """An answer came after ``seconds``."""
        self._waits = (*self._waits, seconds)[-KEPT:]

    def deadline_s(self, attempt: int = 0) -> float:
        """When to give up waiting: three times the usual wait and six times its spread, doubled
        with every further ``attempt``, and never above the limit."""
        waits = self._waits
        if len(waits) < FEW:
            return self._most_s
        usual = median(waits)
        spread = median(abs(wait - usual) for wait in waits)
        late = max(3 * usual + 6 * spread, FLOOR_S)
        return min(late * 2.0**attempt, self._most_s)
