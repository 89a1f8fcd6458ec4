"""Builds one ONNX graph node by node, and streams its weights to external data.

Knows ONNX; knows nothing of checkpoints or layers. A weight is a shape and a function that loads
it, called once while saving: peak memory is one tensor, whatever the size of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgespec.bundle import TensorSpec

Array = npt.NDArray[Any]
Axis = int | str
CONTRIB = "com.microsoft"

# ONNX Runtime maps external data in place only where it starts on a page.
ALIGNMENT = 4096
INLINE_BYTES = 1024
IR_VERSION = 10  # understood by every runtime we target, TensorRT 10.3's parser included


Stored = dict[str, onnx.TensorProto]
"""Weights of one model that are on disk already, by name."""


@dataclass(frozen=True)
class Weight:
    """A tensor to be written when the graph is saved."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    load: Callable[[], Array]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class GraphBuilder:
    """Collects nodes, weights, inputs and outputs of one graph."""

    def __init__(self, name: str, opset: int) -> None:
        self.name = name
        self.inputs: list[TensorSpec] = []
        self.outputs: list[TensorSpec] = []
        self._opset = opset
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, Weight] = {}
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
        self._weights.setdefault(name, weight)
        return name

    def constant(self, value: Any, dtype: str = "int64") -> str:
        """A small constant, stored inside the graph file once however often it is asked for."""
        array = np.asarray(value, dtype=dtype)
        key = (dtype, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"const_{len(self._constants)}"
            self._constants[key] = name
            self._inline.append(numpy_helper.from_array(array, name))
        return self._constants[key]

    @property
    def weight_bytes(self) -> int:
        return sum(weight.nbytes for weight in self._weights.values())

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
        with data.open("wb") as out:
            for name, weight in self._weights.items():
                if name in stored:
                    initializers.append(stored[name])
                    progress(weight.nbytes)
                    continue
                array = _loaded(name, weight)
                if array.nbytes <= INLINE_BYTES:
                    initializers.append(numpy_helper.from_array(array, name))
                else:
                    out.write(b"\0" * (-out.tell() % ALIGNMENT))
                    initializers.append(_external(name, array, data.name, out.tell()))
                    out.write(array.data)
                stored[name] = initializers[-1]
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
    array = np.ascontiguousarray(weight.load(), dtype=weight.dtype)
    if array.shape != weight.shape:
        raise ValueError(f"weight {name} has shape {array.shape}, declared {weight.shape}")
    return array


def _external(name: str, array: Array, location: str, offset: int) -> onnx.TensorProto:
    tensor = TensorProto(
        name=name,
        data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
        dims=array.shape,
        data_location=TensorProto.EXTERNAL,
    )
    for key, value in (("location", location), ("offset", offset), ("length", array.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _value(spec: TensorSpec) -> onnx.ValueInfoProto:
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
    return helper.make_tensor_value_info(spec.name, dtype, list(spec.axes))
