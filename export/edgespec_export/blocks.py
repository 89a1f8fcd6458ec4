"""Blocks that every lowering shares, and weights as they stream out of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgespec_export.builder import FLOATS, Array, GraphBuilder, Weight
from edgespec_export.checkpoint import Checkpoint
from edgespec_export.geometry import Rope
from edgespec_export.quantise.matrix import Matrix


def stored(checkpoint: Checkpoint, name: str) -> Weight:
    """A tensor as it is."""
    return Weight(checkpoint.shapes[name], FLOATS, lambda: checkpoint.tensor(name))


def norm_scale(b: GraphBuilder, checkpoint: Checkpoint, name: str) -> str:
    """The weights of a norm, by its name in the checkpoint."""
    return b.weight(f"{name}.weight", stored(checkpoint, f"{name}.weight"))


def linear(
    b: GraphBuilder,
    x: str,
    checkpoint: Checkpoint,
    names: Sequence[str],
    label: str,
    *,
    part: str = "",
) -> str:
    """x @ W.T (+ bias) for one linear layer, or several that read the same input, packed.

    ``names`` are checkpoint names without ``.weight``; outputs are concatenated in that order.
    ``part``: of a decoder, see ``GraphBuilder.product``.
    """
    weights = [f"{name}.weight" for name in names]
    rows = sum(checkpoint.shapes[w][0] for w in weights)
    columns = checkpoint.shapes[weights[0]][1]

    def pieces() -> Iterator[Array]:
        return (piece for weight in weights for piece in checkpoint.pieces(weight))

    y = b.product(x, f"{label}.weight", Matrix(columns, rows, pieces), part)
    biases = [f"{name}.bias" for name in names if f"{name}.bias" in checkpoint.shapes]
    if not biases:
        return y

    def load_bias() -> Array:
        return np.concatenate([checkpoint.tensor(bias) for bias in biases])

    return b.node("Add", y, b.weight(f"{label}.bias", Weight((rows,), FLOATS, load_bias)))


def convolution(
    b: GraphBuilder, x: str, checkpoint: Checkpoint, names: Sequence[str], **window: Any
) -> str:
    """Convolution of [N, C, ...] with the checkpoint's kernel and, where named, bias."""
    kind = b.windows
    weights = [b.weight(n, replace(stored(checkpoint, n), kind=kind)) for n in names]
    y = b.node("Conv", b.cast(x, b.floats, kind), *weights, **window)
    return b.cast(y, kind, b.floats)


def averages(b: GraphBuilder, x: str, **window: Any) -> str:
    """Averages of windows of [N, C, ...]; those over an edge are of what they hold."""
    y = b.node("AveragePool", b.cast(x, b.floats, b.windows), **window)
    return b.cast(y, b.windows, b.floats)


def layer_norm(b: GraphBuilder, x: str, checkpoint: Checkpoint, name: str, eps: float) -> str:
    """Layer norm over the last axis."""
    scale = norm_scale(b, checkpoint, name)
    bias = b.weight(f"{name}.bias", stored(checkpoint, f"{name}.bias"))
    return b.node("LayerNormalization", x, scale, bias, axis=-1, epsilon=eps)


def activation(b: GraphBuilder, x: str, kind: str) -> str:
    """gelu (erf), quick_gelu (x * sigmoid(1.702 x)) or gelu_pytorch_tanh."""
    if kind == "quick_gelu":
        gate = b.node("Sigmoid", b.node("Mul", x, b.number(1.702)))
        return b.node("Mul", x, gate)
    if kind == "gelu":
        inner = b.node("Erf", b.node("Mul", x, b.number(0.5**0.5)))
    else:
        cube = b.node("Mul", b.node("Mul", x, x), x)
        scaled = b.node("Mul", cube, b.number(0.044715))
        argument = b.node("Mul", b.node("Add", x, scaled), b.number((2 / np.pi) ** 0.5))
        inner = b.node("Tanh", argument)
    half = b.node("Mul", x, b.number(0.5))
    return b.node("Mul", half, b.node("Add", inner, b.number(1.0)))


def rotary_tables(rope: Rope, width: int, positions: int) -> tuple[Array, Array]:
    """cos and sin [positions, width / 2] in float32, with the scaling rule applied.

    Rounded to float32 where Hugging Face rounds: one bit in a frequency is 0.01 rad at position
    100,000. Both agree to the last bit in all but a frequency here and there.
    """
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    powers = np.power(rope.theta, exponents.astype(np.float64)).astype(np.float32)
    frequencies = np.float32(1.0) / powers
    if rope.kind == "linear":
        frequencies = frequencies / np.float32(rope.factor)
    elif rope.kind == "llama3":
        frequencies = _llama3(frequencies, rope)
    angles = np.outer(np.arange(positions, dtype=np.float32), frequencies)
    return np.cos(angles, dtype=np.float32), np.sin(angles, dtype=np.float32)


def _llama3(frequencies: Array, rope: Rope) -> Array:
    """Llama 3.1's rule: long wavelengths are slowed by ``factor``, with a smooth middle band."""
    wavelengths = 2 * np.pi / frequencies
    low = rope.original_max_position / rope.low_freq_factor
    high = rope.original_max_position / rope.high_freq_factor
    span = rope.high_freq_factor - rope.low_freq_factor
    smooth = (rope.original_max_position / wavelengths - rope.low_freq_factor) / span
    middle = (1 - smooth) * frequencies / rope.factor + smooth * frequencies
    slowed = np.where(wavelengths > low, frequencies / rope.factor, frequencies)
    banded = np.where((wavelengths <= low) & (wavelengths >= high), middle, slowed)
    return banded.astype(np.float32)
