"""What budgets leave of one round, whose predicted times are medians and whose limits are not."""

from __future__ import annotations

import math

from edgespec.sizing.budgets import Budget
from edgespec.sizing.costs import RoundCosts


class Room:
    """Of a round: tokens of one arrive together, so the time between tokens is a round's."""

    def __init__(self, budget: Budget | None, costs: RoundCosts) -> None:
        self._limit = min(budget.ms_per_round, budget.p95_itl_ms) if budget else math.inf
        self._costs = costs

    @property
    def limited(self) -> bool:
        """Whether there is any limit."""
        return self._limit < math.inf

    @property
    def tail(self) -> float:
        """A round's 95th percentile over its prediction."""
        return math.exp(self._costs.drift.verify.log_p95)

    def holds(self, ms: float) -> bool:
        """Whether a round that is expected to take ``ms`` keeps the budget."""
        return ms * self.tail <= self._limit

    def left(self, spent: float, tokens: int) -> float:
        """Milliseconds for verifying, after ``spent`` of drafting, in a round of ``tokens``: every
        one of them is the host's work as well."""
        return self._limit / self.tail - spent - self._costs.host(tokens)
