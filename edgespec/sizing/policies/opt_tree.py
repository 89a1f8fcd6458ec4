"""OPT-Tree."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from edgespec.errors import ConfigError
from edgespec.sizing.contract import (
    Growth,
    Root,
    Setting,
    Sizer,
    Steady,
    check_positive,
    newest,
)
from edgespec.tree import Candidates


@dataclass(frozen=True)
class OptTree:
    """The ``nodes`` nodes with the largest expected acceptance, one level more while it pays.

    Source: Wang et al. 2024 (OPT-Tree); ``threshold`` and ``depth`` are those of its authors'
    scripts, which take 50 nodes. Every level expands its ``nodes`` best nodes by path probability;
    of all levels the ``nodes`` best make the tree, whose expected acceptance is the sum of their
    path probabilities; drafting ends when a level raised that sum by no more than ``threshold``
    (the price of a draft step in tokens), or at ``depth``.

    Deviations: below a node only ``top_k`` children are looked at (the authors: ``nodes``); the
    newest level is part of the tree (their code compares the levels before it and leaves it out:
    one draft step more for the same tree, and at most ``depth`` - 1 levels).
    """

    nodes: int = 60
    threshold: float = 0.5
    depth: int = 10
    top_k: int = 10

    def __post_init__(self) -> None:
        check_positive(self, "nodes", "depth", "top_k")
        if not (math.isfinite(self.threshold) and self.threshold >= 0.0):
            raise ConfigError(f"threshold is {self.threshold!r}; it must be a number >= 0")

    @property
    def levels(self) -> int:
        return self.depth

    @property
    def max_nodes(self) -> int:
        return self.nodes

    @property
    def max_drafted(self) -> int:
        return sum(min(self.nodes, self.top_k**level) for level in range(1, self.depth))

    def start(self, setting: Setting) -> Sizer:
        return _OptTree(self)


class _OptTree(Steady):
    policy: OptTree

    def begin(self, root: Root) -> Growth:
        one = self.policy.top_k == 1 or self.policy.nodes == 1
        return Growth.CHAIN if one else Growth.STEPS

    def beam(self, candidates: Candidates, level: int, root: Root) -> list[int]:
        if level >= min(self.policy.depth, root.depth_left) or self._last(candidates) <= level:
            return []
        return candidates.ranked(newest(candidates, level))[: self.policy.nodes]

    def choose(self, candidates: Candidates) -> list[int]:
        last = self._last(candidates)
        # A segment of a chain may have grown past the level at which drafting should have ended.
        grown = [i for i, depth in enumerate(candidates.depths) if depth <= last]
        return candidates.ranked(grown)[: self.policy.nodes]

    def _last(self, candidates: Candidates) -> int:
        """The first level that did not pay; one past the deepest where all did."""
        nodes, threshold = self.policy.nodes, self.policy.threshold
        reach = np.exp(np.asarray(candidates.scores))
        depths = np.asarray(candidates.depths)
        deepest = int(depths.max(initial=0))
        kept, expected = reach[:0], 0.0
        for level in range(1, deepest + 1):
            kept = np.concatenate((kept, reach[depths == level]))
            if len(kept) > nodes:
                kept = np.partition(kept, -nodes)[-nodes:]
            gain = float(kept.sum()) - expected
            if gain <= threshold:
                return level
            expected += gain
        return deepest + 1
