"""The sample and evaluation scenes that travel with the product."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image

from edgespec_export.family import sentences
from edgespec_export.family.emoji import Drawings
from edgespec_export.family.objects import objects
from edgespec_export.family.scenes import Scene, SpriteBank, render, sample_scene
from edgespec_export.family.sentences import Exchange

STRENGTH = 0.4
"""How much the sprites of evaluation scenes are varied, relative to training."""


def _exchanges(scene: Scene, rng: Generator) -> list[list[Exchange]]:
    """The questions about one scene: each inner list is a conversation of one or two turns."""
    cells = [placed.cell for placed in scene.objects]
    first = int(rng.choice(cells))
    second = int(rng.choice([cell for cell in cells if cell != first] or cells))
    other = sentences.question(scene, rng)
    while other.task == "naming":
        other = sentences.question(scene, rng)
    wording = int(rng.integers(1, 4))
    return [
        [sentences.detailed(scene, rng)],
        [sentences.naming(scene, first)[0]],
        [sentences.naming(scene, second)[wording]],
        [other],
        [sentences.captions(scene)[0], sentences.naming(scene, first)[0]],
    ]


def write(folder: Path, domain: str, drawings: Drawings, *, seed: int, scenes: int = 48) -> None:
    """Compose `scenes` pictures into `folder`/`domain` and describe them in `domain`.jsonl."""
    bank = SpriteBank(drawings, seed=seed, variants=8, strength=STRENGTH)
    (folder / domain).mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    for index in range(scenes):
        rng = np.random.default_rng([seed, 8, index])
        scene = sample_scene(rng)
        name = f"{domain}/{index:02d}.jpg"
        picture = Image.fromarray(render(scene, bank, rng, jpeg=False))
        picture.save(folder / name, "JPEG", quality=92, subsampling=0)
        record = {
            "colour": scene.colour,
            "objects": [
                {**asdict(placed), "name": objects()[placed.kind].name} for placed in scene.objects
            ],
        }
        for number, conversation in enumerate(_exchanges(scene, rng)):
            line = {
                "id": f"{domain}-{index:02d}-{number}",
                "image": name,
                "turns": [exchange.prompt for exchange in conversation],
                "answers": [exchange.answer for exchange in conversation],
                "category": conversation[-1].task,
                "topic": "multi-turn" if len(conversation) > 1 else "single-turn",
                "scene": record,
            }
            lines.append(json.dumps(line, sort_keys=True))
    (folder / f"{domain}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def showpieces(folder: Path, drawings: Drawings, *, seed: int, count: int = 3) -> None:
    """A few larger pictures for the demo, in one style each."""
    bank = SpriteBank(drawings, seed=seed, variants=6, strength=0.2, scale=2.0)
    made = 0
    for index in range(1000):
        rng = np.random.default_rng([seed, 9, index])
        scene = sample_scene(rng)
        if len(scene.kinds) != 3 + made % 2 or made >= count:
            continue
        style = made % len(bank.styles)
        image = Image.fromarray(render(scene, bank, rng, style=style, jpeg=False))
        image.save(folder / f"demo-{made + 1}.jpg", "JPEG", quality=92, subsampling=0)
        made += 1
