"""A graph of a bundle as TensorRT's parser wants it, weights left where they are on disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto

from edgespec.bundle import Bundle, GraphSpec
from edgespec.errors import BundleError


@dataclass(frozen=True)
class Source:
    """One graph, ready to be parsed."""

    spec: GraphSpec
    path: Path
    """Of the ONNX file: the parser looks for the weights beside it."""
    model: onnx.ModelProto
    files: tuple[str, ...]
    """The ONNX file and those of its weights, by their names in the bundle."""
    weight_bytes: int

    @property
    def serialized(self) -> bytes:
        return self.model.SerializeToString()


def read_source(bundle: Bundle, spec: GraphSpec, static: Mapping[str, int]) -> Source:
    """The graph with the axes of ``static`` as sizes. Raises BundleError where it is no ONNX."""
    path = bundle.file(spec.file)
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own types differ between its implementations
        raise BundleError(f"{path} is no ONNX graph: {error}") from None
    graph = model.graph
    _set_sizes((*graph.input, *graph.output), static)
    weights = sorted({_location(weight) for weight in graph.initializer} - {""})
    total = sum(_stored_bytes(weight) for weight in graph.initializer)
    return Source(spec, path, model, (spec.file, *weights), total)


def _set_sizes(values: Iterable[onnx.ValueInfoProto], static: Mapping[str, int]) -> None:
    for value in values:
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in static:
                axis.dim_value = static[axis.dim_param]


def _location(weight: TensorProto) -> str:
    if weight.data_location != TensorProto.EXTERNAL:
        return ""
    return next((e.value for e in weight.external_data if e.key == "location"), "")


def _stored_bytes(weight: TensorProto) -> int:
    if weight.data_location != TensorProto.EXTERNAL:
        return len(weight.raw_data)
    return int(next((e.value for e in weight.external_data if e.key == "length"), 0))
