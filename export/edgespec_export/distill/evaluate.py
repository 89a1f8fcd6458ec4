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
    """Counts over drafted chains of ``DEPTH``; they add up over batches and processes."""

    tokens: int = 0
    """Answer tokens after each answer's first, which the prompt's own pass gives."""
    rounds: int = 0
    """Verifications that it took to emit them."""
    agreed: int = 0
    """Tokens that the draft names first when it is given the true text before."""

    @property
    def accepted_length(self) -> float:
        """Tokens per round, the bonus token counted."""
        return self.tokens / max(self.rounds, 1)

    @property
    def agreement(self) -> float:
        return self.agreed / max(self.tokens, 1)

    def __add__(self, other: Earned) -> Earned:
        return Earned(
            self.tokens + other.tokens, self.rounds + other.rounds, self.agreed + other.agreed
        )


def evaluate(student: Any, samples: Sequence[Sample], batch: int = 16) -> Earned:
    """Exact for the samples' text: as long as a chain agrees with it, it is what the chain sees."""
    earned = Earned()
    student.eval()
    for start in range(0, len(samples), batch):
        for match in student.matches(samples[start : start + batch], DEPTH):
            earned += Earned(len(match), rounds_of(match), int(match[:, 0].sum()))
    student.train()
    return earned


def rounds_of(match: torch.Tensor) -> int:
    """Rounds to emit len(match) tokens: each takes the leading matches of its row, and a bonus."""
    runs = match.long().cumprod(1).sum(1).tolist()
    at = rounds = 0
    while at < len(runs):
        at += runs[at] + 1
        rounds += 1
    return rounds
