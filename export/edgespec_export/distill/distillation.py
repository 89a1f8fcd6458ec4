"""One distillation from request to checkpoint: opens and checks everything, trains, writes.

In a folder it leaves ``state.pt`` (to resume from), ``progress.jsonl`` (evaluations) and, once it
is finished, ``head/`` or, for a draft VLM, ``draft/``: what ``edgespec export`` loads.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgespec.errors import ConfigError
from edgespec_export.compression import Compression
from edgespec_export.distill.methods import (
    DraftOptions,
    Method,
    compression_of,
    default_rate,
    find_method,
    head_geometry,
    losses_of,
    trained_parts,
)
from edgespec_export.distill.questions import (
    Question,
    digest_of,
    read_questions,
    split_questions,
)
from edgespec_export.distill.settings import Losses, Settings
from edgespec_export.distill.student import HeadStudent
from edgespec_export.distill.teacher import Teacher
from edgespec_export.distill.trainer import Trainer
from edgespec_export.distill.vlm import VlmStudent
from edgespec_export.distill.vlm_checkpoint import DTYPES, check_tower, stored_dtype, write_vlm
from edgespec_export.exporter import Model, check_pair, open_model
from edgespec_export.heads.geometry import HeadGeometry
from edgespec_export.heads.modules import Eagle3Head, build_head

OURS = ("state.pt", "state.partial", "progress.jsonl", "progress.partial",
        "head", "head.partial", "draft", "draft.partial")  # fmt: skip
"""What a distillation leaves in its folder, and all that --overwrite removes."""


@dataclass(frozen=True)
class DistillRequest:
    """What ``edgespec distill`` was asked for. ``settings`` and ``losses`` hold what was given of
    the fields of ``Settings`` and ``Losses``."""

    target: str
    method: str
    data: tuple[Path, ...]
    out: Path
    held_out: Path | None = None
    draft: DraftOptions = field(default_factory=DraftOptions)
    settings: Mapping[str, Any] = field(default_factory=dict)
    losses: Mapping[str, Any] = field(default_factory=dict)
    dtype: str | None = None
    target_dtype: str = "float32"
    resume: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class Distilled:
    """What came of it. ``history`` holds (step, accepted length) of every evaluation."""

    out: Path
    method: str
    steps: int
    accepted_length: float
    agreement: float
    history: list[tuple[int, float]]
    seconds: float


@dataclass(frozen=True)
class Plan:
    """Everything that was opened and checked before torch loads a model."""

    target: Model
    draft: Model | None
    geometry: HeadGeometry | None
    compression: Compression | None
    losses: Losses
    settings: Settings
    questions: list[Question]
    held_out: list[Question]

    @property
    def recipe(self) -> dict[str, Any]:
        """What the weights depend on beside the settings, for a resumed run to compare."""
        return {
            "data": digest_of(self.questions)[:16],
            "held-out data": digest_of(self.held_out)[:16],
            "target": self.target.text_fingerprint[:16],
            "draft": self.draft.text_fingerprint[:16] if self.draft else "",
            "geometry": repr(self.geometry or self.compression),
            **{f"{name} (loss)": value for name, value in asdict(self.losses).items()},
        }


def distill(request: DistillRequest) -> Distilled | None:
    """Trains a draft and writes it; None in processes other than the main one.

    Raises InputError before anything is trained or written where the request cannot be met, and
    KeyboardInterrupt with everything saved when it is interrupted.
    """
    begun = time.monotonic()
    plan = plan_distillation(request)
    accelerator = _accelerator()
    teacher = Teacher(plan.target.checkpoint.path, accelerator.device, DTYPES[request.target_dtype])
    teacher.check([*plan.questions, *plan.held_out])
    student = build_student(plan, teacher)
    dtype = request.dtype or "float16"
    if plan.draft:
        dtype = request.dtype or stored_dtype(plan.draft.checkpoint)
        check_tower(student.model, dtype)
    trainer = Trainer(
        teacher, {request.method: student}, plan.questions, plan.held_out, plan.settings,
        request.out, accelerator=accelerator, recipe=plan.recipe,
        feature_layers=plan.geometry.feature_layers if plan.geometry else (),
    )  # fmt: skip
    if accelerator.is_main_process and not request.resume:
        _clear(request.out)
    if request.resume and trainer.state_file.is_file():
        trainer.resume()
    earned = trainer.run()[request.method]
    if not accelerator.is_main_process:
        return None
    _write(plan, trainer.student(request.method), request.out, dtype)
    return Distilled(
        out=request.out / ("draft" if plan.draft else "head"),
        method=request.method,
        steps=trainer.step,
        accepted_length=earned.accepted_length,
        agreement=earned.agreement,
        history=trainer.progress.history(request.method),
        seconds=time.monotonic() - begun,
    )


def plan_distillation(request: DistillRequest) -> Plan:
    """Checks the request against its files; writes nothing. Raises InputError."""
    made = {name: value for name, value in asdict(request.draft).items() if value is not None}
    method = find_method(request.method, {**made, **request.losses})
    losses = losses_of(method, request.losses)
    check_folder(request)
    held_out = read_questions([request.held_out]) if request.held_out else []
    questions, held_out = split_questions(read_questions(request.data), held_out)
    target = open_model(request.target)
    options = request.draft
    if options.compressor is None:
        options = replace(options, compressor=method.compressor)
    draft, geometry, compression = None, None, None
    if options.draft is not None:
        draft = _open_draft(options.draft, target)
        compression = _free_compression(options, draft)
    else:
        geometry = head_geometry(request.method, options, target.geometry)
    for model in (target, draft):
        if model:  # reads every weight: NaN shall stop a run before it starts
            _ = model.text_fingerprint, model.vision_fingerprint
    settings = Settings(rate=default_rate((draft or target).geometry.text.hidden))
    return Plan(
        target, draft, geometry, compression, losses, replace(settings, **request.settings),
        questions, held_out,
    )  # fmt: skip


def check_folder(request: DistillRequest) -> None:
    """Raises ConfigError where a run would meet another one's files."""
    out = request.out
    if request.resume and request.overwrite:
        raise ConfigError("--resume goes on with what --out holds, --overwrite removes it: give one")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; give a directory")
    if out.is_dir() and any(out.iterdir()) and not (request.resume or request.overwrite):
        raise ConfigError(
            f"--out {out} is not empty; --resume goes on with the run in it, --overwrite begins anew"
        )


def build_student(plan: Plan, teacher: Teacher) -> Any:
    """The draft as it begins: a function of the plan and its seed."""
    torch.manual_seed(plan.settings.seed)
    if plan.draft:
        return VlmStudent(plan.draft.checkpoint.path, plan.compression, plan.losses)
    assert plan.geometry is not None
    head = build_head(plan.geometry, teacher.embedding, teacher.head)
    if isinstance(head, Eagle3Head):
        with torch.no_grad():  # its own output head begins as the target's
            head.lm_head.weight.copy_(teacher.head)
    return HeadStudent(head, plan.losses)
