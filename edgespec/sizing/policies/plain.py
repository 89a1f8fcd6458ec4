"""Plain decoding as a policy: n = 0 in every round."""

from __future__ import annotations

from dataclasses import dataclass

from edgespec.sizing.contract import Growth, Root, Setting, Sizer, Steady
from edgespec.tree import Candidates


@dataclass(frozen=True)
class Plain:
    """Never drafts."""

    top_k = 1
    levels = 1
    max_nodes = 0
    max_drafted = 0

    def start(self, setting: Setting) -> Sizer:
        return _Plain(self)


class _Plain(Steady):
    def begin(self, root: Root) -> Growth:
        return Growth.NONE

    def beam(self, candidates: Candidates, level: int, root: Root) -> list[int]:
        return []

    def choose(self, candidates: Candidates) -> list[int]:
        return []
