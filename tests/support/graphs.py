"""Looking into exported graphs: the types of their values, and bfloat16 ones made to run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, defs, shape_inference

from edgespec.bundle import Bundle, GraphSpec

TYPES: Mapping[int, str] = {
    TensorProto.FLOAT: "tensor(float)",
    TensorProto.FLOAT16: "tensor(float16)",
    TensorProto.BFLOAT16: "tensor(bfloat16)",
    TensorProto.INT64: "tensor(int64)",
    TensorProto.INT8: "tensor(int8)",
    TensorProto.INT4: "tensor(int4)",
    TensorProto.BOOL: "tensor(bool)",
}


def graph_of(bundle: Bundle, spec: GraphSpec) -> Any:
    """The graph without its weights, checked whole."""
    path = str(bundle.path / spec.file)
    onnx.checker.check_model(path, full_check=True)
    return onnx.load(path, load_external_data=False)


def value_types(model: Any) -> dict[str, str]:
    """The type of every value of a graph, as ONNX infers it."""
    graph = shape_inference.infer_shapes(model, strict_mode=True).graph
    values = [*graph.input, *graph.output, *graph.value_info]
    found = {value.name: TYPES[value.type.tensor_type.elem_type] for value in values}
    return found | {tensor.name: TYPES[tensor.data_type] for tensor in graph.initializer}


def misused(model: Any) -> Iterator[str]:
    """Nodes that are given a type their operator does not take, in this opset."""
    types, opset = value_types(model), model.opset_import[0].version
    for node in model.graph.node:
        schema = defs.get_schema(node.op_type, opset)
        assert not schema.deprecated, node.op_type
        allowed = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
        for index, name in enumerate(node.input):
            parameter = schema.inputs[min(index, len(schema.inputs) - 1)].type_str
            if name and types[name] not in allowed.get(parameter, {parameter}):
                yield f"{node.name} takes no {types[name]}"


def widened(bundle: Bundle, spec: GraphSpec, folder: Path) -> GraphSpec:
    """The same graph in ``folder`` with float32 in place of bfloat16, its weights as they were
    rounded: no CPU engine multiplies bfloat16."""
    model = onnx.load(str(bundle.path / spec.file))
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.BFLOAT16:
            bits = np.frombuffer(tensor.raw_data, np.uint16).astype(np.uint32) << 16
            tensor.raw_data, tensor.data_type = bits.tobytes(), TensorProto.FLOAT
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    onnx.save(model, folder / spec.file)

    def wide(tensors: Any) -> Any:
        return tuple(replace(t, dtype="float32") if t.dtype == "bfloat16" else t for t in tensors)

    return replace(spec, inputs=wide(spec.inputs), outputs=wide(spec.outputs))
