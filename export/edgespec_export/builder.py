"""Builds one ONNX graph node by node, and streams its weights to external data.

Knows ONNX; knows nothing of checkpoints or layers. A weight is a shape and a function that loads
it, called once while saving: peak memory is one tensor, whatever the size of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from edgespec.bundle import TensorSpec
from edgespec_export.ahead import in_order
from edgespec_export.precision import (
    FP32,
    Precision,
    Quantised,
    block_of,
    encoded,
    stored_bytes,
)

Array = npt.NDArray[Any]
Axis = int | str
CONTRIB = "com.microsoft"

# ONNX Runtime maps external data in place only where it starts on a page.
ALIGNMENT = 4096
INLINE_BYTES = 1024
WINDOWS = 22  # the opset from which convolutions and pools take bfloat16
BLOCKS_OPSET = 21
"""Where ONNX has weights in blocks; TensorRT 10.3 takes them too, though its table ends at 20."""
IR_VERSION = 10  # understood by every runtime we target, TensorRT 10.3's parser included


Stored = dict[tuple[str, str], onnx.TensorProto]
"""Weights of one model that are on disk already, by name and kind."""

FLOATS = "floats"
"""The kind of a weight that is stored in the type its graph computes with."""

KINDS = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "int8": TensorProto.INT8,
    "int4": TensorProto.INT4,
    "bool": TensorProto.BOOL,
}
"""ONNX's number of every kind of tensor that is used here."""


@dataclass(frozen=True)
class Weight:
    """A tensor to be written when the graph is saved; ``kind`` is FLOATS or one of KINDS."""

    shape: tuple[int, ...]
    kind: str
    load: Callable[[], Array]

    @property
    def nbytes(self) -> int:
        return stored_bytes(self.shape, self.kind)


class GraphBuilder:
    """Collects nodes, weights, inputs and outputs of one graph.

    It computes in ``floats``, the precision's type; what goes in and comes out is float32 all the
    same (``given``, ``give``), but for caches, which nobody looks into.
    """

    def __init__(self, name: str, opset: int, precision: Precision = FP32) -> None:
        self.name = name
        self.floats = precision.floats
        self.windows = "float32" if opset < WINDOWS and precision.name == "bf16" else self.floats
        """The type that convolutions and pools compute with."""
        self.multiplied = 0
        """Weights that a row is multiplied with."""
        self._bits = precision.bits
        self.inputs: list[TensorSpec] = []
        self.outputs: list[TensorSpec] = []
        self._opset = opset
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, Weight] = {}
        self._dequantised: dict[str, str] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._inline: list[onnx.TensorProto] = []

    def input(self, name: str, dtype: str, axes: Sequence[Axis]) -> str:
        """Declares a graph input; ``axes`` are sizes or axis names."""
        self.inputs.append(TensorSpec(name, dtype, tuple(axes)))
        return name

    def output(self, value: str, name: str, dtype: str, axes: Sequence[Axis]) -> None:
        """Publishes ``value`` as graph output ``name``."""
        self.outputs.append(TensorSpec(name, dtype, tuple(axes)))
        if value != name:
            self._rename(value, name)

    def given(self, name: str, axes: Sequence[Axis]) -> str:
        """Declares a float32 input; the value is of the type the graph computes with."""
        return self.cast(self.input(name, "float32", axes), "float32", self.floats)

    def give(self, value: str, name: str, axes: Sequence[Axis]) -> None:
        """Publishes a value of the type the graph computes with as a float32 output."""
        self.output(self.float32(value), name, "float32", axes)

    def float32(self, value: str) -> str:
        """A value of the type the graph computes with, in float32."""
        return self.cast(value, self.floats, "float32")

    def floating(self, value: str) -> str:
        """The other way round."""
        return self.cast(value, "float32", self.floats)

    def cast(self, value: str, old: str, new: str) -> str:
        return value if old == new else self.node("Cast", value, to=KINDS[new])

    def node(self, op: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Adds a node with one output and returns the output's name."""
        return self.nodes(op, *inputs, outputs=1, domain=domain, **attributes)[0]

    def nodes(
        self,
        op: str,
        *inputs: str,
        outputs: int | Sequence[str],
        domain: str = "",
        **attributes: Any,
    ) -> list[str]:
        """Adds a node with several outputs: a count, or names ("" not wanted, "*" any name)."""
        label = f"{op}_{len(self._nodes)}"
        wanted = ["*"] * outputs if isinstance(outputs, int) else outputs
        names = [f"{label}:{i}" if name == "*" else name for i, name in enumerate(wanted)]
        self._nodes.append(
            helper.make_node(op, list(inputs), names, name=label, domain=domain, **attributes)
        )
        return names

    def weight(self, name: str, weight: Weight) -> str:
        """Registers a weight under a unique name; the same name twice is the same weight."""
        kind = self.floats if weight.kind == FLOATS else weight.kind
        self._weights.setdefault(name, replace(weight, kind=kind))
        return name

    def matrix(self, name: str, weight: Weight, *, quantised: bool = False) -> str:
        """A weight [inputs, outputs] that rows are multiplied with, in the precision's bits where
        it may be ``quantised``: DequantizeLinear makes floats of those."""
        inputs, outputs = weight.shape
        self.multiplied += inputs * outputs
        block = block_of(inputs) if self._bits == 4 else 0
        if not quantised or not self._bits or (self._bits == 4 and not block):
            return self.weight(name, weight)
        kind = f"int{self._bits}"
        rounded = Quantised(weight.load, self._bits, block)
        scale = (inputs // block, outputs) if block else (outputs,)
        numbers = self.weight(f"{name}.{kind}", Weight(weight.shape, kind, rounded.numbers))
        scales = self.weight(f"{name}.{kind}.scale", Weight(scale, FLOATS, rounded.scales))
        blocked: dict[str, Any] = {"axis": 0, "block_size": block} if block else {"axis": 1}
        if block:
            self._opset = max(self._opset, BLOCKS_OPSET)
        if name not in self._dequantised:
            floats = self.node("DequantizeLinear", numbers, scales, **blocked)
            self._dequantised[name] = floats
        return self._dequantised[name]

    def constant(self, value: Any, kind: str = "int64") -> str:
        """A small constant, stored inside the graph file once however often it is asked for."""
        array = np.asarray(value, dtype="float32" if kind == "bfloat16" else kind)
        key = (kind, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"const_{len(self._constants)}"
            self._constants[key] = name
            self._inline.append(_inline(name, array.shape, kind, encoded(array, kind, name)))
        return self._constants[key]

    def number(self, value: float) -> str:
        """A scalar of the type the graph computes with."""
        return self.constant(value, self.floats)

    @property
    def weights(self) -> dict[tuple[str, str], int]:
        """Bytes of every weight it reads, by name and kind."""
        return {(name, weight.kind): weight.nbytes for name, weight in self._weights.items()}

    @property
    def weight_bytes(self) -> int:
        return sum(self.weights.values())

    def save(
        self,
        folder: Path,
        stem: str,
        progress: Callable[[int], None] = lambda written: None,
        written_before: Stored | None = None,
    ) -> list[Path]:
        """Writes ``stem.onnx`` and, where there are new large weights, ``stem.bin``; returns both.

        ``progress`` is told the bytes of every weight written, or found written. ``written_before``
        maps names to weights that an earlier graph of the same model stored in ``folder``: they are
        pointed at instead of written again, and it learns the names written now.
        """
        stored = {} if written_before is None else written_before
        initializers = list(self._inline)
        data = folder / f"{stem}.bin"
        files = [folder / f"{stem}.onnx"]
        missing = [(n, w) for n, w in self._weights.items() if (n, w.kind) not in stored]
        loaded = in_order((w.nbytes, partial(_loaded, n, w)) for n, w in missing)
        with data.open("wb") as out, closing(loaded):
            for name, weight in self._weights.items():
                key = (name, weight.kind)
                if key in stored:
                    initializers.append(stored[key])
                    progress(weight.nbytes)
                    continue
                array = next(loaded)
                if array.nbytes <= INLINE_BYTES:
                    initializers.append(_inline(name, weight.shape, weight.kind, array))
                else:
                    out.write(b"\0" * (-out.tell() % ALIGNMENT))
                    initializers.append(_external(name, weight, data.name, out.tell()))
                    out.write(array.data)
                stored[key] = initializers[-1]
                progress(array.nbytes)
            written = out.tell()
        if written:
            files.append(data)
        else:
            data.unlink()
        graph = helper.make_graph(
            self._nodes,
            self.name,
            [_value(spec) for spec in self.inputs],
            [_value(spec) for spec in self.outputs],
            initializers,
        )
        domains = {node.domain for node in self._nodes}
        opsets = [helper.make_opsetid(d, self._opset if d == "" else 1) for d in sorted(domains)]
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="edgespec"
        )
        files[0].write_bytes(model.SerializeToString())
        return files

    def _rename(self, old: str, new: str) -> None:
        for node in self._nodes:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    if name == old:
                        names[i] = new


def _loaded(name: str, weight: Weight) -> Array:
    array = weight.load()
    if array.shape != weight.shape:
        raise ValueError(f"weight {name} has shape {array.shape}, declared {weight.shape}")
    return encoded(array, weight.kind, name)


def _inline(name: str, shape: tuple[int, ...], kind: str, array: Array) -> onnx.TensorProto:
    return TensorProto(name=name, data_type=KINDS[kind], dims=shape, raw_data=array.tobytes())


def _external(name: str, weight: Weight, location: str, offset: int) -> onnx.TensorProto:
    tensor = TensorProto(
        name=name,
        data_type=KINDS[weight.kind],
        dims=weight.shape,
        data_location=TensorProto.EXTERNAL,
    )
    for key, value in (("location", location), ("offset", offset), ("length", weight.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _value(spec: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(spec.name, KINDS[spec.dtype], list(spec.axes))
