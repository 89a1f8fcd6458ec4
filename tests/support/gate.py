"""The gate without a GPU: graphs run on the CPU, built ahead of time, checked against a table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgespec.bundle import Bundle, GraphSpec, TensorSpec
from edgespec.flavour import Flavour
from edgespec.nvidia import TensorRT
from edgespec_export.exporter import ExportRequest, export_bundle
from edgespec_export.family import export_request
from edgespec_export.tensorrt.graph import Source, read_source
from edgespec_export.tensorrt.network import Settings, build_plan
from edgespec_export.tensorrt.shapes import NEEDED, profiles_of, sizes_of, static_axes
from tests.support.hollow import draft_config, llava_config, write_hollow

HEADS = ("eaglevlm", "vispec", "specvlm")
CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""All that TensorRT-RTX 1.7 can be told to build for; the GPU of a Jetson is not among them."""


def flavours(*names: str) -> tuple[Flavour, ...]:
    return tuple(Flavour.parse(name) for name in names)


def family_bundle(draft: str, out: Path, *names: str) -> Path:
    """The built-in family with that draft."""
    request = export_request(draft, out)
    export_bundle(
        ExportRequest(
            target=request.target, out=out, draft=request.draft, compressor=request.compressor,
            draft_vocab=request.draft_vocab, flavours=flavours(*names),
        )
    )  # fmt: skip
    return out


def geometry_bundle(folder: Path, *names: str) -> Path:
    """LLaVA-1.5-7B's widths with one decoder layer, two of the tower, and no weights to speak of;
    a draft of llama-68m's widths."""
    target = write_hollow(folder / "target", llava_config())
    draft = write_hollow(folder / "draft", draft_config())
    out = folder / "geometry.bundle"
    export_bundle(
        ExportRequest(
            target=str(target), out=out, draft=str(draft), compressor="pool:4",
            flavours=flavours(*names),
        )
    )  # fmt: skip
    return out


@dataclass(frozen=True)
class Built:
    """What a build without a GPU gave."""

    size: int
    decomposed: bool


def source_of(bundle: Bundle, graph: GraphSpec) -> Source:
    """The graph as `edgespec build` parses it."""
    return read_source(bundle, graph, static_axes(graph, sizes_of(bundle.manifest)))


def build(tensorrt: TensorRT, bundle: Bundle, graph: GraphSpec, *capabilities: str) -> Built:
    """Builds one graph of one flavour, in this process. Raises EngineError naming the node."""
    profiles = profiles_of(graph, sizes_of(bundle.manifest, profiles=NEEDED))
    settings = Settings(compute_capabilities=capabilities)
    plan, decomposed = build_plan(tensorrt, source_of(bundle, graph), profiles, settings)
    return Built(len(memoryview(plan)), decomposed)


ROWS, CACHED, CAPACITY = 3, 5, 64


def run_on_cpu(bundle: Bundle, graph: GraphSpec) -> dict[str, Any]:
    """Three new rows behind five cached ones (a picture, for other graphs) in ONNX Runtime on the
    CPU, of random numbers. Raises what onnxruntime raises."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        str(bundle.path / graph.file), options, providers=["CPUExecutionProvider"]
    )
    rng = np.random.default_rng(0)
    feeds = {tensor.name: _value(graph, tensor, rng) for tensor in graph.inputs}
    names = [tensor.name for tensor in graph.outputs]
    wrapped = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(value, 16)
        if graph.precision == "bf16" and value.dtype == np.uint16
        else onnxruntime.OrtValue.ortvalue_from_numpy(value)
        for name, value in feeds.items()
    }
    results = session.run_with_ort_values(names, wrapped)
    kept = {n: r for n, r in zip(names, results, strict=True) if "bfloat16" not in r.data_type()}
    return {name: result.numpy() for name, result in kept.items()}


def _value(graph: GraphSpec, tensor: TensorSpec, rng: np.random.Generator) -> Any:
    behind = graph.meta.get("mask_span") == "behind"
    total = graph.meta.get("mask_span") == "total"
    columns = CAPACITY + ROWS if behind else CACHED + ROWS if total else CAPACITY
    sizes = {
        "B": 1, "S": ROWS, "R": ROWS, "C": CAPACITY, "T": columns, "W": 1,
        "N": 1, "P": 16,
    }  # fmt: skip
    shape = [sizes[axis] if isinstance(axis, str) else axis for axis in tensor.axes]
    if tensor.name == "tree_mask":
        mask = np.zeros(shape, dtype=np.bool_)
        mask[..., :CACHED] = True
        new = CAPACITY if behind else CACHED
        mask[..., new : new + ROWS] = np.tri(ROWS, dtype=np.bool_)
        return mask
    if tensor.name == "past_length":
        return np.array([CACHED], dtype=np.int64)
    if tensor.name in ("position_ids", "logit_index"):
        start = CACHED if tensor.name == "position_ids" else 0
        return np.arange(start, start + ROWS, dtype=np.int64).reshape(shape)
    if tensor.name == "noise":
        return np.zeros(shape, dtype=np.float32)
    if tensor.name == "inv_temperature":
        return np.ones(shape, dtype=np.float32)
    values = rng.standard_normal(shape, dtype=np.float32)
    if tensor.dtype == "bfloat16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(tensor.dtype)
