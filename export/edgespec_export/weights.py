"""A graph's weights, streamed to external data.

A weight is a shape and a function that loads it, called once while saving: peak memory is one
tensor, whatever the size of the model.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy.typing as npt
import onnx
from onnx import TensorProto

from edgespec_export.ahead import in_order
from edgespec_export.journal import Journal
from edgespec_export.precision import encoded, stored_bytes

Array = npt.NDArray[Any]

# ONNX Runtime maps external data in place only where it starts on a page.
ALIGNMENT = 4096
INLINE_BYTES = 1024

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


def write_weights(
    weights: Mapping[str, Weight],
    data: Path,
    stored: Stored,
    journal: Journal | None = None,
    progress: Callable[[int], None] = lambda written: None,
) -> list[onnx.TensorProto]:
    """Writes what is not ``stored`` yet, large weights to the file ``data`` and small ones into
    their tensors; ``stored`` learns them. Returns the tensors of all ``weights``, in order.

    ``journal`` may know weights that are in ``data`` already, and learns those written.
    ``progress`` is told the bytes of every weight. Where no large one is new there is no file.
    """
    missing = {(n, w.kind): w for n, w in weights.items() if (n, w.kind) not in stored}
    offsets = _offsets(missing)
    places = {key: (offset, missing[key].nbytes) for key, offset in offsets.items()}
    kept = journal.kept(data, places) if journal else set()
    jobs = ((k[0], w) for k, w in missing.items() if k not in kept and not w.at_hand)
    loaded = in_order((w.nbytes, partial(_loaded, n, w)) for n, w in jobs)
    with data.open("r+b" if kept else "wb") as out, closing(loaded):
        for name, weight in weights.items():
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
                    stored[key] = inline(name, weight.shape, weight.kind, array)
            progress(weight.nbytes)
        written = out.tell()
        out.truncate()
    if not written:
        data.unlink()
    return [stored[name, weight.kind] for name, weight in weights.items()]


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


def inline(name: str, shape: tuple[int, ...], kind: str, array: Array) -> onnx.TensorProto:
    """A tensor that is part of the graph file."""
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
