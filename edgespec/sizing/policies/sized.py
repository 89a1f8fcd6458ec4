"""Sizing by measured cost: as much speculation as pays, round by round.

Source: the renewal-reward rule (``edgespec.sizing.rule``) with acceptance probabilities learnt
online (``calibration``), the device's measured times (``costs``), and budgets as constraints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgespec.errors import ConfigError
from edgespec.sizing.calibration import Paths
from edgespec.sizing.contract import (
    Feedback,
    Growth,
    Root,
    Setting,
    Sizer,
    check_positive,
    check_probability,
    newest,
)
from edgespec.sizing.costs import RoundCosts, costs_of
from edgespec.sizing.experience import Experience
from edgespec.sizing.growths import Growths
from edgespec.sizing.hindsight import Hindsight
from edgespec.sizing.room import Room
from edgespec.sizing.rule import best_count, cheapest_node, tree_order, worth_of_nodes
from edgespec.sizing.whether import Whether
from edgespec.tree import Candidates

UNSURE = 0.5
"""A path is proposed where it would pay if it were so much likelier than the draft says."""
SETTLED = 4
"""Rounds for which a decision on growth holds: asking costs time as well."""


@dataclass(frozen=True)
class Sized:
    """Maximises tokens per second: nodes, depth, width and whether to draft at all, every round.

    ``nodes``, ``levels`` and ``width`` bound the tree, ``top_k`` the children of a node;
    ``explore`` is the share of time that may be lost on trying what looks worse. Needs a profile.
    """

    nodes: int = 48
    levels: int = 24
    width: int = 8
    top_k: int = 3
    explore: float = 0.005

    def __post_init__(self) -> None:
        check_positive(self, "nodes", "levels", "width", "top_k")
        check_probability(self, "explore")

    @property
    def max_nodes(self) -> int:
        return self.nodes

    @property
    def max_drafted(self) -> int:
        return self.width * (self.levels - 1)

    def start(self, setting: Setting) -> Sizer:
        if setting.profile is None:
            raise ConfigError(
                "policy 'sized' sizes trees by measured cost and needs a device profile; make one "
                "with: edgespec profile --bundle BUNDLE --out PROFILE, and give it with --profile"
            )
        return SizedTrees(self, setting)


class SizedTrees:
    """The rule at work in one answer."""

    def __init__(self, policy: Sized, setting: Setting) -> None:
        assert setting.profile is not None
        self.policy = policy
        self._setting = setting
        self.experience = setting.experience or Experience()
        self._lesson = self.experience.lesson(self.experience.key(setting))
        self._costs = RoundCosts(
            costs_of(setting.profile, setting.remote),
            self.experience.drift,
            nodes=policy.nodes,
            width=policy.width,
            sampled=setting.temperature > 0,
        )
        if not self.experience.drift.away.known:
            self.experience.drift.away.learn(setting.away_ms)
        self._whether = Whether(setting, self.experience, self._costs)
        self._room = Room(setting.budget, self._costs)
        self._growths = Growths(self._costs, setting.chain_steps)
        self._paths = Paths(self._lesson.calibrator, setting.eos)
        self._hindsight = Hindsight(
            setting, self._costs, self._whether, self._lesson, policy.explore
        )
        # The last decision on growth, and for how many rounds it still holds.
        self._kind, self._settled = Growth.NONE, 0
        # Of the round at hand.
        self._growth = Growth.NONE
        self._verify: Sequence[float] = (0.0,)
        self._rate = self._spent = self._tokens = 0.0

    # --- before drafting

    def begin(self, root: Root) -> Growth:
        if root.emitted < self._whether.wake:
            return Growth.NONE
        self._hindsight.settle(root.context)
        costs = self._costs
        plain_ms = costs.verify_one(0, root.context) + costs.host(1)
        self._tokens, self._spent, self._growth = 1.0, 0.0, Growth.NONE
        self._verify = costs.verify(root.context)
        if self._settled <= 0 or not root.prepared or self._room.limited:
            self._kind = self._decide(root, plain_ms)
            self._settled = 1 if self._whether.trying else SETTLED
        self._settled -= 1
        if self._kind is Growth.NONE:
            self._settled = 0
            return Growth.NONE
        self._rate = max(self._whether.rate, 1.0 / plain_ms)
        self._paths = Paths(self._lesson.calibrator, self._setting.eos)
        self._growth = self._kind
        self._spent = self._least_drafting(self._growth, root)
        return self._growth

    def _decide(self, root: Root, plain_ms: float) -> Growth:
        """Whether to draft, and how; it holds for some rounds."""
        # What was grown ahead is gone on with as it was begun.
        kinds = [self._kind] if root.ready else self._growths.kinds
        kinds = [kind for kind in kinds if self._fits(kind, root)]
        if not kinds or not self._whether.drafts(root, plain_ms):
            return Growth.NONE
        survival, verify = self._whether.survival, self._verify
        return max(kinds, key=lambda kind: self._growths.speed(kind, root, survival, verify))

    def _fits(self, growth: Growth, root: Root) -> bool:
        """Whether the smallest round of this kind keeps the budget."""
        if not self._room.limited:
            return True
        least = self._least_drafting(growth, root)
        least += self._costs.verify_one(1, root.context) + self._costs.host(2)
        return self._room.holds(least)

    def _least_drafting(self, growth: Growth, root: Root) -> float:
        """Milliseconds until there are candidates, the prompt taken in where it is not yet."""
        first = self._growths.first(growth, root)
        return first if root.prepared else first + self._whether.prepare_ms

    # --- while drafting

    @property
    def floor(self) -> float:
        """What a node must bring to pay for the cheapest share of a verification, and some doubt:
        looking up, weighing and learning from what cannot pay takes the host's time."""
        return UNSURE * self._rate * cheapest_node(self._verify)

    def beam(self, candidates: Candidates, level: int, root: Root) -> list[int]:
        reach = self._paths.extend(candidates)
        if level >= min(self.policy.levels, root.depth_left):
            return []
        fresh = newest(candidates, level)
        if self._growth is Growth.CHAIN:
            return self._next_segment(reach, fresh[0], level, root)
        return self._next_beam(reach, fresh, level, root)

    def _next_segment(self, reach: list[float], tip: int, level: int, root: Root) -> list[int]:
        """The chain's tip where another segment is expected to pay."""
        costs, steps = self._costs, self._setting.chain_steps
        price = float(costs.further(True, root.context)[1]) if costs.chain_steps else 0.0
        if not self._affordable(price):
            return []
        gains = [reach[tip] * kept for kept in self._whether.survival.beyond(level, steps)]
        there = best_count(sorted(reach, reverse=True), self._verify, self._rate)[0]
        worth = worth_of_nodes(gains, there, self._verify, self._rate)
        if worth <= self._rate * price:
            return []
        self._spent += price
        return [tip]

    def _next_beam(self, reach: list[float], fresh: list[int], level: int, root: Root) -> list[int]:
        """The newest nodes worth expanding: those whose children are expected to pay for their
        share of a draft step and of the verification (width), if together they pay for the step
        (depth), looking two steps ahead."""
        costs, rate = self._costs, self._rate
        ranked = sorted(fresh, key=lambda i: -reach[i])[: self.policy.width]
        if not ranked:
            return []
        prices = costs.further(False, root.context)[: len(ranked) + 1]
        chance = np.array([reach[i] for i in ranked])
        nodes = min(len(reach), len(self._verify) - 1)
        slope = (self._verify[nodes] - self._verify[0]) / max(nodes, 1)
        kept, twice = self._whether.survival.beyond(level, 2)
        one = np.maximum(chance * kept - rate * slope, 0.0)
        two = one + np.maximum(chance * twice - rate * slope, 0.0)
        worth = np.maximum(
            np.cumsum(one) - rate * prices[1:], np.cumsum(two) - 2 * rate * prices[1:]
        )
        width = int(worth.argmax()) + 1
        if worth[width - 1] <= 0 or not self._affordable(float(prices[width])):
            return []
        self._spent += float(prices[width])
        return ranked[:width]

    def _affordable(self, price: float) -> bool:
        return self._room.left(self._spent + price, 2) >= self._verify[1]

    def choose(self, candidates: Candidates) -> list[int]:
        if not len(candidates):
            return []
        reach = self._paths.extend(candidates)
        order = tree_order(reach)[: self.policy.nodes]
        # All levels may be accepted.
        tokens_most = 1 + max(candidates.depths) if self._room.limited else 1
        left = self._room.left(self._spent, tokens_most)
        count, tokens = best_count([reach[i] for i in order], self._verify, self._rate, left)
        self._tokens = 1.0 + tokens
        return order[:count]

    # --- afterwards

    def learn(self, feedback: Feedback) -> None:
        self._hindsight.take(feedback, self._paths, self._tokens)

    def finish(self, emitted: int, ended: bool) -> None:
        self._hindsight.finish(emitted)
