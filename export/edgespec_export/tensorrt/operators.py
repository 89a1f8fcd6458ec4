"""What TensorRT 10.3's ONNX parser takes, for checking a graph where no TensorRT 10.3 is.

Operators, types and limits are those of docs/operators.md of the parser's release 10.1, the last of
the 10.x line whose text is at hand before 10.3 (opsets 9 to 20; what 10.2 and 10.3 changed was not
seen), and, for quantised weights, of its importer's source. The check is a proxy: it finds what the
table refuses; that a graph passes does not prove that it builds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgespec_export.builder import BLOCKS_OPSET, Array

OPSETS = (9, 20)
TOPK_LIMIT = 3840

FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16})
HALVES = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16})
INTEGERS = frozenset({TensorProto.INT32, TensorProto.INT64})
BOOL = frozenset({TensorProto.BOOL})
NUMBERS = FLOATS | INTEGERS
ANY = NUMBERS | BOOL
QUANTISED = frozenset({TensorProto.INT8, TensorProto.INT4, TensorProto.FLOAT8E4M3FN})

_BY_TYPES: tuple[tuple[frozenset[int], str], ...] = (
    (
        FLOATS,
        "Acos Acosh Asin Asinh Atan Atanh AveragePool BatchNormalization Ceil Celu Clip Conv "
        "ConvTranspose Cos Cosh CumSum Dropout Einsum Elu Erf Exp Floor GRU Gemm "
        "GlobalAveragePool GlobalLpPool GlobalMaxPool GroupNormalization HardSigmoid HardSwish "
        "Hardmax InstanceNormalization IsInf LRN LSTM LayerNormalization LeakyRelu Log LogSoftmax "
        "LpNormalization LpPool MatMul MaxPool MeanVarianceNormalization PRelu Pow QuantizeLinear "
        "RNN RandomNormal RandomNormalLike RandomUniform RandomUniformLike Reciprocal Resize Round "
        "Scan Selu Sigmoid Sin Sinh Softmax Softplus Softsign Sqrt Tan Tanh ThresholdedRelu "
        "Upsample",
    ),
    (
        NUMBERS,
        "Abs Add ArgMax ArgMin DepthToSpace Div Equal Gelu Greater GreaterOrEqual IsNaN Less "
        "LessOrEqual Max Mean Min Mod Mul Neg Pad Range ReduceL1 ReduceL2 ReduceLogSum "
        "ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu "
        "Scatter ScatterElements ScatterND Shrink Sign SpaceToDepth Sub Sum TopK",
    ),
    (
        ANY,
        "Concat Constant ConstantOfShape Expand EyeLike Flatten Gather GatherElements GatherND "
        "Identity If Loop OneHot Reshape ReverseSequence Shape Size Slice Split Squeeze Tile "
        "Transpose Trilu Unsqueeze Where",
    ),
    (ANY | {TensorProto.UINT8}, "Cast CastLike"),
    (HALVES, "DeformConv GridSample Mish NonMaxSuppression NonZero RoiAlign"),
    (BOOL, "And Not Or Xor"),
    (QUANTISED, "DequantizeLinear"),
)
TABLE: Mapping[str, frozenset[int]] = {
    operator: types for types, names in _BY_TYPES for operator in names.split()
}
"""Operator to the element types of its data input."""

_DATA_INPUT = {"Where": 1}  # its first input is the condition
_RANGE_TYPES = INTEGERS | {TensorProto.FLOAT}  # the importer takes fewer than the table says
_CONSTANT_AXES = (
    "Squeeze Unsqueeze ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean "
    "ReduceMin ReduceProd ReduceSum ReduceSumSquare CumSum"
).split()


@dataclass(frozen=True)
class Problem:
    """What a node would be refused for."""

    node: str
    operator: str
    reason: str

    def __str__(self) -> str:
        return f"node '{self.node}' ({self.operator}): {self.reason}"


def check_operators(model: onnx.ModelProto) -> list[Problem]:
    """What TensorRT 10.3's parser would refuse in ``model``, by its own table; weights need not be
    loaded. An empty list is no promise (see above)."""
    types = _element_types(model)
    constants = _constants(model)
    problems = list(_opset_problems(model))
    for node in model.graph.node:
        reason = _reason(node, types, constants)
        if reason:
            problems.append(Problem(node.name, node.op_type, reason))
    return problems


def _opset_problems(model: onnx.ModelProto) -> Iterator[Problem]:
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    blocked = any(
        attribute.name == "block_size" and attribute.i
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
        for attribute in node.attribute
    )
    # The parser tells blocks by the shape of the scales and sets no upper limit to the opset, so a
    # graph may say that of its blocks.
    least, most = OPSETS
    if not least <= opset <= (BLOCKS_OPSET if blocked else most):
        yield Problem(model.graph.name, "opset", f"opset {opset} is not within {least} to {most}")


def _reason(
    node: NodeProto, types: Mapping[str, int], constants: Mapping[str, Array | None]
) -> str | None:
    if node.domain not in ("", "ai.onnx"):
        return f"domain '{node.domain}' is no part of the ONNX standard and wants a plugin"
    if node.op_type not in TABLE:
        return "TensorRT 10.3 has no such operator"
    allowed = TABLE[node.op_type] if node.op_type != "Range" else _RANGE_TYPES
    at = _DATA_INPUT.get(node.op_type, 0)
    found = types.get(node.input[at]) if len(node.input) > at else None
    if found is not None and found not in allowed:
        return f"element type {_spoken(found)} is not supported, only {_spoken(*sorted(allowed))}"
    limit = _LIMITS.get(node.op_type)
    return limit(node, constants) if limit else None


def _axes_constant(node: NodeProto, constants: Mapping[str, Array | None]) -> str | None:
    if len(node.input) > 1 and node.input[1] and node.input[1] not in constants:
        return "its axes must be an initializer"
    return None


def _slice(node: NodeProto, constants: Mapping[str, Array | None]) -> str | None:
    if len(node.input) > 3 and node.input[3] and node.input[3] not in constants:
        return "its axes must be an initializer"
    return None


def _top_k(node: NodeProto, constants: Mapping[str, Array | None]) -> str | None:
    if _attribute(node, "sorted", 1) != 1:
        return "sorted must be 1"
    k = constants.get(node.input[1])
    if k is not None and int(k.reshape(-1)[0]) >= TOPK_LIMIT:
        return f"K is {int(k.reshape(-1)[0])}; it must be below {TOPK_LIMIT}"
    return None


def _one_output(node: NodeProto, constants: Mapping[str, Array | None]) -> str | None:
    return "only its first output is supported" if any(list(node.output)[1:]) else None


def _no_reduction(node: NodeProto, constants: Mapping[str, Array | None]) -> str | None:
    return (
        "reduction is not supported" if _attribute(node, "reduction", b"none") != b"none" else None
    )


def _dequantize(node: NodeProto, constants: Mapping[str, Array | None]) -> str | None:
    if len(node.input) < 3 or not node.input[2]:
        return None
    zero = constants.get(node.input[2])
    if zero is None or zero.astype("float32").any():
        return "its zero point must be absent or a constant 0"
    return None


def _cast(node: NodeProto, constants: Mapping[str, Array | None]) -> str | None:
    to = next((a.i for a in node.attribute if a.name == "to"), 0)
    return None if to in TABLE["Cast"] else f"it cannot cast to {_spoken(to)}"


_LIMITS: Mapping[str, Callable[[NodeProto, Mapping[str, Array | None]], str | None]] = {
    **{operator: _axes_constant for operator in _CONSTANT_AXES},
    "Slice": _slice,
    "TopK": _top_k,
    "LayerNormalization": _one_output,
    "ScatterND": _no_reduction,
    "DequantizeLinear": _dequantize,
    "Cast": _cast,
}


def _attribute(node: NodeProto, name: str, default: object) -> object:
    found = [a for a in node.attribute if a.name == name]
    return helper.get_attribute_value(found[0]) if found else default


def _element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element types of all values that shape inference tells; it stops at operators of domains
    that the model does not import."""
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except onnx.shape_inference.InferenceError:
        graph = model.graph
    values = (*graph.input, *graph.output, *graph.value_info)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types.update((weight.name, weight.data_type) for weight in graph.initializer)
    return {name: kind for name, kind in types.items() if kind}


def _constants(model: onnx.ModelProto) -> dict[str, Array | None]:
    """Initializers and constants by name; None where the value is stored elsewhere."""
    found: dict[str, Array | None] = {}
    for weight in model.graph.initializer:
        external = weight.data_location == TensorProto.EXTERNAL
        found[weight.name] = None if external else numpy_helper.to_array(weight)
    for node in model.graph.node:
        if node.op_type == "Constant":
            value = _attribute(node, "value", None)
            held = numpy_helper.to_array(value) if isinstance(value, TensorProto) else None
            found[node.output[0]] = held
    return found


def _spoken(*kinds: int) -> str:
    return ", ".join(TensorProto.DataType.Name(kind).lower() for kind in kinds)
