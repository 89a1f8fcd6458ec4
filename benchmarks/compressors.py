"""Compressors and ViSpec's parts at equal training: what wins on the built-in family.

    python benchmarks/compressors.py --out compressors        # resumes where it was stopped

Every head is trained on the same questions, steps and seed (one pass of the target serves them
all), then measured on the committed samples: accepted length of greedy chains of twelve, bonus
counted, exact for greedy decoding. Needs the extra [train], and npm for the drawings.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator

from edgespec_export.compression import parse_compression
from edgespec_export.distill.evaluate import evaluate
from edgespec_export.distill.settings import Losses, Settings
from edgespec_export.distill.student import HeadStudent
from edgespec_export.distill.teacher import Teacher
from edgespec_export.distill.trainer import Trainer
from edgespec_export.family import checkpoint_path, emoji, lessons, sample_folder
from edgespec_export.family.scenes import SpriteBank
from edgespec_export.heads.geometry import HeadGeometry
from edgespec_export.heads.modules import Head, ViSpecHead, build_head
from edgespec_export.plan import open_model
from edgespec_export.questions import Question, read_questions

COMPRESSORS = (
    "text-only", "prune:4", "prune:20", "pool:4", "pool:16", "conv:3", "resampler:2",
    "elastic:weighted", "elastic:concat", "elastic:select",
)  # fmt: skip


class NoGlobal(ViSpecHead):
    """ViSpec without the global vector: its adaptor's tokens only."""

    def image_rows(
        self, embeds: torch.Tensor, hidden: torch.Tensor, question: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        return super().image_rows(embeds, hidden, question)[0], None


class NoAdaptor(ViSpecHead):
    """ViSpec without compression: all visual tokens, and the adaptor's global vector."""

    def image_rows(
        self, embeds: torch.Tensor, hidden: torch.Tensor, question: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        return embeds, super().image_rows(embeds, hidden, question)[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="lessons and training state")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--questions", type=int, default=768)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    drawings = emoji.load(arguments.out / "drawings", emoji.TRAIN_STYLES)
    bank = SpriteBank(drawings, seed=31, variants=24, strength=0.7)
    file = lessons.write(arguments.out / "lessons", bank, seed=0, questions=arguments.questions)
    teacher = Teacher(checkpoint_path("target"), torch.device("cpu"))
    students = {
        name: HeadStudent(head, Losses(logit=1.0, feature=0.1, rollout=2))
        for name, head in heads(teacher).items()
    }
    trainer = Trainer(
        teacher,
        students,
        read_questions([file]),
        [],
        Settings(
            steps=arguments.steps, batch=arguments.batch, rate=1.5e-3, warmup=20,
            evaluate_every=10**9, save_every=25,
        ),
        arguments.out,
        accelerator=Accelerator(cpu=True),
    )  # fmt: skip
    if trainer.state_file.exists():
        trainer.resume()
    trainer.run()
    print(table(measure(trainer, teacher, list(students))))
    return 0


def heads(teacher: Teacher) -> Mapping[str, Head]:
    """Every head by name, each from the same seed."""
    model = open_model(str(checkpoint_path("target")))
    text = replace(model.geometry.text, layers=1, intermediate=512)

    def made(kind: type[Head] | None, variant: str, compressor: str = "", queries: int = 0) -> Head:
        torch.manual_seed(0)
        compression = parse_compression(compressor) if compressor else None
        geometry = HeadGeometry(
            variant, text, text.hidden, queries=queries, compression=compression
        )
        return (kind or build_head)(geometry, teacher.embedding, teacher.head)

    return {
        "EagleVLM (all tokens, with features)": made(None, "eaglevlm"),
        "all tokens (MSD)": made(None, "msd"),
        "ViSpec": made(None, "vispec", queries=2),
        "ViSpec without global vector": made(NoGlobal, "vispec", queries=2),
        "ViSpec without adaptor": made(NoAdaptor, "vispec", queries=2),
        **{f"SpecVLM, {name}": made(None, "specvlm", name) for name in COMPRESSORS},
    }


def measure(trainer: Trainer, teacher: Teacher, names: Sequence[str]) -> list[dict[str, object]]:
    """Accepted length in and out of domain, long descriptions and one-line answers."""
    rows: list[dict[str, object]] = [{"head": name} for name in names]
    for domain in ("in_domain", "out_of_domain"):
        for task in ("detailed", "naming"):
            questions = [
                q for q, category in _samples(sample_folder() / f"{domain}.jsonl")
                if category == task
            ]  # fmt: skip
            answers = teacher.answer(questions, 256)
            pairs = [(q, a) for q, a in zip(questions, answers, strict=True) if len(a) > 1]
            samples = [s for q, a in pairs for s in teacher.study([q], [a])]
            for row, name in zip(rows, names, strict=True):
                earned = evaluate(trainer.student(name), samples)
                row[f"{domain} {task}"] = round(earned.accepted_length, 2)
    return rows


def _samples(file: Path) -> list[tuple[Question, str]]:
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    single = [len(line["turns"]) == 1 for line in lines]
    questions = read_questions([file])
    return [
        (question, line["category"])
        for question, line, keep in zip(questions, lines, single, strict=True)
        if keep
    ]


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Markdown, best in-domain descriptions first."""
    ordered = sorted(rows, key=lambda row: -float(str(row["in_domain detailed"])))
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|---|" + "--:|" * (len(columns) - 1)]
    return "\n".join(
        [*lines, *("| " + " | ".join(str(r[c]) for c in columns) + " |" for r in ordered)]
    )


if __name__ == "__main__":
    sys.exit(main())
