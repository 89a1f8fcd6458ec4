"""EAGLE-2's dynamic tree."""

from __future__ import annotations

from dataclasses import dataclass

from edgespec.errors import ConfigError
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
from edgespec.sizing.policies.cut import best, log
from edgespec.tree import Candidates


@dataclass(frozen=True)
class Eagle2:
    """EAGLE-2's dynamic tree: a beam of ``top_k`` per level, ``depth`` levels, best ``nodes`` kept.

    Source: Li et al. 2024 (EAGLE-2); scores are cumulative float32 log-softmax and ties are
    ordered, so the cut is always closed under ancestors. ``min_prob`` is an optional confidence
    floor: nodes whose path probability is below it are neither expanded nor verified (0 = the
    paper's rule). ``beam_width`` expands fewer nodes per level than ``top_k`` (0 = the paper's
    rule); 1 is a chain with siblings, the cheapest shape where draft steps are dear.
    """

    nodes: int = 30
    depth: int = 6
    top_k: int = 4
    min_prob: float = 0.0
    beam_width: int = 0

    def __post_init__(self) -> None:
        check_positive(self, "nodes", "depth", "top_k")
        check_probability(self, "min_prob")
        if not isinstance(self.beam_width, int) or self.beam_width < 0:
            raise ConfigError(f"beam_width is {self.beam_width!r}; it must be an integer >= 0")

    @property
    def width(self) -> int:
        """Nodes expanded per level."""
        return self.beam_width or self.top_k

    @property
    def levels(self) -> int:
        return self.depth

    @property
    def max_nodes(self) -> int:
        return self.nodes

    @property
    def max_drafted(self) -> int:
        return self.width * (self.depth - 1)

    def start(self, setting: Setting) -> Sizer:
        return _Eagle2(self)


class _Eagle2(Steady):
    policy: Eagle2

    def begin(self, root: Root) -> Growth:
        return Growth.CHAIN if self.policy.width == 1 else Growth.STEPS

    def beam(self, candidates: Candidates, level: int, root: Root) -> list[int]:
        policy = self.policy
        if level >= min(policy.depth, root.depth_left):
            return []
        floor = log(policy.min_prob)
        fresh = [i for i in newest(candidates, level) if candidates.scores[i] > floor]
        return candidates.ranked(fresh)[: policy.width]

    def choose(self, candidates: Candidates) -> list[int]:
        return best(candidates, self.policy.nodes, self.policy.min_prob)
