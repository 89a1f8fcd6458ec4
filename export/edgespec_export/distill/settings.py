"""What a distillation is told: its losses, its length, its rhythm. No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Losses:
    """Weights of the parts of the loss. Defaults: SpecVLM's (its section on training)."""

    logit: float = 0.1
    """Soft-label cross-entropy against the target's distribution."""
    feature: float = 1.0
    """Smooth L1 against the target's features (not for EAGLE-3, whose features are its own)."""
    rank: float = 0.0
    """ListMLE over the target's ten best tokens (ViSpec)."""
    decay: float = 0.8
    """Weight of a rollout step relative to the one before (EAGLE-3)."""
    rollout: int = 0
    """Rollout steps after the first pass."""


@dataclass(frozen=True)
class Settings:
    """How long and how: the optimiser's part of a distillation."""

    steps: int = 1000
    batch: int = 16
    rate: float = 1e-3
    warmup: int = 50
    floor: float = 0.05
    clip: float = 1.0
    answer_tokens: int = 256
    answer_temperature: float = 0.0
    pool: int = 64
    seed: int = 0
    evaluate_every: int = 100
    save_every: int = 100

    def factor(self, step: int) -> float:
        """Learning rate of a step relative to the peak: linear warm-up, then a cosine."""
        return warmed_cosine(step, steps=self.steps, warmup=self.warmup, floor=self.floor)


def warmed_cosine(step: int, *, steps: int, warmup: int, floor: float) -> float:
    """A share of the peak: a line up to it over ``warmup`` steps, then a cosine to ``floor``."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
