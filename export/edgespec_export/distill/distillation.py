"""One distillation from request to checkpoint: opens and checks everything, trains, writes.

In a folder it leaves ``state.pt`` (to resume from), ``progress.jsonl`` (evaluations) and, once it
is finished, ``head/`` or, for a draft VLM, ``draft/``: what ``edgespec export`` loads.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from edgespec.errors import CheckpointError, ConfigError
from edgespec_export.assets import read_assets
from edgespec_export.compression import FREE, Compression
from edgespec_export.distill.methods import (
    DraftOptions,
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
from edgespec_export.heads.geometry import HeadGeometry
from edgespec_export.heads.layouts import OpenedHead, open_head
from edgespec_export.heads.modules import Eagle3Head, build_head
from edgespec_export.heads.save import load_head, write_head
from edgespec_export.plan import Model, open_model
from edgespec_export.plan_vlm import check_language
from edgespec_export.vocabulary import parse_vocabulary

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
    """The finished checkpoint."""
    method: str
    steps: int
    accepted_length: float
    agreement: float
    history: list[tuple[int, float]]
    seconds: float


@dataclass(frozen=True)
class Plan:
    """Everything that was opened and checked before torch loads a model."""

    method: str
    target: Model
    draft: Model | None
    geometry: HeadGeometry | None
    begin_from: OpenedHead | None
    compression: Compression | None
    vocabulary: tuple[int, ...]
    losses: Losses
    settings: Settings
    questions: list[Question]
    held_out: list[Question]

    @property
    def recipe(self) -> dict[str, Any]:
        """What the weights depend on beside the settings, for a resumed run to compare."""
        return {
            "method": self.method,
            "data": digest_of(self.questions)[:16],
            "held-out data": digest_of(self.held_out)[:16],
            "target": self.target.text_fingerprint[:16],
            "draft": self.draft.text_fingerprint[:16] if self.draft else "",
            "geometry": repr(self.geometry or self.compression),
            "first weights": self._first_weights(),
            "draft vocabulary": hashlib.sha256(repr(self.vocabulary).encode()).hexdigest()[:16],
            **{f"{name} (loss)": value for name, value in asdict(self.losses).items()},
        }

    def _first_weights(self) -> str:
        if self.begin_from is None:
            return "random"
        checkpoint = self.begin_from.checkpoint
        return checkpoint.fingerprint(checkpoint.entries)[:16]


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
    draft, geometry, compression, first = None, None, None, None
    vocabulary: tuple[int, ...] = ()
    if options.draft is not None:
        draft = _open_draft(options.draft, target)
        compression = _free_compression(options, draft)
    else:
        vocabulary = _vocabulary(options.draft_vocab, target)
        geometry = head_geometry(request.method, options, target.geometry)
        geometry = replace(geometry, draft_vocab=len(vocabulary))
        first = _first(options.begin_from, target, geometry)
    for model in (target, draft):
        if model:
            _check_finite(model)
    settings = Settings(rate=default_rate((draft or target).geometry.text.hidden))
    return Plan(
        request.method, target, draft, geometry, first, compression, vocabulary, losses,
        replace(settings, **request.settings), questions, held_out,
    )  # fmt: skip


def _check_finite(model: Model) -> None:
    """Reads every weight: NaN shall stop a run before it starts. Raises CheckpointError."""
    _ = model.text_fingerprint, model.vision_fingerprint
    model.checkpoint.fingerprint(model.checkpoint.names("projector"))


def check_folder(request: DistillRequest) -> None:
    """Raises ConfigError where a run would meet another one's files."""
    out = request.out
    if request.resume and request.overwrite:
        raise ConfigError(
            "--resume goes on with the run in --out, --overwrite removes it: give one"
        )
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; give a directory")
    if out.is_dir() and any(out.iterdir()) and not (request.resume or request.overwrite):
        raise ConfigError(
            f"--out {out} is not empty; --resume goes on with its run, --overwrite begins anew"
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


def _first(source: str | None, target: Model, geometry: HeadGeometry) -> OpenedHead | None:
    """The head to begin from, if it is of the sizes asked for. Raises CheckpointError."""
    if source is None:
        return None
    opened = open_head(source, target, geometry.variant)
    ours, theirs = asdict(geometry), asdict(opened.geometry)
    differing = [name for name in ours if ours[name] != theirs[name]]
    if differing:
        raise CheckpointError(
            f"--begin-from '{source}' is another draft than the one asked for; they differ in: "
            f"{', '.join(differing)} ({opened.description})"
        )
    return opened


def _open_draft(source: str, target: Model) -> Model:
    draft = open_model(source)
    check_language(target, draft)
    if draft.processor != target.processor:
        raise CheckpointError(
            f"draft '{source}' prepares pictures differently than target "
            f"'{target.checkpoint.source}' (size, crop or normalisation); they are prepared once "
            "for both here"
        )
    return draft


def _vocabulary(text: str | None, target: Model) -> tuple[int, ...]:
    """Target ids of a trimmed output head; empty: all."""
    if text is None:
        return ()
    eos = read_assets(target.checkpoint, target.geometry).generation["eos_token_ids"]
    return parse_vocabulary(text, target.geometry.text.vocab, eos)


def _free_compression(options: DraftOptions, draft: Model) -> Compression | None:
    """A draft VLM's checkpoint has no place for a compressor's weights."""
    compression = compression_of(options, draft.geometry)
    if compression and (trained := trained_parts(compression)):
        raise ConfigError(
            f"compressor '{compression}' has weights ({', '.join(trained)}), which a draft VLM's "
            f"checkpoint cannot carry; there are: {', '.join(FREE)}. Method 'specvlm' trains them"
        )
    return compression


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
