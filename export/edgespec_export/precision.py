"""What numbers a graph computes with and what its weights are stored as.

Quantised weights are symmetric, without zero points: what every TensorRT accepts. int8 has one
scale for each output of a layer, int4 one for each block of inputs of each output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgespec.errors import CheckpointError
from edgespec_export.quantise.gptq import Root

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
BLOCKS = (128, 64, 32)
"""Inputs that share an int4 scale, where they divide a layer's: TensorRT's sizes."""
DEFAULT_BLOCKS = {"float32": 64, "float16": 128}
"""Of ONNX Runtime's block-wise kernels, by what was measured (docs/precision.md): on a CPU single
rows take 11 % less than with 32, at a small part of the rounding error of 128."""
LARGEST = 65504.0
"""Of float16."""


@dataclass(frozen=True)
class Precision:
    """``floats``: the type that a graph computes with; ``bits``: of the weights of a decoder's
    layers, 0 where they are as precise as the rest."""

    name: str
    floats: str
    bits: int = 0
    head: str = ""
    """Of the output head: "fp16" (stored), "int8", "int4"; else as the floats."""
    block: int = 0
    """Most inputs that share a scale; 0: as suits, which for int8 in float32 graphs is all."""
    integer: bool = False
    """Whether quantised weights are for ONNX Runtime's integer kernels (``quantise.products``),
    or DequantizeLinear makes floats of them."""
    moments: Moments | None = field(default=None, compare=False)
    """What the target's layers read, where int4 is to be rounded by that (GPTQ)."""

    def bits_of(self, part: str) -> int:
        """Of the weights of "layer" or "head"; 0: floats."""
        if part == "head":
            return {"int8": 8, "int4": 4}.get(self.head, 0)
        return self.bits if part == "layer" else 0

    def block_of(self, part: str, inputs: int) -> int:
        """Inputs to a scale of that part in ONNX Runtime's block-wise kernels; 0: rows are
        quantised instead. A block that does not divide the inputs would make results depend on the
        number of rows."""
        by_rows = self.bits_of(part) == 8 and self.floats == "float32"
        if by_rows and not (part == "layer" and self.block):
            return 0
        return block_of(inputs, self.block or DEFAULT_BLOCKS.get(self.floats, 0))

    @property
    def stored(self) -> dict[str, str]:
        """How a decoder's weights are stored, for the manifest."""
        told = {"layers": self.name, "head": self.head or ("fp16" if self.bits else self.name)}
        if self.bits == 4:
            usual = DEFAULT_BLOCKS[self.floats] if self.integer else BLOCKS[0]
            told["block"] = str(self.block or usual)
            told["rounding"] = "gptq" if self.moments else "nearest"
        elif self.bits and self.integer and self.block:
            told["block"] = str(self.block)
        return told

    @property
    def row_invariance(self) -> str:
        """How far a row's results depend on the rows beside it, for the manifest."""
        if self.bits and self.integer and self.floats == "float32":  # activations are rounded, too
            products = (
                "products exactly (sums of integers, each row scaled by itself)"
                if self.bits == 8 and not self.block
                else "products up to float32 rounding (each row's blocks are scaled by themselves)"
            )
            return (
                f"{products}; attention up to float32 rounding, which can tip that of an "
                "activation: a close second token may win when the number of rows changes"
            )
        if self.floats == "float32":
            return "up to float32 rounding; ties closer than 1e-4 may fall either way"
        return f"up to {self.floats} rounding; close second tokens may win"

    def root(self, name: str) -> Root | None:
        """What GPTQ rounds the weights of that name by; None: RTN."""
        return self.moments.root(name) if self.moments else None


class Moments(Protocol):
    """Second moments of what the layers of a decoder read."""

    def root(self, name: str) -> Root | None:
        """``gptq.root_of`` of the product of that name; None for one that is not known."""


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


def block_of(inputs: int, most: int = 0) -> int:
    """The block size of an int4 layer with that many inputs, ``most`` at most (0: any); 0: it
    cannot be one."""
    fitting = (block for block in BLOCKS if block <= (most or block))
    return next((block for block in fitting if inputs % block == 0), 0)


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
        """[blocks, outputs], or [outputs] where all inputs share one; handed out and forgotten."""
        if self._scales is None:
            self.numbers()
        found, self._scales = self._scales, None
        assert found is not None
        return found if self._block else found[0]
