"""From a request to a plan: opens and checks everything, and composes the graphs to be written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from edgespec.errors import ConfigError
from edgespec.flavour import Flavour
from edgespec.precisions import Precisions
from edgespec_export.assets import read_assets
from edgespec_export.checkpoint import open_checkpoint
from edgespec_export.compression import parse_compression
from edgespec_export.heads.layouts import open_head
from edgespec_export.heads.recognise import is_head
from edgespec_export.lowerings import INTEGER, floats_of, get_lowering
from edgespec_export.plan import DraftPlan, Model, Plan, PlannedGraph, open_model, target_graphs
from edgespec_export.plan_head import plan_head
from edgespec_export.plan_vlm import plan_vlm
from edgespec_export.quantise.asking import calibration_rows
from edgespec_export.quantise.moments import LayerMoments
from edgespec_export.quantise.quality import check_quality
from edgespec_export.questions import Question, questions_of
from edgespec_export.request import ExportRequest
from edgespec_export.vocabulary import parse_vocabulary

CALIBRATION_QUESTIONS = 64
"""Where no number was given."""


def plan_export(request: ExportRequest) -> Plan:
    """Opens, checks and composes; writes nothing. Raises InputError for what cannot be done."""
    request.check()
    for flavour in request.flavours:  # before anything is opened
        for lowered in _lowerings(flavour, request.precisions)[: 3 if request.draft else 2]:
            get_lowering(lowered)
    check_quality(request)
    questions = _calibration(request)
    target = open_model(request.target)
    draft = _plan_draft(request, target) if request.draft else None
    moments = _moments(target, questions) if questions else None
    graphs = {
        flavour: tuple(_compose(request, target, draft, flavour, moments))
        for flavour in request.flavours
    }
    return Plan(target, draft, graphs)


def _lowerings(flavour: Flavour, parts: Precisions) -> tuple[Flavour, Flavour, Flavour]:
    """What target, tower and draft of a flavour are built in."""
    flavour.check()
    seeing = parts.vision or floats_of(flavour)
    drafting = replace(flavour, precision=parts.draft) if parts.draft else flavour.drafts
    return flavour, replace(flavour, precision=seeing), drafting


def _calibration(request: ExportRequest) -> list[Question]:
    """The questions to calibrate on, if any were asked for."""
    if request.calibration is None:
        return []
    if not any(f.precision == "int4" and f.lowering in INTEGER for f in request.flavours):
        raise ConfigError(
            "--calibration is about int4 weights of the lowerings "
            f"{' and '.join(INTEGER)}, and none was asked for; add --precision int4, or leave it "
            "out"
        )
    return questions_of(request.calibration, CALIBRATION_QUESTIONS)


def _moments(target: Model, questions: list[Question]) -> LayerMoments:
    text = target.geometry.text
    assets = read_assets(target.checkpoint, target.geometry)
    return LayerMoments(
        target.checkpoint, text, lambda: calibration_rows(target, assets, questions)
    )


def _compose(
    request: ExportRequest,
    target: Model,
    draft: DraftPlan | None,
    flavour: Flavour,
    moments: LayerMoments | None,
) -> Iterator[PlannedGraph]:
    """All graphs of one flavour: the target's, as far as they are wanted, then the draft's."""
    parts = request.precisions
    own, seeing, drafts = _lowerings(flavour, parts)
    drafting = tuple(draft.compose(get_lowering(drafts, parts))) if draft else ()
    features = draft.features if draft else ()
    rounded_by = moments if flavour.precision == "int4" else None
    lowering, tower = get_lowering(own, parts, rounded_by), get_lowering(seeing)
    for graph in target_graphs(target, lowering, tower, features, request.sessions):
        if request.part == "whole" or _drafts_with(graph.role, drafting, features):
            yield graph
    yield from drafting


def _drafts_with(role: str, drafting: Sequence[PlannedGraph], features: Sequence[int]) -> bool:
    """Whether the draft of these graphs needs the target's graph of that role."""
    if role == "vision":
        return bool(drafting) and all(graph.role != "draft_vision" for graph in drafting)
    return role == "projector" and bool(features)


def _plan_draft(request: ExportRequest, target: Model) -> DraftPlan:
    assert request.draft is not None
    compression = parse_compression(request.compressor) if request.compressor else None
    vocabulary = None
    if request.draft_vocab:
        eos = read_assets(target.checkpoint, target.geometry).generation["eos_token_ids"]
        vocabulary = parse_vocabulary(request.draft_vocab, target.geometry.text.vocab, eos)
    if request.draft_variant or is_head(open_checkpoint(request.draft, pickles=True)):
        if target.processor is None:
            raise ConfigError(
                f"draft '{request.draft}' is a feature-level one, which is built for LLaVA targets "
                f"alone; give text model '{request.target}' a small text model, or none and ask "
                "for 'ngram'"
            )
        head = open_head(request.draft, target, request.draft_variant)
        return plan_head(head, target, compression, vocabulary)
    return plan_vlm(open_model(request.draft), target, compression, vocabulary)
