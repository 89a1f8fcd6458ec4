"""The ways to grow a round's candidates that a device has profiled: step by step, or in chains."""

from __future__ import annotations

from collections.abc import Sequence

from edgespec.sizing.contract import Growth, Root
from edgespec.sizing.costs import RoundCosts
from edgespec.sizing.rates import Survival


class Growths:
    """What they cost, and which of them suits the text so far."""

    def __init__(self, costs: RoundCosts, chain_steps: int) -> None:
        """``chain_steps``: levels of one chain call; 0 where the draft has no chain graph."""
        self._costs = costs
        self._both = bool(costs.can_step and costs.chain_steps)
        self.kinds = [Growth.STEPS]
        if costs.chain_steps and chain_steps:
            self.kinds = [Growth.CHAIN, Growth.STEPS] if costs.can_step else [Growth.CHAIN]

    def first(self, kind: Growth, root: Root) -> float:
        """Milliseconds until there are candidates: the first call, if any are still to come
        (nothing is unseen where some are ready)."""
        return self._costs.first(kind is Growth.CHAIN, root.unseen, root.context)

    def speed(self, kind: Growth, root: Root, survival: Survival, verify: Sequence[float]) -> float:
        """Tokens per millisecond of the best depth, were the best path all there is and as likely
        to survive as it was so far: what calls of several levels save against what they waste.
        ``verify``: milliseconds by nodes. 0 where there is nothing to compare with."""
        if not self._both:
            return 0.0
        costs, chain = self._costs, kind is Growth.CHAIN
        stride = costs.chain_steps if chain else 1
        spent = self.first(kind, root) + costs.host(1)
        further = float(costs.further(chain, root.context)[1])
        best, tokens = 0.0, 1.0
        for level, reached in enumerate(survival.levels):
            if level and level % stride == 0:
                spent += further
            tokens += reached
            if level + 1 < len(verify):
                best = max(best, tokens / (spent + verify[level + 1]))
        return best
