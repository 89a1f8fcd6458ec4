"""The last stage: sample scenes, and what the saved checkpoints can do with new ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import LlavaForConditionalGeneration

from edgespec_export.family import emoji, evaluate, models, samples
from edgespec_export.family.scenes import SpriteBank

if TYPE_CHECKING:
    from edgespec_export.family.workshop import Workshop


def compose(shop: Workshop, folder: Path) -> None:
    """Write the sample and evaluation scenes."""
    inside = {style: shop.drawings[style] for style in emoji.TRAIN_STYLES}
    outside = {emoji.HELD_OUT_STYLE: shop.drawings[emoji.HELD_OUT_STYLE]}
    scenes = shop.recipe.scenes
    samples.write(folder, "in_domain", inside, seed=shop.seed + 101, scenes=scenes)
    samples.write(folder, "out_of_domain", outside, seed=shop.seed + 102, scenes=scenes)
    samples.showpieces(folder, inside, seed=shop.seed + 103)


def measure(shop: Workshop, checkpoints: Path, folder: Path) -> dict[str, object]:
    """Measure the saved checkpoints on new scenes and on the committed ones."""
    llava: Any = LlavaForConditionalGeneration
    target, draft = (
        llava.from_pretrained(checkpoints / name, dtype=torch.float32).to(shop.device).eval()
        for name in ("target", "draft")
    )
    wide, narrow = shop.writer(), shop.writer(models.POOLED_TOKENS)
    report: dict[str, object] = {}
    for domain, styles in (
        ("in_domain", emoji.TRAIN_STYLES),
        ("out_of_domain", (emoji.HELD_OUT_STYLE,)),
    ):
        shown = {style: shop.drawings[style] for style in styles}
        bank = SpriteBank(shown, seed=shop.seed + 104, variants=8, strength=samples.STRENGTH)
        asked = evaluate.fresh(bank, seed=shop.seed + 105, scenes=shop.recipe.measured)
        longs = evaluate.long_questions(
            bank, seed=shop.seed + 106, scenes=max(1, shop.recipe.measured // 4)
        )
        committed = evaluate.questions(folder / f"{domain}.jsonl", "naming")
        drafted = evaluate.drafting(target, draft, wide, narrow, longs, device=shop.device)
        report[domain] = {
            "naming": evaluate.exact(target, wide, asked, device=shop.device),
            "naming_committed": evaluate.exact(target, wide, committed, device=shop.device),
            "naming_blank": evaluate.exact(target, wide, evaluate.blank(asked), device=shop.device),
            "naming_shuffled": evaluate.exact(
                target, wide, evaluate.shuffled(asked), device=shop.device
            ),
            "detailed_exact": evaluate.exact(target, wide, longs, limit=200, device=shop.device),
            "draft": dataclasses.asdict(drafted),
            "questions": len(asked),
        }
    return report
