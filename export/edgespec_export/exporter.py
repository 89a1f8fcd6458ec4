"""Checkpoints in, one bundle out: opens and checks everything first, then streams the graphs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from edgespec import __version__
from edgespec.bundle import (
    BundleWriter,
    GraphSpec,
    Manifest,
    ModelIdentity,
    check_destination,
    write_bundle,
)
from edgespec.errors import CheckpointError, ConfigError
from edgespec_export.assets import (
    check_image_size,
    check_same_tokenizer,
    check_vocabulary,
    read_assets,
    read_processor,
)
from edgespec_export.builder import GraphBuilder, Stored
from edgespec_export.checkpoint import Checkpoint, open_checkpoint
from edgespec_export.expected import Tensors, check_tensors
from edgespec_export.geometry import LlavaGeometry, TextGeometry, read_geometry
from edgespec_export.graphs.chain import build_chain
from edgespec_export.graphs.compressor import Compressor, build_pool, parse_compressor
from edgespec_export.graphs.decoder import TREE_ROWS, build_decoder
from edgespec_export.graphs.vision import build_projector, build_vision
from edgespec_export.lowerings import Lowering, get_lowering
from edgespec_export.parity import check_parity, require_parity
from edgespec_runtime.vision import ImageProcessor

CHAIN_STEPS = 12
"""Draft steps of the one-call chain graph; policies of another depth use what they need of it."""

DRAFT_TOP_K = 16
"""Candidates per node that a draft graph hands out; policies may use fewer."""

PRECISIONS = ("fp32",)


@dataclass(frozen=True)
class ExportRequest:
    """What `edgespec export` was asked for."""

    target: str
    out: Path
    draft: str | None = None
    compressor: str | None = None
    precision: str = "fp32"
    lowering: str = "ort"
    overwrite: bool = False
    parity: bool = False


@dataclass(frozen=True)
class Model:
    """One opened and checked checkpoint."""

    checkpoint: Checkpoint
    geometry: LlavaGeometry
    tensors: Tensors
    processor: ImageProcessor

    @cached_property
    def text_fingerprint(self) -> str:
        return self.checkpoint.fingerprint(self.tensors.text)

    @cached_property
    def vision_fingerprint(self) -> str:
        return self.checkpoint.fingerprint(self.tensors.vision)

    def shares_vision(self, other: Model) -> bool:
        """Whether the image features of one can serve the other."""

        def rule(model: Model) -> tuple[Any, ...]:
            geometry = model.geometry
            layers = (geometry.feature_layers, geometry.drop_class_token)
            return geometry.vision, layers, model.processor

        return rule(self) == rule(other) and self.vision_fingerprint == other.vision_fingerprint


@dataclass(frozen=True)
class PlannedGraph:
    """A graph ready to be written."""

    role: str
    builder: GraphBuilder
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """Everything that will be written, after every check has passed."""

    target: Model
    draft: Model | None
    graphs: tuple[PlannedGraph, ...]
    compressor: Compressor | None
    lowering: Lowering
    shared_vision: bool

    @property
    def weight_bytes(self) -> int:
        return sum(graph.builder.weight_bytes for graph in self.graphs)


Progress = Callable[[str, int], None]
"""Told (what is being written, bytes written since the last call)."""


def open_model(source: str) -> Model:
    """Opens a LLaVA checkpoint and checks its parts against each other; weights are checked for
    NaN when they are read."""
    checkpoint = open_checkpoint(source)
    geometry = read_geometry(checkpoint.config)
    tensors = check_tensors(checkpoint, geometry)
    check_vocabulary(checkpoint, geometry)
    return Model(checkpoint, geometry, tensors, check_image_size(checkpoint, geometry))


def plan_export(request: ExportRequest) -> Plan:
    """Opens, checks and composes; writes nothing. Raises InputError for what cannot be done."""
    if request.precision not in PRECISIONS:
        raise ConfigError(
            f"precision '{request.precision}' is not built; there are: {', '.join(PRECISIONS)}"
        )
    if request.compressor and not request.draft:
        raise ConfigError("--compressor shortens the draft's visual tokens; it needs --draft")
    lowering = get_lowering(request.lowering)
    compressor = parse_compressor(request.compressor) if request.compressor else None
    target = open_model(request.target)
    draft = open_model(request.draft) if request.draft else None
    graphs = list(_target_graphs(target, lowering))
    shared = False
    if draft:
        _check_pair(target, draft)
        shared = draft.shares_vision(target)
        graphs += _draft_graphs(draft, lowering, compressor, shared)
    return Plan(target, draft, tuple(graphs), compressor, lowering, shared)


def export_bundle(
    request: ExportRequest,
    progress: Progress = lambda what, written: None,
    announce: Callable[[Plan], None] = lambda plan: None,
) -> Manifest:
    """Writes the bundle of ``request``; atomic. Returns its manifest."""
    check_destination(request.out, overwrite=request.overwrite)
    if request.parity:
        require_parity()
    plan = plan_export(request)
    assets = read_assets(plan.target.checkpoint, plan.target.geometry)
    announce(plan)
    with write_bundle(request.out, overwrite=request.overwrite) as writer:
        specs = _write_graphs(writer, plan, request, progress)
        for role, model in (("target", plan.target), ("draft", plan.draft)):
            if model:
                _write_embedding(writer, model, role)
        _write_json(writer, "tokenizer.json", assets.tokenizer)
        _write_json(writer, "preprocessor_config.json", assets.processor)
        if plan.draft and not plan.shared_vision:
            processor = read_processor(plan.draft.checkpoint)
            _write_json(writer, "draft_preprocessor_config.json", processor)
        template = writer.folder / "chat_template.jinja"
        template.write_text(assets.chat_template, encoding="utf-8")
        return writer.finish(
            created_by=f"edgespec {__version__}",
            graphs=tuple(specs),
            models=_identities(plan),
            text=assets.text,
            generation=assets.generation,
            compressor=_describe(plan),
            parity=_parity(plan, specs, writer, request),
            tools={name: version(name) for name in ("onnx", "numpy", "safetensors")},
        )


def _target_graphs(target: Model, lowering: Lowering) -> Iterator[PlannedGraph]:
    checkpoint, geometry = target.checkpoint, target.geometry
    yield PlannedGraph("vision", build_vision(checkpoint, geometry, lowering))
    yield PlannedGraph("projector", build_projector(checkpoint, geometry, lowering, "projector"))
    builder = build_decoder(
        checkpoint, geometry.text, lowering, name="target", tied=target.tensors.tied
    )
    yield PlannedGraph("target", builder, _decoder_meta(geometry.text, lowering))


def _draft_graphs(
    draft: Model, lowering: Lowering, compressor: Compressor | None, shared: bool
) -> Iterator[PlannedGraph]:
    checkpoint, geometry = draft.checkpoint, draft.geometry
    if not shared:
        builder = build_vision(checkpoint, geometry, lowering, "draft_vision")
        yield PlannedGraph("draft_vision", builder)
    builder = build_projector(checkpoint, geometry, lowering, "draft_projector")
    yield PlannedGraph("draft_projector", builder)
    if compressor:
        grid = geometry.vision.grid
        if geometry.visual_tokens != grid * grid:
            raise ConfigError(
                f"pooling needs a square grid; the draft's images become {geometry.visual_tokens} "
                f"tokens, not {grid} x {grid}"
            )
        pool = build_pool(compressor, grid, geometry.text.hidden, lowering)
        yield PlannedGraph("compressor", pool)
    top_k = min(DRAFT_TOP_K, geometry.text.vocab)
    builder = build_decoder(
        checkpoint, geometry.text, lowering, name="draft", tied=draft.tensors.tied, top_k=top_k
    )
    meta = {**_decoder_meta(geometry.text, lowering), "variant": "vlm", "top_k": top_k}
    yield PlannedGraph("draft", builder, meta)
    if lowering.chains:
        chain = build_chain(
            checkpoint,
            geometry.text,
            lowering,
            name="draft_chain",
            tied=draft.tensors.tied,
            top_k=top_k,
            steps=CHAIN_STEPS,
        )
        yield PlannedGraph("draft_chain", chain, {**meta, "steps": CHAIN_STEPS})


def _decoder_meta(text: TextGeometry, lowering: Lowering) -> dict[str, Any]:
    if lowering.name == "ort" and text.head_dim % 16:
        raise ConfigError(
            f"lowering 'ort' needs a head size that is a multiple of 16, this model has "
            f"{text.head_dim}; use --lowering native"
        )
    return {
        "hidden": text.hidden,
        "layers": text.layers,
        "kv_heads": text.kv_heads,
        "head_dim": text.head_dim,
        "vocab": text.vocab,
        "max_positions": text.max_positions,
        "mask_span": lowering.mask_span,
        "tree_rows": TREE_ROWS,
        "row_invariant": "up to float32 rounding; ties closer than 1e-4 may fall either way",
    }


def _check_pair(target: Model, draft: Model) -> None:
    check_same_tokenizer(target.checkpoint, draft.checkpoint)
    for name, ours, theirs in (
        ("vocabulary size", target.geometry.text.vocab, draft.geometry.text.vocab),
        ("image token id", target.geometry.image_token_id, draft.geometry.image_token_id),
    ):
        if ours != theirs:
            raise CheckpointError(
                f"draft '{draft.checkpoint.source}' does not fit target "
                f"'{target.checkpoint.source}': {name} {theirs} against {ours}"
            )
    wanted = draft.checkpoint.config.get("edgespec_target_fingerprint")
    if wanted is not None and wanted != target.text_fingerprint:
        raise CheckpointError(
            f"draft '{draft.checkpoint.source}' was trained for another target "
            f"({str(wanted)[:12]}...) than '{target.checkpoint.source}'"
        )


def _write_graphs(
    writer: BundleWriter, plan: Plan, request: ExportRequest, progress: Progress
) -> list[GraphSpec]:
    """Streams every graph; the draft's chain graph points at the weights of its step graph."""
    specs = []
    draft: Stored = {}
    for graph in plan.graphs:
        stored = draft if graph.role in ("draft", "draft_chain") else {}
        tell = partial(progress, graph.role)
        graph.builder.save(writer.folder, graph.role, tell, stored)
        specs.append(
            GraphSpec(
                role=graph.role,
                file=f"{graph.role}.onnx",
                lowering=plan.lowering.name,
                precision=request.precision,
                inputs=tuple(graph.builder.inputs),
                outputs=tuple(graph.builder.outputs),
                meta=graph.meta,
            )
        )
    return specs


def _write_embedding(writer: BundleWriter, model: Model, role: str) -> None:
    """The token embedding as a .npy file, piece by piece."""
    name = "text.embed_tokens.weight"
    shape = model.checkpoint.entries[name].shape
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    with (writer.folder / f"{role}.embed.npy").open("wb") as out:
        np.lib.format.write_array_header_1_0(out, header)
        for piece in model.checkpoint.pieces(name):
            out.write(piece.data)


def _write_json(writer: BundleWriter, name: str, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, ensure_ascii=False)
    (writer.folder / name).write_text(text, encoding="utf-8")


def _identities(plan: Plan) -> dict[str, ModelIdentity]:
    models = {"target": plan.target, **({"draft": plan.draft} if plan.draft else {})}
    return {
        role: ModelIdentity(
            source=Path(model.checkpoint.source).name,
            architecture="LlavaForConditionalGeneration",
            fingerprint=model.text_fingerprint,
            vision_fingerprint=model.vision_fingerprint,
        )
        for role, model in models.items()
    }


def _describe(plan: Plan) -> dict[str, Any] | None:
    """What the runtime must know of the draft's visual tokens."""
    if plan.draft is None:
        return None
    tokens = plan.draft.geometry.visual_tokens
    kind, ratio = "none", 1
    if plan.compressor:
        side, grid = plan.compressor.side, plan.draft.geometry.vision.grid
        kind, ratio, tokens = plan.compressor.kind, plan.compressor.ratio, (-(-grid // side)) ** 2
    return {
        "kind": kind,
        "ratio": ratio,
        "draft_visual_tokens": tokens,
        "positions": "contiguous",
        "shared_vision": plan.shared_vision,
    }


def _parity(
    plan: Plan, specs: list[GraphSpec], writer: BundleWriter, request: ExportRequest
) -> dict[str, Any]:
    if not request.parity:
        return {spec.role: "not checked" for spec in specs}
    return check_parity(plan, specs, writer.folder)
