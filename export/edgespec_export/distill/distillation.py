"""One distillation from request to checkpoint: opens and checks everything, trains, writes.

In a folder it leaves ``state.pt`` (to resume from), ``progress.jsonl`` (evaluations) and, once it
is finished, ``head/`` or, for a draft VLM, ``draft/``: what ``edgespec export`` loads.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgespec.errors import ConfigError
from edgespec_export.distill.plan import DistillRequest, Plan, plan_distillation
from edgespec_export.distill.student import HeadStudent
from edgespec_export.distill.teacher import Teacher
from edgespec_export.distill.trainer import Trainer
from edgespec_export.distill.vlm import VlmStudent
from edgespec_export.distill.vlm_checkpoint import DTYPES, check_tower, stored_dtype, write_vlm
from edgespec_export.heads.modules import Eagle3Head, build_head
from edgespec_export.heads.save import load_head, write_head

OURS = ("state.pt", "state.partial", "progress.jsonl", "progress.partial",
        "head", "head.partial", "draft", "draft.partial")  # fmt: skip
"""What a distillation leaves in its folder, and all that --overwrite removes."""


@dataclass(frozen=True)
class Distilled:
    """What came of it. ``history`` holds (step, accepted length) of every evaluation."""

    out: Path
    """The finished checkpoint."""
    method: str
    steps: int
    accepted_length: float
    agreement: float
    history: list[tuple[int, float]]
    seconds: float


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
        request.out, accelerator=accelerator,
        recipe={**plan.recipe, "target dtype": request.target_dtype},
        feature_layers=plan.geometry.feature_layers if plan.geometry else (),
    )  # fmt: skip
    if accelerator.is_main_process and not request.resume:
        _clear(request.out)
    if request.resume and trainer.state_file.is_file():
        trainer.resume()
    earned = trainer.run()[request.method]
    if not accelerator.is_main_process:
        return None
    return Distilled(
        out=_write(plan, trainer.student(request.method), request.out, dtype),
        method=request.method,
        steps=trainer.step,
        accepted_length=earned.accepted_length,
        agreement=earned.agreement,
        history=trainer.progress.history(request.method),
        seconds=time.monotonic() - begun,
    )


def build_student(plan: Plan, teacher: Teacher) -> Any:
    """The draft as it begins: a function of the plan and its seed."""
    torch.manual_seed(plan.settings.seed)
    if plan.draft:
        return VlmStudent(plan.draft.checkpoint.path, plan.compression, plan.losses)
    assert plan.geometry is not None
    head = build_head(plan.geometry, teacher.embedding, teacher.head)
    if plan.begin_from is not None:
        begun = load_head(plan.begin_from, teacher.embedding, teacher.head)
        head.load_state_dict(begun.state_dict(), strict=True)
    elif isinstance(head, Eagle3Head):
        _begin_as_target(head, teacher, plan.vocabulary)
    return HeadStudent(head, plan.losses)


@torch.no_grad()
def _begin_as_target(head: Eagle3Head, teacher: Teacher, vocabulary: Sequence[int]) -> None:
    """The draft's own output head begins as the target's rows of its vocabulary."""
    rows = teacher.head
    if vocabulary:
        ids = torch.tensor(vocabulary)
        head.get_buffer("d2t").copy_(ids - torch.arange(len(ids)))
        rows = rows[ids]
    head.lm_head.weight.copy_(rows)


def _accelerator() -> Any:
    """Accelerate's view of the machine. Raises ConfigError for what is not resumable here."""
    from accelerate import Accelerator, DistributedDataParallelKwargs

    # A gate leaves the branches it did not take without gradients, a text-only batch the adaptor;
    # the buffers (the target's head, rotary tables) are constants.
    parallel = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
    accelerator = Accelerator(kwargs_handlers=[parallel])
    kind = str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type))
    if kind in ("DEEPSPEED", "FSDP", "MEGATRON_LM", "TP"):
        raise ConfigError(
            f"accelerate is set up for {kind}, which distill does not use: the draft is small; run "
            "`accelerate launch` with --multi_gpu"
        )
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise ConfigError(
            f"accelerate is set up for {accelerator.mixed_precision}, whose loss scale is not part "
            "of the saved state; use bf16 or no mixed precision"
        )
    return accelerator


def _clear(out: Path) -> None:
    for name in OURS:
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)


def _write(plan: Plan, student: Any, out: Path, dtype: str) -> Path:
    fingerprint = plan.target.text_fingerprint
    if plan.draft:
        folder, source = out / "draft", plan.draft.checkpoint.path
        return write_vlm(student.model, source, folder, fingerprint, dtype)
    return write_head(
        out / "head", student.head, target_fingerprint=fingerprint, dtype=dtype, overwrite=True
    )
