"""Products with quantised weights in ONNX Runtime's own integer kernels.

int8 on the CPU: every row of activations is scaled to its own largest value and rounded to uint8
around 128, the one form that has a fast kernel with int8 weights; sums of a row's products are
exact integers, whatever other rows run beside it. int4, and on CUDA int8: MatMulNBits, which reads
blocks of weights that share a scale (docs/precision.md has the measurements).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from edgespec_export.quantise.gptq import Root
from edgespec_export.quantise.matrix import Matrix
from edgespec_export.quantise.rounding import BlockWeights, RowWeights

if TYPE_CHECKING:
    from edgespec_export.builder import GraphBuilder

CONTRIB = "com.microsoft"
FLOAT = 1  # ONNX's number of float32
INTEGER_KERNELS = 4  # accuracy_level: activations in int8, block by block
LARGEST = 127


def row_wise(b: GraphBuilder, x: str, name: str, matrix: Matrix) -> str:
    """x [.., inputs] @ ``matrix`` in int8, in float32 graphs."""
    from edgespec_export.builder import Weight

    weights = RowWeights(matrix)
    shape = (matrix.inputs, matrix.outputs)
    numbers = b.weight(f"{name}.rows8", Weight(shape, "int8", weights.numbers))
    scale = Weight(
        (matrix.outputs,), "float32", lambda: weights.scales() / np.float32(LARGEST), at_hand=True
    )
    scales = b.weight(f"{name}.rows8.scale", scale)
    codes, largest, middle = b.shared(("row_wise", x), lambda: _coded(b, x))
    sums = b.node("Cast", b.node("MatMulInteger", codes, numbers, middle), to=FLOAT)
    return b.node("Mul", b.node("Mul", sums, largest), scales)


def _coded(b: GraphBuilder, x: str) -> tuple[str, str, str]:
    """Rows as uint8, their largest magnitudes and the zero point. A row of zeros is divided by
    zero: its codes are arbitrary, but they are multiplied by its largest magnitude."""
    largest = b.node("ReduceMax", b.node("Abs", x), axes=[-1], keepdims=1)
    step, middle = b.constant(1 / LARGEST, "float32"), b.constant(128, "uint8")
    codes = b.node("QuantizeLinear", b.node("Div", x, largest), step, middle)
    return codes, largest, middle


def block_wise(
    b: GraphBuilder,
    x: str,
    name: str,
    matrix: Matrix,
    bits: int,
    block: int,
    root: Callable[[], Root | None],
) -> str:
    """x [.., inputs] @ ``matrix`` in ``bits`` bits, ``block`` inputs to a scale."""
    from edgespec_export.builder import FLOATS, Weight

    weights = BlockWeights(matrix, bits, block, root)
    label = f"{name}.blocks{bits}.{block}"
    numbers = b.weight(label, Weight(weights.shape, "uint8", weights.numbers))
    shape = weights.shape[:2]
    scales = b.weight(f"{label}.scale", Weight(shape, FLOATS, weights.scales, at_hand=True))
    return b.node(
        "MatMulNBits",
        x,
        numbers,
        scales,
        domain=CONTRIB,
        K=matrix.inputs,
        N=matrix.outputs,
        bits=bits,
        block_size=block,
        accuracy_level=INTEGER_KERNELS,
    )
