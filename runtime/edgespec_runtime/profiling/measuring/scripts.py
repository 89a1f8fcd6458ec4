"""Growths and trees that are asked for, in place of a policy's: they settle what is clocked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

from edgespec.sizing import Growth, Root, Setting, Sizer
from edgespec.sizing.contract import Steady
from edgespec.tree import Candidates, TokenTree
from edgespec_runtime.drafts import Drafter

ENDLESS = 1 << 20
"""Levels: more than any script asks for, so that none ends before it was asked again."""


@dataclass(frozen=True)
class Script:
    """A policy that grows by rote: a root call, then calls of ``widths`` rows (of a chain: 1)."""

    growth: Growth
    widths: tuple[int, ...]
    top_k: int
    levels = ENDLESS
    max_nodes = 0

    @property
    def max_drafted(self) -> int:
        return sum(self.widths)

    def start(self, setting: Setting) -> Sizer:
        return Stopwatch(self)


class Stopwatch(Steady):
    """The script's sizer. It is asked after every draft call, so the time from one question to the
    next is a call's with all the Python around it, and the sizer's own is left out."""

    policy: Script

    def __init__(self, script: Script, clock: Callable[[], float] = perf_counter) -> None:
        super().__init__(script)
        self.ms: list[float] = []
        """Of every call so far."""
        self._clock = clock
        self._expanded = 0
        self._mark = clock()

    def begin(self, root: Root) -> Growth:
        return self.policy.growth

    def beam(self, candidates: Candidates, level: int, root: Root) -> list[int]:
        self.ms.append((self._clock() - self._mark) * 1e3)
        widths, calls = self.policy.widths, len(self.ms)
        width = widths[calls - 1] if calls <= len(widths) else 0
        # Parents of all candidates are expanded, so any of those that are not may be next.
        beam = list(range(self._expanded, min(self._expanded + width, len(candidates))))
        self._expanded += len(beam)
        self._mark = self._clock()
        return beam

    def choose(self, candidates: Candidates) -> list[int]:
        return []


def clock_growth(draft: Drafter, script: Script, root: Root) -> list[tuple[int, float]]:
    """Rows and milliseconds of every call of one growth, the root's first."""
    watch = Stopwatch(script)
    draft.grow(watch, script.growth, root)
    return list(zip(draft.calls, watch.ms, strict=True))


def ramp(widths: Sequence[int], top_k: int) -> tuple[int, ...]:
    """``widths``, with calls before those that need more candidates than there are."""
    calls: list[int] = []
    free = top_k
    for width in widths:
        while free < width:
            calls.append(free)
            free *= top_k
        calls.append(width)
        free += width * (top_k - 1)
    return tuple(calls)


def caterpillar(tokens: Sequence[int]) -> TokenTree:
    """A chain with one sibling beside every node of it. Chains, stars and bushes of as many nodes
    cost the same: only the mask differs."""
    parents = [0]
    for row in range(1, len(tokens)):
        parents.append(parents[-1] if row % 2 else row)
    return TokenTree.build(tokens, parents[: len(tokens)])
