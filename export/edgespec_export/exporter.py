"""Checkpoints in, one bundle out: opens and checks everything first, then streams the graphs."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from edgespec import __version__
from edgespec.bundle import (
    Bundle,
    BundleWriter,
    GraphSpec,
    Manifest,
    check_destination,
    write_bundle,
)
from edgespec.errors import ConfigError
from edgespec.flavour import Flavour
from edgespec.precisions import Precisions
from edgespec_export.ahead import begun
from edgespec_export.assets import config_files, read_assets
from edgespec_export.builder import GraphBuilder, Stored
from edgespec_export.checkpoint import open_checkpoint
from edgespec_export.compression import parse_compression
from edgespec_export.heads.layouts import open_head
from edgespec_export.heads.recognise import is_head
from edgespec_export.journal import Journal, asked_of, unfinished, unfinished_bytes
from edgespec_export.lowerings import INTEGER, floats_of, get_lowering
from edgespec_export.parity import check_parity, require_parity
from edgespec_export.plan import (
    DraftPlan,
    Model,
    Plan,
    PlannedGraph,
    embedding_table,
    open_model,
    target_graphs,
)
from edgespec_export.plan_head import plan_head
from edgespec_export.plan_vlm import plan_vlm
from edgespec_export.quantise.asking import calibration_rows
from edgespec_export.quantise.moments import LayerMoments
from edgespec_export.quantise.quality import check_quality, measured
from edgespec_export.questions import Question, questions_of
from edgespec_export.tables import write_table
from edgespec_export.vocabulary import parse_vocabulary

DECODERS = {"target_packed": "target", "draft_chain": "draft"}
"""Graphs of a decoder beside its step graph, whose weights they share."""
CALIBRATION_QUESTIONS = 64
"""Where no number was given."""
PARTS = ("whole", "device")
"""What a bundle holds: everything, or what a device needs whose target is a server's."""


@dataclass(frozen=True)
class ExportRequest:
    """What `edgespec export` was asked for."""

    target: str
    out: Path
    draft: str | None = None
    compressor: str | None = None
    flavours: tuple[Flavour, ...] = (Flavour("ort"),)
    overwrite: bool = False
    parity: bool = False
    draft_variant: str | None = None
    """Which rule a feature-level draft follows, where its keys do not tell ("msd")."""
    sessions: int = 0
    """Sessions that a server may verify in one call; 0: no graph for that."""
    draft_vocab: str | None = None
    """``FILE[:N]``: a frequency list, of which the draft proposes the N most frequent tokens."""
    part: str = "whole"
    configs: bool = False
    """Whether the target's configuration files are copied as well, as transformers reads them."""
    precisions: Precisions = Precisions()
    """Of drafts, towers, heads and token tables; the target's layers are the flavours'."""
    calibration: str | None = None
    """``FILE[:N]`` (``questions_of``): what int4 weights of the target are rounded by (GPTQ)."""
    quality: str | None = None
    """``FILE[:N]``: questions that quantised targets are compared with float32 on."""
    resume: bool = False
    """Whether to go on with what a killed export of the same left, and to leave as much."""


Progress = Callable[[str, int], None]
"""Told (what is being written, bytes written since the last call)."""


def plan_export(request: ExportRequest) -> Plan:
    """Opens, checks and composes; writes nothing. Raises InputError for what cannot be done."""
    if request.part not in PARTS:
        raise ConfigError(f"part '{request.part}' is unknown; there are: {', '.join(PARTS)}")
    if request.parity and request.part != "whole":
        raise ConfigError("--parity compares a whole bundle; export one, or leave --parity out")
    if request.parity and replace(request.precisions, target="fp32", block="") != Precisions():
        raise ConfigError(
            "--parity holds all graphs of a flavour to one tolerance; leave out draft, vision, "
            "head and embedding of --precision, or --parity"
        )
    for flag, given in (
        ("compressor", request.compressor),
        ("draft-variant", request.draft_variant),
        ("draft-vocab", request.draft_vocab),
    ):
        if given and not request.draft:
            raise ConfigError(f"--{flag} is about the draft; it needs --draft")
    if request.sessions < 0 or request.sessions == 1:
        raise ConfigError(
            f"--sessions is {request.sessions}; it must be at least 2, or 0 for no such graph"
        )
    if not request.flavours:
        raise ConfigError("no flavour was asked for; give at least one --lowering")
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


def export_bundle(
    request: ExportRequest,
    progress: Progress = lambda what, written: None,
    announce: Callable[[Plan], None] = lambda plan: None,
    tell: Callable[[str], None] = lambda text: None,
) -> Manifest:
    """Writes the bundle of ``request``; atomic. Returns its manifest. ``tell`` gets sentences about
    what killed exports left."""
    lost = 0 if request.resume else unfinished_bytes(request.out)
    check_destination(request.out, overwrite=request.overwrite, keep=request.resume)
    if lost:
        tell(
            f"removed {lost / 1e6:.1f} MB of weights that a killed export to '{request.out}' had "
            "finished; --resume goes on with them instead"
        )
    if request.parity:
        require_parity()
    plan = plan_export(request)
    assets = read_assets(plan.target.checkpoint, plan.target.geometry)
    asked = asked_of(request, plan)
    begun_before = unfinished(request.out, asked) if request.resume else None
    if request.resume:
        tell(f"going on in {begun_before}" if begun_before else "nothing to resume; beginning anew")
    announce(plan)
    identity = begun(lambda: plan.target.identity)
    with write_bundle(
        request.out, overwrite=request.overwrite, keep=request.resume, partial=begun_before
    ) as writer:
        journal = Journal(writer.folder, asked)
        specs = _write_graphs(writer, plan, progress, journal)
        stored = request.precisions.embedding
        if request.part == "whole":
            write_table(writer.folder, "target", embedding_table(plan.target), stored)
        _write_json(writer, "tokenizer.json", assets.tokenizer)
        if assets.processor is not None:
            _write_json(writer, "preprocessor_config.json", assets.processor)
        if plan.draft:
            write_table(writer.folder, "draft", plan.draft.table, stored)
            if plan.draft.proposer.ids is not None:
                ids = np.array(plan.draft.proposer.ids, dtype=np.int64)
                np.save(writer.folder / "draft.ids.npy", ids)
            if plan.draft.processor:
                _write_json(writer, "draft_preprocessor_config.json", plan.draft.processor)
        for name, content in config_files(plan.target.checkpoint) if request.configs else ():
            (writer.folder / name).write_bytes(content)
        template = writer.folder / "chat_template.jinja"
        template.write_text(assets.chat_template, encoding="utf-8")
        drafts = {"draft": plan.draft.identity} if plan.draft else {}
        manifest = writer.finish(
            created_by=f"edgespec {__version__}",
            graphs=tuple(specs),
            models={"target": identity(), **drafts},
            text=assets.text,
            generation=assets.generation,
            compressor=plan.draft.visual if plan.draft else None,
            parity=_parity(plan, specs, writer, request),
            tools={name: version(name) for name in ("onnx", "numpy", "safetensors")},
        )
        if request.quality is not None:
            manifest = measured(request, Bundle(writer.folder, manifest), export_bundle)
            writer.write(manifest)
        return manifest


def _write_graphs(
    writer: BundleWriter, plan: Plan, progress: Progress, journal: Journal
) -> list[GraphSpec]:
    """Streams every graph; what is stored already for another graph of the same decoder, or for
    another flavour, is pointed at."""
    specs = []
    stored: defaultdict[str, Stored] = defaultdict(dict)
    held: defaultdict[tuple[Flavour, str], set[tuple[str, str]]] = defaultdict(set)
    first = next(iter(plan.graphs))
    for flavour, graphs in plan.graphs.items():
        for graph in graphs:
            stem = graph.role if flavour == first else f"{graph.role}.{flavour.label}"
            model = DECODERS.get(graph.role, graph.role)
            told = partial(progress, stem)
            graph.builder.save(writer.folder, stem, told, stored[model], journal)
            specs.append(
                GraphSpec(
                    role=graph.role,
                    file=f"{stem}.onnx",
                    lowering=flavour.lowering,
                    precision=flavour.precision,
                    inputs=tuple(graph.builder.inputs),
                    outputs=tuple(graph.builder.outputs),
                    meta={**graph.meta, **_facts(graph.builder, held[flavour, model])},
                )
            )
    return specs


def _facts(builder: GraphBuilder, held: set[tuple[str, str]]) -> dict[str, int]:
    """Bytes of all weights that a graph reads, in whichever file they lie; of those among them that
    no earlier graph of its flavour reads (they are ``held`` then); and how many numbers a row is
    multiplied with, in all steps of a chain."""
    weights = builder.weights
    own = sum(size for key, size in weights.items() if key not in held)
    held.update(weights)
    whole = sum(weights.values())
    return {"weight_bytes": whole, "own_bytes": own, "multiplied": builder.multiplied}


def _write_json(writer: BundleWriter, name: str, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, ensure_ascii=False)
    (writer.folder / name).write_text(text, encoding="utf-8")


def _parity(
    plan: Plan, specs: list[GraphSpec], writer: BundleWriter, request: ExportRequest
) -> dict[str, Any]:
    if not request.parity:
        return {spec.stem: "not checked" for spec in specs}
    return check_parity(plan, specs, writer.folder)
