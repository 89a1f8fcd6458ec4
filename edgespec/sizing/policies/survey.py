"""A policy for recording: it sees what the draft proposes everywhere, and decodes slowly."""

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
    newest,
)
from edgespec.tree import ROOT, Candidates


@dataclass(frozen=True)
class Survey:
    """A chain with siblings of which only expanded nodes are verified, at most ``verify`` of them.

    The last accepted node of a round has then always been expanded, so the trace of a run knows
    the draft's proposals at every position of the answer (``edgespec simulate``). With
    ``verify=0`` every position is a root, and its successors are seen at every depth: what drafts
    need whose proposals get worse with depth.
    """

    depth: int = 18
    top_k: int = 8
    verify: int = 64

    def __post_init__(self) -> None:
        check_positive(self, "depth", "top_k")
        if not isinstance(self.verify, int) or self.verify < 0:
            raise ConfigError(f"verify is {self.verify!r}; it must be an integer >= 0")

    @property
    def levels(self) -> int:
        return self.depth

    @property
    def max_nodes(self) -> int:
        return min(self.verify, self.depth - 1)

    @property
    def max_drafted(self) -> int:
        return self.depth - 1

    def start(self, setting: Setting) -> Sizer:
        return _Survey(self)


class _Survey(Steady):
    policy: Survey

    def begin(self, root: Root) -> Growth:
        return Growth.CHAIN

    def beam(self, candidates: Candidates, level: int, root: Root) -> list[int]:
        if level >= min(self.policy.depth, root.depth_left):
            return []
        return candidates.ranked(newest(candidates, level))[:1]

    def choose(self, candidates: Candidates) -> list[int]:
        expanded = sorted(set(candidates.parents) - {ROOT})
        return expanded[: self.policy.verify]
