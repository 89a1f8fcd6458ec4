"""Drafting until confidence falls below a threshold."""

from __future__ import annotations

from dataclasses import dataclass

from edgespec.sizing.contract import (
    Growth,
    Root,
    Setting,
    Sizer,
    Steady,
    check_positive,
    check_probability,
    newest,
)
from edgespec.sizing.policies.cut import log
from edgespec.tree import ROOT, Candidates


@dataclass(frozen=True)
class Threshold:
    """A chain that ends where the draft is no longer sure; what stays above is verified.

    ``min_path`` is a floor on the probability of the whole path. Source: SpecDec++ (Huang et al.
    2024), which stops when P(some token is rejected) = 1 - prod p exceeds h: ``min_path`` = 1 - h,
    with its h = 0.7 and at most 20 tokens as defaults. Deviations: p is the draft's own
    probability, not a trained head's; the token that falls below is left out, where SpecDec++
    judges what is already drafted and verifies all of it.

    ``min_token`` is a floor on every token's own probability. Source: llama.cpp's
    ``--spec-draft-p-min``; ``depth=16,min_path=0,min_token=0.75`` were its settings for long.
    As in its present version the token that falls below is left out (older ones verified it).
    Deviation: the probability is that of the whole vocabulary, llama.cpp's that among the ten best.

    Either is off at 0. ``width`` > 1 drafts that many nodes a level instead of one, and verifies
    the ``nodes`` best of those above both floors (all of a chain): neither source has that.
    """

    depth: int = 20
    min_path: float = 0.3
    min_token: float = 0.0
    top_k: int = 1
    width: int = 1
    nodes: int = 32

    def __post_init__(self) -> None:
        check_positive(self, "depth", "top_k", "width", "nodes")
        check_probability(self, "min_path", "min_token")

    @property
    def levels(self) -> int:
        return self.depth

    @property
    def max_nodes(self) -> int:
        return min(self.nodes, self.top_k * (1 + self.max_drafted))

    @property
    def max_drafted(self) -> int:
        return self.width * (self.depth - 1)

    def start(self, setting: Setting) -> Sizer:
        return _Threshold(self)


class _Threshold(Steady):
    policy: Threshold

    @property
    def floor(self) -> float:
        return self.policy.min_path

    def begin(self, root: Root) -> Growth:
        return Growth.CHAIN if self.policy.width == 1 else Growth.STEPS

    def beam(self, candidates: Candidates, level: int, root: Root) -> list[int]:
        if level >= min(self.policy.depth, root.depth_left):
            return []
        above = self._above(candidates)
        fresh = [i for i in newest(candidates, level) if above[i]]
        return candidates.ranked(fresh)[: self.policy.width]

    def choose(self, candidates: Candidates) -> list[int]:
        above = self._above(candidates)
        kept = [i for i in range(len(candidates)) if above[i]]
        return candidates.ranked(kept)[: self.policy.max_nodes]

    def _above(self, candidates: Candidates) -> list[bool]:
        """Whether a candidate and all its ancestors are above both floors: a segment of a chain
        reaches past the token at which it should have ended."""
        path_floor, token_floor = log(self.policy.min_path), log(self.policy.min_token)
        above: list[bool] = []
        for parent, score in zip(candidates.parents, candidates.scores, strict=True):
            base = 0.0 if parent == ROOT else candidates.scores[parent]
            sure = score >= path_floor and (
                not self.policy.min_token or score - base >= token_floor
            )
            above.append(sure and (parent == ROOT or above[parent]))
        return above
