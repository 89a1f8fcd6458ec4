"""A tiny target with questions to distil on, and drafts of every method in training."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgespec_export.distill.distillation import build_student
from edgespec_export.distill.methods import DraftOptions
from edgespec_export.distill.plan import DistillRequest, plan_distillation
from edgespec_export.distill.teacher import Sample, Teacher
from edgespec_export.distill.trainer import Trainer
from edgespec_export.questions import Question
from tests.support.checkpoints import Geometry, picture, words, write_checkpoint, write_draft

TARGET = Geometry(
    "lessons", image_size=48, kv_heads=2, layers=7, max_positions=256, eos_ids=(2, 7, 60)
)
"""36 visual tokens: enough to prune by 20; seven layers: enough for EAGLE-3's three features. Its
answers are of many lengths; one of seven and one of three held out have nothing to draft."""
HEADS = ("eagle", "eaglevlm", "msd", "vispec", "specvlm", "eagle3")
SETTINGS: dict[str, Any] = {
    "steps": 6, "batch": 2, "warmup": 2, "pool": 4, "answer_tokens": 12, "rate": 3e-3,
    "evaluate_every": 3, "save_every": 2,
}  # fmt: skip


@dataclass(frozen=True)
class School:
    """Checkpoints and data on disk; the target loaded once."""

    folder: Path
    target: Path
    draft: Path
    data: Path
    held_out: Path
    teacher: Teacher

    @property
    def frequencies(self) -> Path:
        """A list of 200 tokens, as ``edgespec frequencies`` writes it."""
        file = self.folder / "tokens.json"
        ids = list(range(200))
        file.write_text(json.dumps({"vocab_size": 320, "ids": ids, "counts": [1] * 200}))
        return file

    def request(self, method: str, out: Path, **changes: Any) -> DistillRequest:
        """A short distillation."""
        options = DraftOptions(draft=str(self.draft)) if method == "vlm" else DraftOptions()
        request = DistillRequest(
            str(self.target), method, (self.data,), out, self.held_out, options, SETTINGS
        )
        settings = {**SETTINGS, **changes.pop("settings", {})}
        return replace(request, settings=settings, **changes)

    def trainer(self, request: DistillRequest) -> Trainer:
        """What ``distill`` sets up, in this process and with the target that is loaded."""
        from accelerate import Accelerator

        plan = plan_distillation(replace(request, overwrite=not request.resume))
        return Trainer(
            self.teacher, {request.method: build_student(plan, self.teacher)}, plan.questions,
            plan.held_out, plan.settings, request.out, accelerator=Accelerator(cpu=True),
            feature_layers=plan.geometry.feature_layers if plan.geometry else (),
            recipe=plan.recipe,
        )  # fmt: skip

    def samples(self, questions: Sequence[Question], tokens: int, trainer: Any) -> list[Sample]:
        """The target's greedy answers, studied as that trainer's student needs them."""
        answers = self.teacher.answer(questions, tokens)
        kept = [(q, a) for q, a in zip(questions, answers, strict=True) if len(a) > 1]
        asked, said = zip(*kept, strict=True)
        return self.teacher.study(asked, said, trainer._feature_layers)


def write_school(folder: Path) -> School:
    """Seven questions to learn (one without a picture) and three held out."""
    import torch

    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' deprecations are not the subject
        target = write_checkpoint(folder / "target", TARGET, seed=5)
        draft = write_draft(folder / "draft", TARGET, target, seed=6, own_tower=False, noise=0.3)
    teacher = Teacher(target, torch.device("cpu"))
    data = write_questions(folder / "data.jsonl", range(7), text_only=(2,))
    held_out = write_questions(folder / "held-out.jsonl", range(7, 10), text_only=(8,))
    return School(folder, target, draft, data, held_out, teacher)


def write_questions(file: Path, numbers: Sequence[int], text_only: Sequence[int] = ()) -> Path:
    """MMSpec-style rows with pictures beside the file."""
    rows = []
    for n in numbers:
        row = {"id": f"q{n}", "turns": [words(5 + n, seed=n), "ignored"], "category": "test"}
        if n not in text_only:
            row["image"] = f"{n}.png"
            picture(TARGET.image_size, seed=n).save(file.parent / f"{n}.png")
        rows.append(json.dumps(row))
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return file
