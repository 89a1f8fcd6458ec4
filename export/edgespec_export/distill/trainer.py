"""The loop of ``edgespec distill``: answers, one pass of the target, one step of every student.

What a step does is a function of (seed, step) and of the saved state: a training that was killed
and resumed ends with the weights of one that was not. Hugging Face Accelerate places it on one CPU,
one GPU or many; a step's questions are divided among the processes.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from edgespec.errors import InputError
from edgespec_export.distill.answers import Answers, Asked
from edgespec_export.distill.evaluate import Earned
from edgespec_export.distill.held_out import HeldOut
from edgespec_export.distill.interruption import Interruption
from edgespec_export.distill.progress import Progress
from edgespec_export.distill.settings import Settings
from edgespec_export.distill.teacher import Sample, Teacher
from edgespec_export.heads.compressors import Elastic
from edgespec_export.questions import Question

FREE = ("evaluate_every", "save_every")
"""Settings that may differ when a run is resumed."""


class Trainer:
    """Trains several students on the same samples; one is what the command asks for.

    ``recipe`` names whatever else the weights depend on (method, data, target); a run is resumed
    with the same one only. Without ``held_out`` questions nothing is evaluated.
    """

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
        recipe: Mapping[str, Any] | None = None,
    ) -> None:
        self.settings = settings
        self.step = 0
        self.progress = Progress(folder / "progress.jsonl")
        self._teacher = teacher
        self._held_out = HeldOut(held_out, settings.batch, accelerator)
        self._folder = folder
        self._accelerator = accelerator
        self._feature_layers = feature_layers
        self._recipe = dict(recipe or {})
        self._answers = Answers(teacher, questions, settings, accelerator)
        self._loss: dict[str, float] = {}
        self._students: dict[str, Any] = {}
        self._optimizers: dict[str, Any] = {}
        for name, student in students.items():
            trained = [p for p in student.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(
                trained, lr=settings.rate, betas=(0.9, 0.95), weight_decay=0.0
            )
            with warnings.catch_warnings():
                # torch >= 2.13 wants a name that earlier ones do not know
                warnings.filterwarnings("ignore", ".*broadcast_buffers", FutureWarning)
                prepared = accelerator.prepare(student, optimizer)
            self._students[name], self._optimizers[name] = prepared

    @property
    def state_file(self) -> Path:
        return self._folder / "state.pt"

    def run(self, until: int | None = None) -> dict[str, Earned]:
        """Trains to the end (or ``until``) and returns the last evaluation of every student.

        At Ctrl-C it finishes its step, saves, and raises KeyboardInterrupt.
        """
        settings = self.settings
        last = min(settings.steps, until or settings.steps)
        earned: dict[str, Earned] = {}
        main = self._accelerator.is_main_process
        with Interruption(quiet=not main) as interruption, self._bar() as bar:
            examined = self._held_out.answered(self._answers)
            if self.step == 0:
                if main:
                    self.progress.keep(-1)
                earned = self._evaluate(examined)
            while self.step < last:
                figures = self._train_step()
                self.step += 1
                bar.update()
                bar.set_postfix({k: f"{v:.3f}" for k, v in figures.items()}, refresh=False)
                stop = self._told_to_stop(interruption)
                if self.step % settings.evaluate_every == 0 or self.step == last:
                    earned = self._evaluate(examined)
                    text = ", ".join(f"{n} {e.accepted_length:.2f}" for n, e in earned.items())
                    if main:
                        bar.write(f"step {self.step}: accepted length {text}", file=sys.stderr)
                if self.step % settings.save_every == 0 or self.step == last or stop:
                    self.save()
                if stop and self.step < last:
                    if main:
                        bar.write(f"saved at step {self.step}; --resume goes on", file=sys.stderr)
                    raise KeyboardInterrupt
            return earned or self._evaluate(examined)

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
                "recipe": self._recipe,
                "students": {name: self.student(name).state_dict() for name in self._students},
                "optimizers": {n: o.state_dict() for n, o in self._optimizers.items()},
            }
            torch.save(content, partial)
            partial.replace(self.state_file)
        self._accelerator.wait_for_everyone()

    def resume(self) -> None:
        """Goes on where ``save`` left off. Raises InputError where the settings have changed."""
        try:
            saved = torch.load(self.state_file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch and pickle raise many unrelated types
            raise InputError(f"{self.state_file} cannot be read: {error}") from None
        workers = self._accelerator.num_processes
        ours = {**asdict(self.settings), **self._recipe, "workers": workers}
        theirs = {**saved["settings"], **saved.get("recipe", {}), "workers": saved["workers"]}
        changed = [k for k in ours if k not in FREE and k in theirs and ours[k] != theirs[k]]
        if changed or set(saved["students"]) != set(self._students):
            told = ", ".join(f"{k} was {theirs[k]}, is {ours[k]}" for k in changed)
            raise InputError(
                f"{self.state_file} was begun with other settings ({told or 'other students'}); "
                "resume with the same ones, or train into a new folder"
            )
        for name in self._students:
            self.student(name).load_state_dict(saved["students"][name])
            self._optimizers[name].load_state_dict(saved["optimizers"][name])
        self.step = int(saved["step"])
        if self._accelerator.is_main_process:
            self.progress.keep(self.step)

    def _bar(self) -> Any:
        main = self._accelerator.is_main_process
        return tqdm(
            total=self.settings.steps, initial=self.step, desc="distill", file=sys.stderr,
            mininterval=2, disable=None if main else True,
        )  # fmt: skip

    def _train_step(self) -> dict[str, float]:
        settings, accelerator = self.settings, self._accelerator
        asked = self._answers.step(self.step)
        if not asked:  # none of them has a token to draft, in any process
            return {}
        rank, workers = accelerator.process_index, accelerator.num_processes
        mine = asked[rank::workers]
        # Processes average their gradients: weighted so that every row counts the same, and a
        # process without a question of its own not at all.
        share = _rows(mine) * workers / _rows(asked)
        samples = self._study(mine or asked[:1])
        torch.manual_seed(settings.seed * 1_000_003 + self.step)  # a draft may have dropout
        shown: dict[str, float] = {}
        for name, student in self._students.items():
            optimizer = self._optimizers[name]
            for group in optimizer.param_groups:
                group["lr"] = settings.rate * settings.factor(self.step)
            self._draw_gates(student)
            loss, figures = student(samples)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise InputError(
                    f"the loss of '{name}' is {value} at step {self.step}; lower --rate, or check "
                    "the target for overflow"
                )
            accelerator.backward(loss * share)
            accelerator.clip_grad_norm_(student.parameters(), settings.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            self._loss[name] = value
            prefix = "" if len(self._students) == 1 else f"{name} "
            shown[f"{prefix}loss"] = value
            shown |= {f"{prefix}{k}": float(v.detach()) for k, v in figures.items()}
        return shown

    def _draw_gates(self, student: Any) -> None:
        """Gumbel noise of this step for elastic compressors; colder as training goes on."""
        for module in student.modules():
            if isinstance(module, Elastic) and module.mode == "select":
                generator = torch.Generator().manual_seed(
                    self.settings.seed * 1_000_003 + self.step
                )
                module.draw(generator, 1.0 - 0.5 * self.step / max(1, self.settings.steps))

    def _told_to_stop(self, interruption: Interruption) -> bool:
        """Whether a signal has reached any of the processes: all stop after the same step."""
        if interruption.asked:
            self._accelerator.set_trigger()
        return bool(self._accelerator.check_trigger())

    def _study(self, asked: Asked) -> list[Sample]:
        questions, answers = zip(*asked, strict=True)
        return self._teacher.study(questions, answers, self._feature_layers)

    def _evaluate(self, examined: Asked) -> dict[str, Earned]:
        students = {name: self.student(name) for name in self._students}
        earned = self._held_out.earned(students, examined, self._study)
        if self._held_out.questions and self._accelerator.is_main_process:
            for name, result in earned.items():
                self.progress.add(self.step, name, result, self._loss.get(name))
        return earned


def _rows(asked: Asked) -> int:
    """Tokens to draft."""
    return sum(len(answer) - 1 for _, answer in asked)
