"""What a draft in training would earn: the accepted length of greedy chains on target text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from edgespec_export.distill.teacher import Sample

DEPTH = 12
"""Chain length of the evaluation: the runtime's default policy."""


@dataclass(frozen=True)
class Earned:
    """Accepted length (bonus token counted) of chains of ``DEPTH``, and plain top-1 agreement."""

    accepted_length: float
    agreement: float
    tokens: int


def evaluate(student: Any, samples: Sequence[Sample], batch: int = 16) -> Earned:
    """Exact for greedy decoding: where a chain agrees with the text, the text is what it sees."""
    student.eval()
    tokens = rounds = agreed = 0
    for start in range(0, len(samples), batch):
        for match in student.matches(samples[start : start + batch], DEPTH):
            tokens += len(match)
            agreed += int(match[:, 0].sum())
            rounds += rounds_of(match)
    student.train()
    return Earned(tokens / max(rounds, 1), agreed / max(tokens, 1), tokens)


def rounds_of(match: torch.Tensor) -> int:
    """Rounds to emit len(match) tokens: each takes the leading matches of its row, and a bonus."""
    runs = match.long().cumprod(1).sum(1).tolist()
    at = rounds = 0
    while at < len(runs):
        at += runs[at] + 1
        rounds += 1
    return rounds
