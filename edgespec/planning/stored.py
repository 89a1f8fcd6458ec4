"""The tensors that an ONNX file stores or points at, read without the onnx package, which no device
has: a walk over the protocol buffers' fields (onnx.proto: ModelProto, GraphProto, TensorProto).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edgespec.errors import BundleError

BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64,
    16: 16, 17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4,
}  # fmt: skip
"""Of one number, by TensorProto.DataType."""
FLOATS = frozenset({1, 10, 11, 16})
"""float32, float16, float64, bfloat16"""
GRAPH, INITIALIZER = 7, 5
DIMS, DATA_TYPE, NAME, EXTERNAL = 1, 2, 8, 13
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Tensor:
    """One initializer. ``place`` tells tensors apart that several graphs point at."""

    name: str
    kind: int
    """TensorProto.DataType"""
    dims: tuple[int, ...]
    place: tuple[str, int]
    """(external file, offset), or (graph file, -1 - its number) for one inside the graph."""

    @property
    def count(self) -> int:
        return math.prod(self.dims)

    @property
    def nbytes(self) -> int:
        return (self.count * BITS[self.kind] + 7) // 8

    @property
    def is_float(self) -> bool:
        return self.kind in FLOATS


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Of all of them, the padding between them left out."""
    return sum(tensor.nbytes for tensor in tensors)


def stored_tensors(path: Path) -> tuple[Tensor, ...]:
    """The initializers of an ONNX file; external data is not opened. Raises BundleError for a file
    that is none, or that holds tensors of a type whose size is not known."""
    try:
        data = memoryview(path.read_bytes())
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from None
    try:
        graphs = [value for number, value in _fields(data) if number == GRAPH]
        blocks = [
            block for graph in graphs for number, block in _fields(graph) if number == INITIALIZER
        ]
        tensors = tuple(_tensor(block, path.name, i) for i, block in enumerate(blocks))
    except (IndexError, ValueError, TypeError) as error:
        raise BundleError(f"{path} is no ONNX file: {error}; export it again") from None
    unknown = sorted({t.kind for t in tensors} - set(BITS))
    if unknown:
        raise BundleError(f"{path} holds tensors of types {unknown}, whose size is not known here")
    return tensors


def _tensor(block: int | memoryview, file: str, number: int) -> Tensor:
    name, kind, dims, external = "", 0, [], {}
    for field, value in _fields(block):
        if field == DIMS:
            dims += [value] if isinstance(value, int) else list(_varints(value))
        elif field == DATA_TYPE and isinstance(value, int):
            kind = value
        elif field == NAME:
            name = _text(value)
        elif field == EXTERNAL:
            pair = dict(_fields(value))
            external[_text(pair[1])] = _text(pair[2])
    place = (file, -1 - number)
    if "location" in external:
        place = (external["location"], int(external.get("offset", 0)))
    return Tensor(name, kind, tuple(dims), place)


def _text(value: int | memoryview) -> str:
    return bytes(value).decode("utf-8") if isinstance(value, memoryview) else str(value)


def _fields(data: int | memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) of a message, values of unread kinds included."""
    if not isinstance(data, memoryview):
        raise TypeError("a number where a message is expected")
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        value: int | memoryview
        if kind == VARINT:
            value, at = _varint(data, at)
        else:
            if kind == BYTES:
                size, at = _varint(data, at)
            elif kind in (FIXED32, FIXED64):
                size = 4 if kind == FIXED32 else 8
            else:
                raise ValueError(f"wire type {kind}")
            value = data[at : at + size]
            at += size
            if at > len(data):
                raise ValueError("it ends early")
        yield key >> 3, value


def _varints(data: memoryview) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """(value, where the next field begins)"""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
