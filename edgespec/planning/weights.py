"""What a graph's weights take in each precision, by the shapes of its tensors."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from edgespec.planning.stored import Tensor

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")
"""From the largest to the smallest."""
FLOAT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 2, "int4": 2}
"""Of a number that is computed with: activations, norms, and what is not quantised."""
SCALE_BYTES = 2
INT4_BLOCKS = (128, 64, 32)
"""Rows that share an int4 scale: the first of these that divides a matrix."""
INTEGERS = frozenset({2, 3, 21, 22})
"""TensorProto.DataType of quantised matrices: uint8, int8, uint4, int4"""
ROTARY = "rotary."


@dataclass(frozen=True)
class Weights:
    """The parameters of one graph, its own alone where it shares others."""

    matrices: tuple[tuple[int, int], ...] = ()
    """[in, out] of the products that int8 and int4 quantise;"""
    floats: int = 0
    """the numbers that stay floating point there (heads, norms, towers, rotary tables);"""
    fixed: int = 0
    """and the bytes that are the same in every precision (indices)."""

    def nbytes(self, precision: str) -> int:
        """Bytes stored, the padding between tensors left out."""
        size = FLOAT_BYTES[precision]
        matrices = sum(matrix_bytes(rows, columns, precision) for rows, columns in self.matrices)
        return matrices + self.floats * size + self.fixed

    def largest_bytes(self, precision: str) -> int:
        """Of the largest matrix once its quantisation is undone; 0 where nothing is quantised."""
        if precision not in ("int8", "int4"):
            return 0
        return max((rows * columns for rows, columns in self.matrices), default=0) * SCALE_BYTES


def matrix_bytes(rows: int, columns: int, precision: str) -> int:
    """A matrix [rows, columns] with its scales: one per column in int8, one per block and column in
    int4, where a matrix that no block divides stays in float16."""
    numbers = rows * columns
    if precision == "int8":
        return numbers + columns * SCALE_BYTES
    block = next((size for size in INT4_BLOCKS if rows % size == 0), 0)
    if precision == "int4" and block:
        return (numbers + 1) // 2 + numbers // block * SCALE_BYTES
    return numbers * FLOAT_BYTES[precision]


def weights_of(
    tensors: Sequence[Tensor], vocabularies: Collection[int], *, quantised: bool
) -> Weights:
    """Sorts tensors: ``quantised`` for a decoder, whose matrices take part in it except those with
    as many rows or columns as a vocabulary (head, token table); a tower's all stay floating point.

    Of matrices that are integers already the scales are left out: ``matrix_bytes`` adds them.
    """
    flat = [t for t in tensors if len(t.dims) == 2 and not t.name.startswith(ROTARY)]
    products = [t for t in flat if quantised and not set(vocabularies) & set(t.dims)]
    integers = [t for t in products if t.kind in INTEGERS]
    matrices = integers or [t for t in products if t.is_float]
    scales = {f"{t.name}.scale" for t in integers}
    others = [t for t in tensors if t not in matrices and t.name not in scales]
    return Weights(
        tuple((t.dims[0], t.dims[1]) for t in matrices),
        sum(t.count for t in others if t.is_float),
        sum(t.nbytes for t in others if not t.is_float),
    )
