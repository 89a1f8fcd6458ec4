"""What numbers a graph computes with and what its weights are stored as.

Quantised weights are symmetric, without zero points: what every TensorRT accepts. int8 has one
scale for each output of a layer, int4 one for each block of inputs of each output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.errors import CheckpointError

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
BLOCKS = (128, 64, 32)
"""Inputs that share an int4 scale, where they divide a layer's: TensorRT's sizes."""
LARGEST = 65504.0
"""Of float16."""


@dataclass(frozen=True)
class Precision:
    """``floats``: the type that a graph computes with; ``bits``: of the weights of a decoder's
    layers, 0 where they are as precise as the rest."""

    name: str
    floats: str
    bits: int = 0


FP32 = Precision("fp32", "float32")
KNOWN = {
    known.name: known
    for known in (
        FP32,
        Precision("fp16", "float16"),
        Precision("bf16", "bfloat16"),
        Precision("int8", "float16", 8),
        Precision("int4", "float16", 4),
    )
}


def stored_bytes(shape: tuple[int, ...], kind: str) -> int:
    """Bytes of a tensor of ``kind`` in a file."""
    count = int(np.prod(shape, dtype=np.int64))
    return (count + 1) // 2 if kind == "int4" else count * storage(kind).itemsize


def storage(kind: str) -> np.dtype[Any]:
    """The numpy type that holds the bits of one number of ``kind`` (of two int4 ones)."""
    return np.dtype({"bfloat16": "uint16", "int4": "uint8"}.get(kind, kind))


def encoded(array: Array, kind: str, name: str) -> Array:
    """``array`` in the bits of ``kind``. Raises CheckpointError for numbers that it cannot hold."""
    if kind == "bfloat16":
        return _bfloat16(array)
    if kind == "int4":
        return _packed(array)
    if kind == "float16" and array.dtype == np.float32 and array.size and _most(array) > LARGEST:
        raise CheckpointError(
            f"tensor '{name}' holds values beyond {LARGEST:g}, the largest of float16; export it "
            "in bf16 or fp32"
        )
    return np.ascontiguousarray(array, dtype=kind)


def _most(array: Array, axis: int | None = None) -> Array:
    """The largest distance from zero, without a copy of ``array``."""
    most: Array = np.maximum(array.max(axis), -array.min(axis))
    return most


def _bfloat16(array: Array) -> npt.NDArray[np.uint16]:
    """The upper half of a float32, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    halves: npt.NDArray[np.uint16] = rounded.astype(np.uint16)
    return halves


def _packed(array: Array) -> npt.NDArray[np.uint8]:
    """Two to a byte, the first one in the low half."""
    low = np.ascontiguousarray(array, dtype=np.int8).reshape(-1).view(np.uint8) & np.uint8(15)
    if len(low) % 2:
        low = np.append(low, np.uint8(0))
    packed: npt.NDArray[np.uint8] = low[::2] | (low[1::2] << np.uint8(4))
    return packed


def block_of(inputs: int) -> int:
    """The block size of an int4 layer with that many inputs; 0: it cannot be one."""
    return next((block for block in BLOCKS if inputs % block == 0), 0)


class Quantised:
    """One layer's weights [inputs, outputs], read and rounded once, in place: first the numbers are
    asked for, then their scales."""

    def __init__(self, load: Callable[[], Floats], bits: int, block: int) -> None:
        """``block``: inputs to a scale; 0: all of them."""
        self._load = load
        self._most = (1 << (bits - 1)) - 1
        self._block = block
        self._scales: Floats | None = None

    def numbers(self) -> npt.NDArray[np.int8]:
        """[inputs, outputs]."""
        weights = self._load()
        inputs, outputs = weights.shape
        blocks = weights.reshape(-1, self._block or inputs, outputs)
        # Rounded as they are stored: the numbers belong to the scales that multiply them.
        scales = (_most(blocks, axis=1) / self._most).astype(np.float16)
        scales = np.maximum(scales, np.finfo(np.float16).tiny)
        self._scales = scales.astype(np.float32)
        found = np.divide(blocks, self._scales[:, None], out=blocks)  # a layer may be large
        np.clip(np.rint(found, out=found), -self._most, self._most, out=found)
        return found.astype(np.int8).reshape(inputs, outputs)

    def scales(self) -> Floats:
        """[blocks, outputs], or [outputs] where all inputs share one."""
        if self._scales is None:
            self.numbers()
        assert self._scales is not None
        return self._scales if self._block else self._scales[0]
