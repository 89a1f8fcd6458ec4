"""The loop of ``edgespec distill``: answers, one pass of the target, one step of every student.

What a step does is a function of (seed, step) and of the saved state: a training that was killed
and resumed ends with the weights of one that was not. Hugging Face Accelerate places it on one CPU,
one GPU or many; a step's questions are divided among the processes.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from edgespec.errors import InputError
from edgespec_export.distill.evaluate import Earned, evaluate
from edgespec_export.distill.questions import Course, Question
from edgespec_export.distill.teacher import Sample, Teacher
from edgespec_export.heads.compressors import Elastic


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
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class Trainer:
    """Trains several students on the same samples; one is what the command asks for."""

    def __init__(
        self,
        teacher: Teacher,
        students: Mapping[str, nn.Module],
        questions: Sequence[Question],
        held_out: Sequence[Question],
        settings: Settings,
        folder: Path,
        *,
        accelerator: Any,
        feature_layers: Sequence[int] = (),
    ) -> None:
        self.settings = settings
        self.step = 0
        self._teacher = teacher
        self._questions, self._held_out = questions, held_out
        self._folder = folder
        self._accelerator = accelerator
        self._feature_layers = feature_layers
        self._course = Course(len(questions), settings.batch, settings.pool, settings.seed)
        self._answers: dict[int, dict[int, list[int]]] = {}
        self._students: dict[str, Any] = {}
        self._optimizers: dict[str, Any] = {}
        for name, student in students.items():
            trained = [p for p in student.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(
                trained, lr=settings.rate, betas=(0.9, 0.95), weight_decay=0.0
            )
            self._students[name], self._optimizers[name] = accelerator.prepare(student, optimizer)

    @property
    def state_file(self) -> Path:
        return self._folder / "state.pt"

    def run(self, until: int | None = None) -> dict[str, Earned]:
        """Trains to the end (or ``until``) and returns the last evaluation of every student."""
        last = min(self.settings.steps, until or self.settings.steps)
        samples = self._study(self._held_out, self._answer(self._held_out))
        earned: dict[str, Earned] = {}
        main = self._accelerator.is_main_process
        if self.step == 0:
            earned = self._evaluate(samples)
        with tqdm(
            total=self.settings.steps, initial=self.step, desc="distill", file=sys.stderr,
            mininterval=2, disable=None if main else True,
        ) as bar:  # fmt: skip
            while self.step < last:
                figures = self._train_step()
                self.step += 1
                bar.update()
                bar.set_postfix({k: f"{v:.3f}" for k, v in figures.items()}, refresh=False)
                at_end = self.step == last
                if self.step % self.settings.evaluate_every == 0 or at_end:
                    earned = self._evaluate(samples)
                    text = ", ".join(f"{n} {e.accepted_length:.2f}" for n, e in earned.items())
                    if main:
                        bar.write(f"step {self.step}: accepted length {text}", file=sys.stderr)
                if self.step % self.settings.save_every == 0 or at_end:
                    self.save()
        return earned

    def student(self, name: str) -> Any:
        """A student as it was given."""
        return self._accelerator.unwrap_model(self._students[name])

    def save(self) -> None:
        """Writes the state beside its place and moves it there: never half written."""
        if self._accelerator.is_main_process:
            self._folder.mkdir(parents=True, exist_ok=True)
            partial = self.state_file.with_suffix(".partial")
            content = {
                "step": self.step,
                "workers": self._accelerator.num_processes,
                "settings": asdict(self.settings),
                "students": {name: self.student(name).state_dict() for name in self._students},
                "optimizers": {n: o.state_dict() for n, o in self._optimizers.items()},
            }
            torch.save(content, partial)
            partial.replace(self.state_file)
        self._accelerator.wait_for_everyone()

    def resume(self) -> None:
        """Goes on where ``save`` left off. Raises InputError where the settings have changed."""
        saved = torch.load(self.state_file, map_location="cpu", weights_only=True)
        workers = self._accelerator.num_processes
        ours = {**asdict(self.settings), "workers": workers}
        theirs = {**saved["settings"], "workers": saved["workers"]}
        free = ("evaluate_every", "save_every")
        changed = [k for k in ours if k not in free and ours[k] != theirs.get(k)]
        if changed or set(saved["students"]) != set(self._students):
            told = ", ".join(f"{k} was {theirs.get(k)}, is {ours[k]}" for k in changed)
            raise InputError(
                f"{self.state_file} was begun with other settings ({told or 'other students'}); "
                "resume with the same ones, or train into a new folder"
            )
        for name in self._students:
            self.student(name).load_state_dict(saved["students"][name])
            self._optimizers[name].load_state_dict(saved["optimizers"][name])
        self.step = int(saved["step"])

    def _train_step(self) -> dict[str, float]:
        settings, accelerator = self.settings, self._accelerator
        pool, chosen = self._course.step(self.step)
        rank, workers = accelerator.process_index, accelerator.num_processes
        mine = chosen[rank::workers] or chosen[:1]
        answers = self._pool(pool)
        samples = self._study([self._questions[i] for i in mine], [answers[i] for i in mine])
        shown: dict[str, float] = {}
        for name, student in self._students.items():
            optimizer = self._optimizers[name]
            for group in optimizer.param_groups:
                group["lr"] = settings.rate * settings.factor(self.step)
            self._draw_gates(student)
            loss, figures = student(samples)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(student.parameters(), settings.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise InputError(
                    f"the loss of '{name}' is {value} at step {self.step}; lower --rate, or check "
                    "the target for NaN"
                )
            prefix = "" if len(self._students) == 1 else f"{name} "
            shown |= {
                f"{prefix}{k}": float(v.detach()) for k, v in {"loss": loss, **figures}.items()
            }
        return shown

    def _draw_gates(self, student: Any) -> None:
        """Gumbel noise of this step for elastic compressors; colder as training goes on."""
        for module in student.modules():
            if isinstance(module, Elastic) and module.mode == "select":
                generator = torch.Generator().manual_seed(
                    self.settings.seed * 1_000_003 + self.step
                )
                module.draw(generator, 1.0 - 0.5 * self.step / max(1, self.settings.steps))

    def _pool(self, pool: int) -> dict[int, list[int]]:
        """Answers of a pool's questions, given by the target when they are first needed."""
        if pool not in self._answers:
            members = self._course.members(pool)
            rank, workers = self._accelerator.process_index, self._accelerator.num_processes
            mine = members[rank::workers]
            said = self._answer([self._questions[i] for i in mine], seed=pool)
            known = list(zip(mine, said, strict=True))
            if workers > 1:
                from accelerate.utils import gather_object

                known = gather_object(known)
            self._answers[pool] = dict(known)
        return self._answers[pool]

    def _answer(self, questions: Sequence[Question], seed: int = 0) -> list[list[int]]:
        said: list[list[int]] = []
        settings = self.settings
        for start in range(0, len(questions), settings.pool):
            said += self._teacher.answer(
                questions[start : start + settings.pool],
                settings.answer_tokens,
                settings.answer_temperature,
                settings.seed * 7919 + seed,
            )
        return said

    def _study(
        self, questions: Sequence[Question], answers: Sequence[Sequence[int]]
    ) -> list[Sample]:
        """Samples of questions with at least two answer tokens (one leaves nothing to draft)."""
        pairs = [(q, a) for q, a in zip(questions, answers, strict=True) if len(a) > 1]
        samples: list[Sample] = []
        for start in range(0, len(pairs), self.settings.batch):
            asked, said = zip(*pairs[start : start + self.settings.batch], strict=True)
            samples += self._teacher.study(asked, said, self._feature_layers)
        return samples

    def _evaluate(self, samples: Sequence[Sample]) -> dict[str, Earned]:
        earned = {name: evaluate(self.student(name), samples) for name in self._students}
        if self._accelerator.is_main_process:
            self._folder.mkdir(parents=True, exist_ok=True)
            with (self._folder / "progress.jsonl").open("a", encoding="utf-8") as out:
                for name, result in earned.items():
                    row = {"step": self.step, "student": name, **asdict(result)}
                    out.write(json.dumps(row) + "\n")
        return earned
