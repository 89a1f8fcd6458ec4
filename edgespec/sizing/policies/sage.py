"""SAGE: depth and width by the entropy of the draft."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from edgespec.errors import ConfigError
from edgespec.sizing.contract import (
    Feedback,
    Growth,
    Root,
    Setting,
    Sizer,
    Steady,
    check_positive,
    check_probability,
)
from edgespec.sizing.policies.siblings import siblings
from edgespec.tree import ROOT, Candidates

FIRST_CONFIDENCE = 0.5
"""Of the first round, which has no draft outputs before it."""
WINDOW, SHORT, LONG = 10, 2.0, 3.0
"""Rounds whose mean accepted length, without the bonus, moves the depth limit, and from where."""


@dataclass(frozen=True)
class Sage:
    """Deep and narrow where the draft was sure a round ago, shallow and wide where it was not.

    Source: Tong et al. 2026 (SAGE, arXiv 2602.00523), its constants as defaults. Confidence is
    1 - H / log(top_k), H the entropy of a node's renormalised ``top_k`` best probabilities, and 0.5
    in the first round. The tree has ``depth`` + ``deeper`` * confidence levels; with W = ``width``
    + ``wider`` * (1 - confidence), a node at level l - 1 keeps its (W / l)(0.5 + P) best children,
    P its path probability; of those, paths above ``min_path`` * l / levels stay, at most ``nodes``
    in all. A limit on the levels falls by one after a round when the last ten accepted fewer than
    2 tokens on average, and rises by one when 3 or more.

    Readings, where the text leaves a choice: a round's confidence is the mean over all nodes it
    expanded; levels are rounded down, widths up; the limit moves between ``depth`` and ``depth`` +
    ``deeper``, where it starts; a level too large for ``nodes`` keeps its best paths. Deviation: no
    pruning of the draft's image tokens, which is the compressor's part here.
    """

    nodes: int = 64
    top_k: int = 10
    depth: int = 3
    deeper: int = 5
    width: int = 2
    wider: int = 8
    min_path: float = 0.1

    def __post_init__(self) -> None:
        check_positive(self, "nodes", "top_k", "depth", "width")
        for name in ("deeper", "wider"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise ConfigError(f"{name} is {value!r}; it must be an integer >= 0")
        if self.top_k < 2:
            raise ConfigError("top_k is 1; the entropy of one probability says nothing, give 2 up")
        check_probability(self, "min_path")

    @property
    def levels(self) -> int:
        return self.depth + self.deeper

    @property
    def max_nodes(self) -> int:
        return self.nodes

    @property
    def max_drafted(self) -> int:
        return self.nodes - 1  # a tree that is full expands nothing more

    def start(self, setting: Setting) -> Sizer:
        return _Sage(self)


class _Sage(Steady):
    policy: Sage

    def __init__(self, policy: Sage) -> None:
        super().__init__(policy)
        self._confidence = FIRST_CONFIDENCE
        self._limit = policy.levels
        self._accepted: deque[int] = deque(maxlen=WINDOW)
        self._plan()

    def _plan(self) -> None:
        policy, confidence = self.policy, self._confidence
        self._levels = min(int(policy.depth + policy.deeper * confidence), self._limit)
        self._width = policy.width + policy.wider * (1.0 - confidence)

    def begin(self, root: Root) -> Growth:
        return Growth.STEPS

    def beam(self, candidates: Candidates, level: int, root: Root) -> list[int]:
        if level >= min(self._levels, root.depth_left):
            return []
        kept = self._kept(candidates)
        if len(kept) == self.policy.nodes:
            return []
        return [i for i in kept if candidates.depths[i] == level]

    def choose(self, candidates: Candidates) -> list[int]:
        return candidates.ranked(self._kept(candidates))

    def _kept(self, candidates: Candidates) -> list[int]:
        """The nodes of the tree so far, level by level."""
        families = siblings(candidates)
        kept: list[int] = []
        level = [ROOT]
        for depth in range(1, self._levels + 1):
            floor = self.policy.min_path * depth / self._levels
            fresh: list[int] = []
            for parent in level:
                reach = 1.0 if parent == ROOT else math.exp(candidates.scores[parent])
                width = math.ceil(self._width / depth * (0.5 + reach))
                fresh += families.get(parent, [])[:width]
            fresh = [i for i in fresh if math.exp(candidates.scores[i]) > floor]
            level = candidates.ranked(fresh)[: self.policy.nodes - len(kept)]
            kept += level
        return kept

    def learn(self, feedback: Feedback) -> None:
        families = siblings(feedback.candidates)
        if not families:
            return
        self._confidence = self._confidence_of(feedback.candidates, families)
        self._accepted.append(len(feedback.rows))
        if len(self._accepted) == WINDOW:
            mean = sum(self._accepted) / WINDOW
            change = (mean >= LONG) - (mean < SHORT)
            self._limit = min(max(self._limit + change, self.policy.depth), self.policy.levels)
        self._plan()

    def _confidence_of(self, candidates: Candidates, families: dict[int, list[int]]) -> float:
        """Mean over all expanded nodes; at least 0."""
        total = 0.0
        for parent, below in families.items():
            base = 0.0 if parent == ROOT else candidates.scores[parent]
            best = [math.exp(candidates.scores[i] - base) for i in below[: self.policy.top_k]]
            mass = sum(best)
            total += -sum(p / mass * math.log(p / mass) for p in best if p > 0.0)
        mean = total / len(families)
        return max(1.0 - mean / math.log(self.policy.top_k), 0.0)
