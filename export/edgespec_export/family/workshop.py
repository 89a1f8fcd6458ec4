"""What the stages of training the family share."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer

from edgespec_export.family import batches, emoji, models
from edgespec_export.family.heads import HeadRecipe
from edgespec_export.family.loop import Schedule
from edgespec_export.family.packing import Writer
from edgespec_export.family.scenes import SpriteBank


@dataclass(frozen=True)
class Recipe:
    """How long every stage trains, and on how much per step.

    `gentle` is the strength of the sprites' variation while the whole target trains: the tower has
    seen the full variation by then, and milder pictures leave the text model less noise.
    """

    variants: int = 32
    gentle: float = 0.7
    pictures: int = 32
    size: batches.Size = field(default_factory=lambda: batches.Size(rows=8, dense=16))
    tower: Schedule = field(
        default_factory=lambda: Schedule(steps=2600, rate=1.5e-3, warmup=200, decay=0.05)
    )
    shallow: Schedule = field(
        default_factory=lambda: Schedule(steps=2400, rate=1e-3, warmup=150, floor=0.35, decay=0.05)
    )
    deep: Schedule = field(
        default_factory=lambda: Schedule(steps=1400, rate=6e-4, warmup=30, decay=0.05)
    )
    draft: Schedule = field(
        default_factory=lambda: Schedule(steps=2400, rate=2e-3, warmup=60, decay=0.05)
    )
    draft_size: batches.Size = field(
        default_factory=lambda: batches.Size(rows=8, tokens=344, dense=0)
    )
    told: int = 1536
    heads: HeadRecipe = field(default_factory=HeadRecipe)
    scenes: int = 48
    measured: int = 200


@dataclass(frozen=True)
class Workshop:
    """What the stages share: places, seed, device, drawings and tokenizer."""

    out: Path
    seed: int
    device: str
    workers: int
    recipe: Recipe
    drawings: emoji.Drawings
    tokenizer: Tokenizer

    def state(self, name: str) -> Path:
        """Where a stage keeps its training state."""
        return self.out / "state" / f"{name}.pt"

    def writer(self, visual_tokens: int = models.VISUAL_TOKENS) -> Writer:
        return Writer(self.tokenizer, visual_tokens)

    def bank(self, seed: int, *, strength: float = 1.0) -> SpriteBank:
        """Training sprites: the held-out style is never among them."""
        shown = {style: self.drawings[style] for style in emoji.TRAIN_STYLES}
        variants = self.recipe.variants
        return SpriteBank(shown, seed=self.seed + seed, variants=variants, strength=strength)

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
