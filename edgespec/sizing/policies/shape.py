"""Trees that are known before anything is drafted: a shape, and a sizer that fills it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgespec.sizing.contract import Growth, Policy, Root, Steady, newest
from edgespec.sizing.policies.siblings import siblings
from edgespec.tree import ROOT, Candidates

NOWHERE = -1


@dataclass(frozen=True)
class Shape:
    """A tree without tokens: node 0 is the root, children are ordered by rank."""

    children: tuple[tuple[int, ...], ...]
    """Of every node, the likeliest child's node first; parents come before their children."""

    @staticmethod
    def of_widths(widths: Sequence[int]) -> Shape:
        """``widths[l]`` children for every node at depth l."""
        children: list[tuple[int, ...]] = []
        size = level = 1
        for width in widths:
            for _ in range(level):
                children.append(tuple(range(size, size + width)))
                size += width
            level *= width
        return Shape((*children, *[()] * level))

    @property
    def nodes(self) -> int:
        """Without the root."""
        return len(self.children) - 1

    @property
    def widths(self) -> tuple[int, ...]:
        """Nodes at depths 1, 2, ...; as many as there are levels."""
        widths, level = [], self.children[0]
        while level:
            widths.append(len(level))
            level = tuple(below for node in level for below in self.children[node])
        return tuple(widths)

    @property
    def slim(self) -> bool:
        """Whether only first children have children: a chain with siblings."""
        return all(not self.children[node] for below in self.children for node in below[1:])

    def place(self, candidates: Candidates) -> list[int]:
        """The node that every candidate fills by its rank among its siblings, or ``NOWHERE``."""
        places = [NOWHERE] * len(candidates)
        for parent, below in siblings(candidates).items():
            node = 0 if parent == ROOT else places[parent]
            if node != NOWHERE:
                for index, child in zip(below, self.children[node], strict=False):
                    places[index] = child
        return places


class Static(Steady):
    """A sizer that drafts and verifies one shape, whatever the draft says of its tokens."""

    def __init__(self, policy: Policy, shape: Shape) -> None:
        super().__init__(policy)
        self.shape = shape

    def begin(self, root: Root) -> Growth:
        return Growth.CHAIN if self.shape.slim else Growth.STEPS

    def beam(self, candidates: Candidates, level: int, root: Root) -> list[int]:
        if level >= root.depth_left:
            return []
        places, children = self.shape.place(candidates), self.shape.children
        return [
            i for i in newest(candidates, level) if places[i] != NOWHERE and children[places[i]]
        ]

    def choose(self, candidates: Candidates) -> list[int]:
        places = self.shape.place(candidates)
        return candidates.ranked([i for i, place in enumerate(places) if place != NOWHERE])
