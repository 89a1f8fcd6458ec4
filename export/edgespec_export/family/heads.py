"""Stage four: the feature-level drafts of the family, distilled by ``edgespec distill`` itself."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgespec_export.distill.distillation import distill
from edgespec_export.distill.methods import DraftOptions
from edgespec_export.distill.plan import DistillRequest
from edgespec_export.family import lessons
from edgespec_export.family.scenes import SpriteBank

METHODS = ("eaglevlm", "vispec", "specvlm")


@dataclass(frozen=True)
class Stage:
    """One run of ``edgespec distill``: fresh questions, its settings and its loss."""

    questions: int
    settings: Mapping[str, Any]
    losses: Mapping[str, Any]


@dataclass(frozen=True)
class HeadRecipe:
    """Two stages; the second begins with the first one's weights, on other pictures, and looks
    further ahead. Narrower than the target, since a draft's step is bound by its weights."""

    intermediate: int = 512
    kv_heads: int = 2
    held_out: int = 24
    counted: int = 4000
    """Scenes whose answers say which tokens drafts keep to."""
    first: Stage = field(
        default_factory=lambda: Stage(
            1600,
            {"steps": 700, "batch": 8, "rate": 1.5e-3, "warmup": 30, "evaluate_every": 50},
            {"logit": 1.0, "feature": 0.1, "rollout": 3},
        )
    )
    second: Stage = field(
        default_factory=lambda: Stage(
            768,
            {"steps": 500, "batch": 8, "rate": 7e-4, "warmup": 30, "evaluate_every": 50},
            {"logit": 1.0, "feature": 0.1, "rollout": 4},
        )
    )


def train_heads(
    target: Path, folder: Path, checkpoints: Path, bank: SpriteBank, recipe: HeadRecipe, seed: int
) -> None:
    """Writes ``checkpoints``/METHOD for every method; resumes what ``folder`` holds."""
    held_out = lessons.write(folder / "held-out", bank, seed=seed + 90, questions=recipe.held_out)
    for method in METHODS:
        begin_from: str | None = None
        for number, stage in enumerate((recipe.first, recipe.second), 1):
            name = f"lessons-{number}"
            file = lessons.write(folder / name, bank, seed=seed + number, questions=stage.questions)
            options = DraftOptions(
                intermediate=recipe.intermediate, kv_heads=recipe.kv_heads, begin_from=begin_from
            )
            out = folder / f"{method}-{number}"
            request = DistillRequest(
                target=str(target),
                method=method,
                data=(file,),
                out=out,
                held_out=held_out,
                draft=options,
                settings={**stage.settings, "seed": seed},
                losses=stage.losses,
                resume=out.exists(),
            )
            done = distill(request)
            assert done is not None
            begin_from = str(done.out)
        shutil.rmtree(checkpoints / method, ignore_errors=True)
        shutil.copytree(str(begin_from), checkpoints / method)
