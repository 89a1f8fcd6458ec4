"""Spec-LLaVA's rolling tree."""

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
)
from edgespec.sizing.policies.cut import best
from edgespec.tree import Candidates


@dataclass(frozen=True)
class RollingBestN:
    """Spec-LLaVA's rolling tree: all proposals compete, the best ``nodes`` stay, those expand.

    Source: Spec-LLaVA (arXiv 2509.11961) as its authors' code does it, with two repairs: cumulative
    log-softmax in place of raw logits, and an ancestor-closed cut. ``width`` bounds how many kept
    nodes one draft step expands (best first; the authors expand all of them).
    """

    nodes: int = 30
    steps: int = 6
    top_k: int = 4
    width: int = 8
    min_prob: float = 0.0

    def __post_init__(self) -> None:
        check_positive(self, "nodes", "steps", "top_k", "width")
        check_probability(self, "min_prob")

    @property
    def levels(self) -> int:
        return self.steps

    @property
    def max_nodes(self) -> int:
        return self.nodes

    @property
    def max_drafted(self) -> int:
        return self.width * (self.steps - 1)

    def start(self, setting: Setting) -> Sizer:
        return _Rolling(self)


class _Rolling(Steady):
    policy: RollingBestN

    def begin(self, root: Root) -> Growth:
        return Growth.STEPS  # even one node a step may be taken from another branch

    def beam(self, candidates: Candidates, level: int, root: Root) -> list[int]:
        policy = self.policy
        if level >= policy.steps:
            return []
        parents = set(candidates.parents)
        kept = best(candidates, policy.nodes, policy.min_prob)
        fresh = [i for i in kept if i not in parents and candidates.depths[i] < root.depth_left]
        return fresh[: policy.width]

    def choose(self, candidates: Candidates) -> list[int]:
        return best(candidates, self.policy.nodes, self.policy.min_prob)
