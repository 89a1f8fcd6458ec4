"""A policy that drafts in some rounds only, and stops its trees by chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgespec.sizing import Feedback, Growth, Policy, Root, Setting, Sizer
from edgespec.sizing.contract import newest
from edgespec.tree import Candidates


@dataclass(frozen=True)
class Pausing:
    """Draws for every round whether it drafts, how, and how far; chooses as ``inner`` does.

    A drafted round grows as ``inner`` would, or as a chain of best tokens (CHAIN, or STEPS whose
    beam is the tip). Draws are keyed by the round, so two runs of the same text draw the same.
    """

    inner: Policy
    idle: int = 0
    """Rounds at the beginning that do not draft."""
    seed: int = 0
    share: float = 0.5
    """Of the rounds behind them that do not draft either."""
    ends: int = 10_000
    """Round from which on none drafts any more."""
    segment: int = 1
    """A chain stops at multiples of so many levels only."""
    chains: float = 0.5
    """Share of the drafted rounds that grow a chain where ``inner`` would not."""
    shadow: bool = False
    """What does not draft above grows all the same, and nothing of it is chosen: the draft of such
    a run never pauses, and the text is told in the same rounds."""

    @property
    def top_k(self) -> int:
        return self.inner.top_k

    @property
    def levels(self) -> int:
        return self.inner.levels

    @property
    def max_nodes(self) -> int:
        return self.inner.max_nodes

    @property
    def max_drafted(self) -> int:
        return max(self.inner.max_drafted, self.inner.levels - 1)

    def start(self, setting: Setting) -> Sizer:
        return PausingSizer(self, setting)


class PausingSizer:
    """Also keeps what it was told."""

    floor = 0.0

    def __init__(self, policy: Pausing, setting: Setting) -> None:
        self.policy = policy
        self.told: list[Feedback] = []
        self.paused: list[bool] = []
        """Of every round so far, whether it drafted for nothing or not at all."""
        self.finished: list[tuple[int, bool]] = []
        self._inner = policy.inner.start(setting)
        self._chain = False
        self._stop = 0

    def begin(self, root: Root) -> Growth:
        policy = self.policy
        rng = np.random.default_rng([policy.seed, len(self.paused)])
        on = policy.idle <= len(self.paused) < policy.ends
        self.paused.append(bool(rng.random() < policy.share) or not on)
        growth = self._inner.begin(root)
        self._chain = growth is Growth.CHAIN or bool(rng.random() < policy.chains)
        self._stop = int(rng.integers(1, policy.levels + 1))
        if self.paused[-1] and not policy.shadow:
            return Growth.NONE
        if growth is not Growth.CHAIN and self._chain and rng.random() < 0.5:
            return Growth.CHAIN
        return growth

    def beam(self, candidates: Candidates, level: int, root: Root) -> list[int]:
        if not self._chain:
            return self._inner.beam(candidates, level, root)
        most = min(self.policy.levels, root.depth_left)
        stops = level >= self._stop and level % self.policy.segment == 0
        return [] if level >= most or stops else candidates.ranked(newest(candidates, level))[:1]

    def choose(self, candidates: Candidates) -> list[int]:
        return [] if self.paused[-1] else self._inner.choose(candidates)

    def learn(self, feedback: Feedback) -> None:
        self.told.append(feedback)
        self._inner.learn(feedback)

    def finish(self, emitted: int, ended: bool) -> None:
        self.finished.append((emitted, ended))
        self._inner.finish(emitted, ended)


def tree_of(candidates: Candidates) -> list[tuple[int, int, int]]:
    """Token, parent and depth of every candidate."""
    return list(zip(candidates.tokens, candidates.parents, candidates.depths, strict=True))


def drafted(rounds: Sequence[Any]) -> list[Feedback]:
    """What sizers were told of the rounds that drafted."""
    told = [r.feedback for r in rounds if r.feedback is not None]
    return [feedback for feedback in told if feedback.growth is not Growth.NONE]
