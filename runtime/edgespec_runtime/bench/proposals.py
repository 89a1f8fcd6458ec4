"""What the draft proposed along the answer: what a trace needs so that any policy can replay it.

The target's text depends on no tree, so the answer tells which of a round's candidates lay on its
path, however far the round itself got. Only children of those nodes are kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgespec.sizing import Feedback
from edgespec.tree import ROOT, Candidates
from edgespec_runtime.decoder import Round

DIGITS = 4
LEAST = -99.0
"""Stands for the logarithm of what float32 calls zero: JSON has no infinity."""


@dataclass(frozen=True)
class Proposal:
    """The children that the draft gave one node on the answer's path."""

    rank: int
    """Which of them the target named; -1 where it named none."""
    logprobs: tuple[float, ...]
    """Given the path, in the draft's order, best first."""


@dataclass(frozen=True)
class Proposals:
    """How one round was drafted, and what it proposed."""

    growth: str
    calls: tuple[int, ...]
    prepare_ms: float
    path: tuple[Proposal, ...]
    """Of the root, then of every further node on the answer's path that was expanded."""
    astray: tuple[int, int]
    """Of the expanded nodes off the path that the target answered: how many, and how many times it
    named one of their children."""


def proposals(rounds: Sequence[Round], answer: Sequence[int]) -> tuple[Proposals, ...]:
    """One entry per round after the prefill; ``rounds`` are all of a run, ``answer`` its tokens."""
    found, emitted = [], 0
    for outcome in rounds:
        if outcome.feedback is not None:
            found.append(_of_round(outcome.feedback, answer[emitted:]))
        emitted += len(outcome.tokens)
    return tuple(found)


def _of_round(feedback: Feedback, following: Sequence[int]) -> Proposals:
    candidates = feedback.candidates
    children: dict[int, list[int]] = {}
    for index, parent in enumerate(candidates.parents):
        children.setdefault(parent, []).append(index)
    path, visited = [], []
    for node, proposal in _path(candidates, children, following):
        visited.append(node)
        path.append(proposal)
    return Proposals(
        growth=feedback.growth.value,
        calls=feedback.calls,
        prepare_ms=feedback.prepare_ms,
        path=tuple(path),
        astray=_astray(feedback, {n: c for n, c in children.items() if n not in visited}),
    )


def _path(
    candidates: Candidates, children: dict[int, list[int]], following: Sequence[int]
) -> Iterator[tuple[int, Proposal]]:
    node = ROOT
    for token in following:
        if node not in children:
            return
        below = children[node]
        base = candidates.scores[node] if node != ROOT else 0.0
        tokens = [candidates.tokens[i] for i in below]
        rank = tokens.index(token) if token in tokens else -1
        scores = [candidates.scores[i] for i in below]
        yield node, Proposal(rank, tuple(_logprob(score, base) for score in scores))
        if rank < 0:
            return
        node = below[rank]


def _logprob(score: float, base: float) -> float:
    value = max(score - base, LEAST) if math.isfinite(score) else LEAST
    return round(value, DIGITS)


def _astray(feedback: Feedback, children: dict[int, list[int]]) -> tuple[int, int]:
    if feedback.named is None:
        return 0, 0
    tokens = feedback.candidates.tokens
    answered = agreed = 0
    for node, token in zip(feedback.chosen, feedback.named[1:], strict=True):
        if node in children:
            answered += 1
            agreed += token in [tokens[i] for i in children[node]]
    return answered, agreed
