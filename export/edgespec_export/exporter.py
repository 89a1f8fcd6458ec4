"""Checkpoints in, one bundle out: opens and checks everything first, then streams the graphs."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np

from edgespec import __version__
from edgespec.bundle import (
    Bundle,
    BundleWriter,
    GraphSpec,
    Manifest,
    ModelIdentity,
    check_destination,
    write_bundle,
)
from edgespec.flavour import Flavour
from edgespec_export.ahead import begun
from edgespec_export.assets import Assets, config_files, read_assets
from edgespec_export.builder import GraphBuilder, Stored
from edgespec_export.journal import Journal, asked_of, unfinished, unfinished_bytes
from edgespec_export.parity import check_parity, require_parity
from edgespec_export.plan import Plan, embedding_table
from edgespec_export.planner import plan_export
from edgespec_export.quantise.quality import measured
from edgespec_export.request import ExportRequest
from edgespec_export.tables import write_table

__all__ = ["ExportRequest", "export_bundle", "plan_export"]

DECODERS = {"target_packed": "target", "draft_chain": "draft"}
"""Graphs of a decoder beside its step graph, whose weights they share."""

Progress = Callable[[str, int], None]
"""Told (what is being written, bytes written since the last call)."""


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
        _write_sidecars(writer, request, plan, assets)
        manifest = _finish(writer, request, plan, assets, specs, identity())
        if request.quality is not None:
            manifest = measured(request, Bundle(writer.folder, manifest), export_bundle)
            writer.write(manifest)
        return manifest


def _write_sidecars(
    writer: BundleWriter, request: ExportRequest, plan: Plan, assets: Assets
) -> None:
    """Token tables, tokenizer, processors and chat template."""
    folder, stored = writer.folder, request.precisions.embedding
    if request.part == "whole":
        write_table(folder, "target", embedding_table(plan.target), stored)
    _write_json(writer, "tokenizer.json", assets.tokenizer)
    if assets.processor is not None:
        _write_json(writer, "preprocessor_config.json", assets.processor)
    if plan.draft:
        write_table(folder, "draft", plan.draft.table, stored)
        if plan.draft.proposer.ids is not None:
            np.save(folder / "draft.ids.npy", np.array(plan.draft.proposer.ids, dtype=np.int64))
        if plan.draft.processor:
            _write_json(writer, "draft_preprocessor_config.json", plan.draft.processor)
    for name, content in config_files(plan.target.checkpoint) if request.configs else ():
        (folder / name).write_bytes(content)
    (folder / "chat_template.jinja").write_text(assets.chat_template, encoding="utf-8")


def _finish(
    writer: BundleWriter,
    request: ExportRequest,
    plan: Plan,
    assets: Assets,
    specs: list[GraphSpec],
    target: ModelIdentity,
) -> Manifest:
    """Writes the manifest."""
    drafts = {"draft": plan.draft.identity} if plan.draft else {}
    return writer.finish(
        created_by=f"edgespec {__version__}",
        graphs=tuple(specs),
        models={"target": target, **drafts},
        text=assets.text,
        generation=assets.generation,
        compressor=plan.draft.visual if plan.draft else None,
        parity=_parity(plan, specs, writer, request),
        tools={name: version(name) for name in ("onnx", "numpy", "safetensors")},
    )


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
