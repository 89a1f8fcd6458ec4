"""What a distillation will train on what, decided and checked before torch loads a model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from edgespec.errors import CheckpointError, ConfigError
from edgespec_export.assets import read_assets
from edgespec_export.compression import FREE, Compression
from edgespec_export.distill.course import digest_of, split_questions
from edgespec_export.distill.methods import (
    DraftOptions,
    compression_of,
    default_rate,
    find_method,
    head_geometry,
    losses_of,
    trained_parts,
)
from edgespec_export.distill.settings import Losses, Settings
from edgespec_export.heads.geometry import HeadGeometry
from edgespec_export.heads.layouts import OpenedHead, open_head
from edgespec_export.plan import Model, open_model
from edgespec_export.plan_vlm import check_language
from edgespec_export.questions import Question, read_questions
from edgespec_export.vocabulary import parse_vocabulary


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


def plan_distillation(request: DistillRequest) -> Plan:
    """Checks the request against its files; writes nothing. Raises InputError."""
    made = {name: value for name, value in asdict(request.draft).items() if value is not None}
    method = find_method(request.method, {**made, **request.losses})
    losses = losses_of(method, request.losses)
    check_folder(request)
    held_out = read_questions([request.held_out]) if request.held_out else []
    questions, held_out = split_questions(read_questions(request.data), held_out)
    target = open_model(request.target)
    if target.processor is None:
        raise ConfigError(
            f"target '{request.target}' is a text model; drafts are trained for LLaVA targets, "
            "so give one, or a small text model of the same vocabulary to `edgespec export --draft`"
        )
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
