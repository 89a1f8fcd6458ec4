"""Builds one ONNX graph node by node, and streams its weights to external data.

Knows ONNX; knows nothing of checkpoints or layers. A weight is a shape and a function that loads
it, called once while saving: peak memory is one tensor, whatever the size of the model.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from edgespec.bundle import TensorSpec
from edgespec_export.ahead import in_order
from edgespec_export.journal import Journal
from edgespec_export.precision import (
    FP32,
    Precision,
    Quantised,
    block_of,
    encoded,
    stored_bytes,
)
from edgespec_export.quantise.matrix import Matrix
from edgespec_export.quantise.products import block_wise, row_wise

Array = npt.NDArray[Any]
Axis = int | str
Made = TypeVar("Made")
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
    "uint8": TensorProto.UINT8,
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
    at_hand: bool = False
    """Whether loading the weight registered before it finds this one, too."""

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
        self.fed: dict[str, str] = {}
        """What every product reads, by the name of its weights."""
        self._precision = precision
        self.inputs: list[TensorSpec] = []
        self.outputs: list[TensorSpec] = []
        self._opset = opset
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, Weight] = {}
        self._dequantised: dict[str, str] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._inline: list[onnx.TensorProto] = []
        self._shared: dict[tuple[str, str], Any] = {}

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

    def product(self, x: str, name: str, matrix: Matrix, part: str = "") -> str:
        """``x`` [.., inputs] @ ``matrix``, whose weights are stored as the precision says for that
        ``part`` of a decoder: "layer", "head", or what is never quantised."""
        self.fed[name] = x
        precision = self._precision
        bits = precision.bits_of(part)
        block = precision.block_of(part, matrix.inputs)
        if bits and precision.integer and (block or self.floats == "float32"):
            self.multiplied += matrix.inputs * matrix.outputs
            if block:
                root = partial(precision.root, name)
                return block_wise(self, x, name, matrix, bits, block, root)
            return row_wise(self, x, name, matrix)
        bits = 0 if precision.integer else bits
        weight = Weight((matrix.inputs, matrix.outputs), FLOATS, matrix.transposed)
        if part == "head" and precision.head == "fp16" and self.floats == "float32":
            self.multiplied += matrix.inputs * matrix.outputs
            halves = self.weight(f"{name}.halves", replace(weight, kind="float16"))
            return self.node("MatMul", x, self.cast(halves, "float16", self.floats))
        return self.node("MatMul", x, self.matrix(name, weight, bits=bits))

    def matrix(self, name: str, weight: Weight, *, bits: int = 0) -> str:
        """A weight [inputs, outputs] that rows are multiplied with; in 8 or 4 ``bits``
        DequantizeLinear makes floats of them, where 4 divide into blocks."""
        inputs, outputs = weight.shape
        self.multiplied += inputs * outputs
        block = block_of(inputs, self._precision.block) if bits == 4 else 0
        if not bits or (bits == 4 and not block):
            return self.weight(name, weight)
        kind = f"int{bits}"
        rounded = Quantised(weight.load, bits, block)
        scale = (inputs // block, outputs) if block else (outputs,)
        numbers = self.weight(f"{name}.{kind}", Weight(weight.shape, kind, rounded.numbers))
        scales = self.weight(
            f"{name}.{kind}.scale", Weight(scale, FLOATS, rounded.scales, at_hand=True)
        )
        blocked: dict[str, Any] = {"axis": 0, "block_size": block} if block else {"axis": 1}
        if block:
            self._opset = max(self._opset, BLOCKS_OPSET)
        if name not in self._dequantised:
            floats = self.node("DequantizeLinear", numbers, scales, **blocked)
            self._dequantised[name] = floats
        return self._dequantised[name]

    def shared(self, key: tuple[str, str], make: Callable[[], Made]) -> Made:
        """What ``make`` added for ``key`` the first time."""
        if key not in self._shared:
            self._shared[key] = make()
        made: Made = self._shared[key]
        return made

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
        journal: Journal | None = None,
    ) -> list[Path]:
        """Writes ``stem.onnx`` and, where there are new large weights, ``stem.bin``; returns both.

        ``progress`` is told the bytes of every weight written, or found written. ``written_before``
        maps names to weights that an earlier graph of the same model stored in ``folder``: they are
        pointed at instead of written again, and it learns the names written now. So does
        ``journal``, which may know weights that are in ``stem.bin`` already.
        """
        stored = {} if written_before is None else written_before
        initializers = list(self._inline)
        data = folder / f"{stem}.bin"
        files = [folder / f"{stem}.onnx"]
        missing = {(n, w.kind): w for n, w in self._weights.items() if (n, w.kind) not in stored}
        offsets = _offsets(missing)
        places = {key: (offset, missing[key].nbytes) for key, offset in offsets.items()}
        kept = journal.kept(data, places) if journal else set()
        jobs = ((k[0], w) for k, w in missing.items() if k not in kept and not w.at_hand)
        loaded = in_order((w.nbytes, partial(_loaded, n, w)) for n, w in jobs)
        with data.open("r+b" if kept else "wb") as out, closing(loaded):
            for name, weight in self._weights.items():
                key = (name, weight.kind)
                if key in offsets:
                    out.write(b"\0" * (offsets[key] - out.tell()))
                    stored[key] = _external(name, weight, data.name, offsets[key])
                if key in kept:
                    out.seek(weight.nbytes, os.SEEK_CUR)
                elif key in missing:
                    array = _loaded(name, weight) if weight.at_hand else next(loaded)
                    if key in offsets:
                        _append(out, array, data, key, journal)
                    else:
                        stored[key] = _inline(name, weight.shape, weight.kind, array)
                initializers.append(stored[key])
                progress(weight.nbytes)
            written = out.tell()
            out.truncate()
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


def _offsets(weights: Mapping[tuple[str, str], Weight]) -> dict[tuple[str, str], int]:
    """Where large weights lie in their file; small ones are part of the graph."""
    found = {}
    end = 0
    for key, weight in weights.items():
        if weight.nbytes > INLINE_BYTES:
            found[key] = end + -end % ALIGNMENT
            end = found[key] + weight.nbytes
    return found


def _append(
    out: BinaryIO, array: Array, file: Path, key: tuple[str, str], journal: Journal | None
) -> None:
    offset = out.tell()
    out.write(array.data)
    if journal:
        out.flush()
        journal.add(file, key, offset, array.data)


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
