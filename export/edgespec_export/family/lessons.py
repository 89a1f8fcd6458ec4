"""Pictures and prompts to distil heads on, and the words that drafts need.

The target answers the prompts itself while a head trains; no scene is among the committed samples.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from edgespec_export.family import sentences
from edgespec_export.family.scenes import SpriteBank, render, sample_scene
from edgespec_export.family.tokenizer import words

LONG_SHARE = 0.75
"""Share of questions that ask for a long description; the others are short ones."""


def write(folder: Path, bank: SpriteBank, *, seed: int, questions: int) -> Path:
    """Writes pictures and ``questions.jsonl`` (MMSpec's fields) into ``folder``; whole or not at
    all, and kept where it is there already."""
    file = folder / "questions.jsonl"
    if file.is_file() and len(file.read_text(encoding="utf-8").splitlines()) == questions:
        return file
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for index in range(questions):
        rng = np.random.default_rng([seed, 12, index])
        scene = sample_scene(rng)
        name = f"images/{index:05d}.jpg"
        picture = Image.fromarray(render(scene, bank, rng, jpeg=False))
        picture.save(folder / name, "JPEG", quality=92, subsampling=0)
        long = rng.random() < LONG_SHARE
        asked = sentences.detailed(scene, rng) if long else sentences.question(scene, rng)
        row = {
            "id": f"lesson-{index:05d}", "image": name, "turns": [asked.prompt],
            "category": asked.task, "topic": "single-turn",
        }  # fmt: skip
        lines.append(json.dumps(row))
    partial = file.with_suffix(".partial")
    partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    partial.replace(file)
    return file


def count_tokens(tokenizer: Tokenizer, *, seed: int, scenes: int) -> Counter[int]:
    """How often each token occurs in answers about composed scenes, long ones and short ones:
    what a draft of the family has to be able to say."""
    counts: Counter[int] = Counter()
    for index in range(scenes):
        rng = np.random.default_rng([seed, 13, index])
        scene = sample_scene(rng)
        for exchange in (sentences.detailed(scene, rng), sentences.question(scene, rng)):
            ids = tokenizer.encode(f" {exchange.answer}", add_special_tokens=False).ids
            counts.update([*ids, words(tokenizer).eos])
    return counts
