"""The fixed chain."""

from __future__ import annotations

from dataclasses import dataclass

from edgespec.sizing.contract import (
    Growth,
    Root,
    Setting,
    Sizer,
    Steady,
    check_positive,
    newest,
)
from edgespec.sizing.policies.cut import best
from edgespec.tree import Candidates


@dataclass(frozen=True)
class FixedChain:
    """``depth`` tokens in a row, all of them verified.

    Source: Leviathan et al. 2023 and Chen et al. 2023 (speculative decoding, gamma = ``depth``),
    with one deviation: the draft's best token is taken at every level, not a draw from the draft
    (DESIGN, decision 1). ``top_k`` > 1 verifies that many children of every node of the chain,
    which neither paper has: only the best one goes on.
    """

    depth: int = 5
    top_k: int = 1

    def __post_init__(self) -> None:
        check_positive(self, "depth", "top_k")

    @property
    def levels(self) -> int:
        return self.depth

    @property
    def max_nodes(self) -> int:
        return self.depth * self.top_k

    @property
    def max_drafted(self) -> int:
        return self.depth - 1

    def start(self, setting: Setting) -> Sizer:
        return _FixedChain(self)


class _FixedChain(Steady):
    policy: FixedChain

    def begin(self, root: Root) -> Growth:
        return Growth.CHAIN

    def beam(self, candidates: Candidates, level: int, root: Root) -> list[int]:
        if level >= min(self.policy.depth, root.depth_left):
            return []
        return candidates.ranked(newest(candidates, level))[:1]

    def choose(self, candidates: Candidates) -> list[int]:
        return best(candidates, self.policy.max_nodes)
