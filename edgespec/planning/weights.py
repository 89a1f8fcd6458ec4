"""What a graph's weights take in each precision, by the shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from edgespec.planning.stored import Tensor

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")
"""From the largest to the smallest."""
FLOAT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
INTEGERS = frozenset({2, 3, 21, 22})
"""TensorProto.DataType of quantised matrices: uint8, int8, uint4, int4"""
ROTARY = "rotary."
HEAD = "head."
BLOCKS = re.compile(r"\.blocks([48])\.(\d+)$")
"""Ends the name of a matrix [out, blocks, bytes] of MatMulNBits: bits and inputs to a scale."""


@dataclass(frozen=True)
class Rounding:
    """How a lowering stores int8 and int4 (docs/precision.md)."""

    floats: int
    """Bytes of a number that is computed with: activations, norms, and what is not quantised;"""
    scale: int
    """and of a scale."""
    blocks: tuple[int, ...]
    """Rows that share an int4 scale: the first of these that divides a matrix."""
    int8: bool
    """Whether heads, and matrices that no block divides, are int8 where others keep floats."""


ON_CPU, ON_GPU = "ort", "native"
ROUNDINGS = {ON_CPU: Rounding(4, 4, (64, 32), True), ON_GPU: Rounding(2, 2, (128, 64, 32), False)}
"""By lowering."""


def float_bytes(precision: str, lowering: str = ON_GPU) -> int:
    """Of a number that is computed with in that precision."""
    return FLOAT_BYTES.get(precision, ROUNDINGS[lowering].floats)


@dataclass(frozen=True)
class Weights:
    """The parameters of one graph, its own alone where it shares others."""

    matrices: tuple[tuple[int, int], ...] = ()
    """[in, out] of the products that int8 and int4 quantise;"""
    heads: tuple[tuple[int, int], ...] = ()
    """of output heads, which not all lowerings do;"""
    floats: int = 0
    """the numbers that stay floating point there (norms, towers, tables);"""
    fixed: int = 0
    """and the bytes that are the same in every precision (indices)."""

    def nbytes(self, precision: str, lowering: str = ON_GPU) -> int:
        """Bytes stored, the padding between tensors left out."""
        matrices = sum(matrix_bytes(*shape, precision, lowering) for shape in self.matrices)
        heads = sum(head_bytes(*shape, precision, lowering) for shape in self.heads)
        return matrices + heads + self.floats * float_bytes(precision, lowering) + self.fixed

    def largest_bytes(self, precision: str, lowering: str = ON_GPU) -> int:
        """Of the largest matrix once its quantisation is undone; 0 where nothing is quantised, or
        kernels read it as it is."""
        if precision in FLOAT_BYTES or lowering == ON_CPU:
            return 0
        numbers = max((rows * columns for rows, columns in self.matrices), default=0)
        return numbers * float_bytes(precision, lowering)


def matrix_bytes(rows: int, columns: int, precision: str, lowering: str = ON_GPU) -> int:
    """A matrix [rows, columns] with its scales: one per column in int8, one per block and column in
    int4, where a matrix that no block divides is the lowering's choice."""
    numbers, rule = rows * columns, ROUNDINGS[lowering]
    block = next((size for size in rule.blocks if rows % size == 0), 0)
    if precision == "int4" and block:
        return (numbers + 1) // 2 + numbers // block * rule.scale
    if precision == "int8" or (precision == "int4" and rule.int8):
        return numbers + columns * rule.scale
    return numbers * float_bytes(precision, lowering)


def head_bytes(rows: int, columns: int, precision: str, lowering: str = ON_GPU) -> int:
    """An output head [rows, columns]: in int8 beside layers that are rounded, or as the floats."""
    if precision not in FLOAT_BYTES and ROUNDINGS[lowering].int8:
        return matrix_bytes(rows, columns, "int8", lowering)
    return rows * columns * float_bytes(precision, lowering)


def weights_of(
    tensors: Sequence[Tensor], vocabularies: Collection[int], *, quantised: bool
) -> Weights:
    """Sorts tensors: ``quantised`` for a decoder, whose matrices take part in it except heads and
    those with as many rows or columns as a vocabulary (token tables); a tower's all stay floating
    point.

    Of what is integers already the scales are left out: ``nbytes`` adds them.
    """
    integers = [t for t in tensors if t.kind in INTEGERS and product_shape(t)]
    scales = {f"{t.name}.scale" for t in integers}
    flat = [t for t in tensors if product_shape(t) and t.name not in scales] if quantised else []
    heads = [t for t in flat if t.name.startswith(HEAD)]
    products = [t for t in flat if t not in heads and not set(vocabularies) & set(t.dims)]
    matrices = [t for t in products if t in integers] or [t for t in products if t.is_float]
    others = [t for t in tensors if t not in (*matrices, *heads) and t.name not in scales]
    return Weights(
        tuple(shape for t in matrices if (shape := product_shape(t))),
        tuple(shape for t in heads if (shape := product_shape(t))),
        sum(t.count for t in others if t.is_float),
        sum(t.nbytes for t in others if not t.is_float),
    )


def product_shape(tensor: Tensor) -> tuple[int, int] | None:
    """[in, out] of a matrix, however it is stored; None for another tensor."""
    blocks = BLOCKS.search(tensor.name)
    if blocks and len(tensor.dims) == 3:
        return tensor.dims[1] * int(blocks[2]), tensor.dims[0]
    if len(tensor.dims) == 2 and not tensor.name.startswith(ROTARY):
        return tensor.dims[0], tensor.dims[1]
    return None
