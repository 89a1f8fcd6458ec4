"""Which graph is taken by what, without a GPU: the table of docs/gate.md.

    python benchmarks/gate.py [--quick] [--out docs/gate.md]

Every graph for TensorRT of the built-in family, of its feature-level heads and of LLaVA-1.5-7B's
widths: run in ONNX Runtime on the CPU, built by TensorRT-RTX for every GPU it can be told to build
for (in a process of its own each), and held against the operator table of TensorRT 10.3.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "export"), str(ROOT / "runtime")]

from edgespec.bundle import Bundle, GraphSpec, read_bundle  # noqa: E402
from edgespec.errors import EngineError  # noqa: E402
from edgespec.nvidia import find_tensorrt  # noqa: E402
from edgespec_export.tensorrt.build import left_out  # noqa: E402
from edgespec_export.tensorrt.isolated import Job, run_job  # noqa: E402
from edgespec_export.tensorrt.network import Settings  # noqa: E402
from edgespec_export.tensorrt.operators import check_operators  # noqa: E402
from edgespec_export.tensorrt.shapes import (  # noqa: E402
    NEEDED,
    profiles_of,
    sizes_of,
    static_axes,
)
from tests.support.gate import (  # noqa: E402
    CAPABILITIES,
    HEADS,
    family_bundle,
    geometry_bundle,
    run_on_cpu,
    source_of,
)

LIBRARY = "tensorrt_rtx"
PRECISIONS = ("fp16", "bf16", "int8", "int4", "fp32")
HALF = ("native:fp16", "portable:fp16")
BUILDS = {"": "builds", "apart": "builds, attention apart"}
LARGE = ("vision", "target", "draft")
"""Graphs that other precisions are shown for."""
GEOMETRY = (*HALF, "native:int4", "portable:int4")


@dataclass(frozen=True)
class Row:
    """One graph in one flavour, and what became of it."""

    model: str
    graph: str
    flavour: str
    cpu: str
    built: str
    table: str
    megabytes: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="only fp16")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "gate.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for row in all_rows(Path(folder), arguments.quick):
            print(row, file=sys.stderr, flush=True)
            rows.append(row)
            arguments.out.write_text(page(rows), encoding="utf-8")


def all_rows(folder: Path, quick: bool) -> Iterator[Row]:
    every = tuple(f"{low}:{p}" for low in ("native", "portable") for p in PRECISIONS)
    family = family_bundle("draft", folder / "family", *(HALF if quick else every))
    yield from rows_of("built-in", read_bundle(family), folder)
    for head in HEADS:
        bundle = read_bundle(family_bundle(head, folder / head, *HALF))
        roles = ("draft", "draft_chain", "draft_projector", "compressor")
        yield from rows_of(f"built-in, {head}", bundle, folder, roles)
    geometry = geometry_bundle(folder / "geometry", *(HALF if quick else GEOMETRY))
    yield from rows_of("LLaVA-1.5-7B", read_bundle(geometry), folder)


def rows_of(model: str, bundle: Bundle, folder: Path, roles: tuple[str, ...] = ()) -> Iterator[Row]:
    for flavour in bundle.manifest.flavours:
        only = bundle.only(flavour)
        for graph in only.manifest.graphs:
            if roles and graph.role not in roles:
                continue
            if str(flavour) not in HALF and graph.role not in LARGE:
                continue
            built, size = build(only, graph, folder / "plan")
            yield Row(
                model, graph.role, str(flavour), on_cpu(only, graph), built,
                by_table(only, graph), size / 1e6,
            )  # fmt: skip


def on_cpu(bundle: Bundle, graph: GraphSpec) -> str:
    try:
        outputs = run_on_cpu(bundle, graph)
    except Exception as error:  # onnxruntime's own types
        return "refused: " + " ".join(str(error).split()).rpartition(" : ")[2][:80]
    finite = all(np.isfinite(value).all() for value in outputs.values())
    return "runs" if finite else "runs, not finite"


def build(bundle: Bundle, graph: GraphSpec, out: Path) -> tuple[str, int]:
    """For all GPUs in one engine; one by one where that fails."""
    reason = left_out(graph)
    if reason:
        return f"not given: {reason}", 0
    message = attempt(bundle, graph, CAPABILITIES, out)
    if message in BUILDS:
        return BUILDS[message], out.stat().st_size
    newer = attempt(bundle, graph, CAPABILITIES[1:], out)  # 7.5 has no bfloat16, for instance
    if newer in BUILDS:
        print(message, file=sys.stderr)
        return f"{BUILDS[newer]}, not for {CAPABILITIES[0]}", out.stat().st_size
    fine = [c for c in CAPABILITIES if attempt(bundle, graph, (c,), out) in BUILDS]
    return f"builds for {', '.join(fine)}; else: {message}" if fine else f"fails: {message}", 0


def attempt(bundle: Bundle, graph: GraphSpec, capabilities: tuple[str, ...], out: Path) -> str:
    sizes = sizes_of(bundle.manifest, profiles=NEEDED)
    job = Job(
        bundle=bundle.path,
        flavour=graph.flavour,
        role=graph.role,
        static=static_axes(graph, sizes),
        profiles=profiles_of(graph, sizes),
        library=LIBRARY,
        settings=Settings(compute_capabilities=capabilities),
        out=out,
    )
    try:
        return "apart" if run_job(job) else ""
    except EngineError as error:
        return str(error)[:160]


def by_table(bundle: Bundle, graph: GraphSpec) -> str:
    model = source_of(bundle, graph).model
    problems = check_operators(model)
    if not problems:
        return "passes"
    opset = f"opset {model.opset_import[0].version}"
    needed = {opset if p.operator == "opset" else p.operator for p in problems}
    return f"needs {', '.join(sorted(needed))}"


def page(rows: list[Row]) -> str:
    """docs/gate.md."""
    tensorrt = find_tensorrt(LIBRARY)
    lines = [
        "# The gate without a GPU", "",
        "Written by `python benchmarks/gate.py`; what it means is in [tensorrt.md](tensorrt.md).",
        "**Nothing in this table ran on a GPU.** Columns:", "",
        "- *CPU*: three rows behind five cached ones (a picture, for other graphs) in "
        f"ONNX Runtime {version('onnxruntime')} on the CPU, all outputs finite.",
        f"- *TensorRT-RTX*: built ahead of time by TensorRT-RTX {tensorrt.version}, strongly "
        "typed, with the profiles prefill and tree of `edgespec build`, as one engine for the "
        f"compute capabilities {', '.join(CAPABILITIES)} together. Those of Jetsons (8.7, 11.0) "
        "are not among what it can be told to build for. *Attention apart*: no fused kernel "
        "takes it.",
        "- *10.3*: operators, types and limits of TensorRT 10.3's parser, by its table.",
        "- *MB*: the engine. LLaVA-1.5-7B is one decoder layer of its widths, two of its tower, "
        "and a draft of llama-68m's widths, all zeros.", "",
        "| model | graph | flavour | CPU | TensorRT-RTX | 10.3 | MB |",
        "|---|---|---|---|---|---|---:|",
    ]  # fmt: skip
    for row in rows:
        size = f"{row.megabytes:.1f}" if row.megabytes else ""
        lines.append(
            f"| {row.model} | {row.graph} | {row.flavour} | {row.cpu} | {row.built} | {row.table} "
            f"| {size} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
