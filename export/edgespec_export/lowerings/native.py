"""Standard operators of opset 24: TensorScatter into a static cache, Attention under a bool mask.

The common denominator of ONNX Runtime and TensorRT >= 10.15: one Attention output, no past_key, no
is_causal and no nonpad_kv_seqlen (TensorRT drops it without a word), so the mask spans the whole
cache capacity and hides what is not written yet. TensorRT refuses softmax_precision as well.
"""

from __future__ import annotations

from edgespec_export.builder import GraphBuilder
from edgespec_export.geometry import TextGeometry
from edgespec_export.lowerings.base import (
    CONTRACT,
    PAST_LENGTH,
    Cache,
    ChainLowering,
    Given,
    StepInputs,
)
from edgespec_export.lowerings.portable import MASKED, PortableLowering
from edgespec_export.precision import Precision


class NativeLowering:
    name = "native"
    mask_span = "capacity"
    in_place = True
    lengths = PAST_LENGTH
    names_best = True

    def __init__(self, precision: Precision) -> None:
        self._precision = precision

    def graph(self, name: str) -> GraphBuilder:
        return GraphBuilder(name, 24, self._precision)

    @property
    def chains(self) -> ChainLowering:
        """TensorRT writes a cache once in a graph, so the rows of a chain are kept apart."""
        return PortableLowering(self._precision)

    def step_inputs(
        self, b: GraphBuilder, text: TextGeometry, cos: str, sin: str, given: Given = CONTRACT
    ) -> StepInputs:
        mask = given.mask
        if b.floats == "bfloat16":  # TensorRT fails to build several layers below one bool mask
            mask = b.node("Where", mask, b.number(0.0), b.number(MASKED))
        return StepInputs(mask, given.positions, cos, sin, (given.past,))

    def rms_norm(self, b: GraphBuilder, x: str, scale: str, eps: float) -> str:
        return b.node("RMSNormalization", x, scale, axis=-1, epsilon=eps)

    def add_rms_norm(
        self, b: GraphBuilder, x: str, residual: str, scale: str, eps: float
    ) -> tuple[str, str]:
        total = b.node("Add", x, residual)
        return self.rms_norm(b, total, scale, eps), total

    def attention(
        self, b: GraphBuilder, qkv: str, past: Cache, text: TextGeometry, step: StepInputs
    ) -> tuple[str, Cache]:
        widths = [text.heads, text.kv_heads, text.kv_heads]
        split = b.constant([n * text.head_dim for n in widths])
        parts = b.nodes("Split", qkv, split, outputs=3, axis=-1)
        q, k, v = (
            self._heads(b, part, n, text.head_dim) for part, n in zip(parts, widths, strict=True)
        )
        q, k = (b.node("RotaryEmbedding", x, step.cos, step.sin, step.positions) for x in (q, k))
        key, value = (
            b.node("TensorScatter", cache, new, *step.own, axis=2)
            for cache, new in zip(past, (k, v), strict=True)
        )
        mixed = b.node("Attention", q, key, value, step.mask, scale=text.head_dim**-0.5)
        mixed = b.node("Transpose", mixed, perm=[0, 2, 1, 3])
        mixed = b.node("Reshape", mixed, b.constant([0, 0, text.heads * text.head_dim]))
        return mixed, (key, value)

    def gated_silu(self, b: GraphBuilder, gate_up: str) -> str:
        gate, up = b.nodes("Split", gate_up, outputs=2, axis=-1, num_outputs=2)
        return b.node("Mul", b.node("Mul", gate, b.node("Sigmoid", gate)), up)

    def full_attention(
        self, b: GraphBuilder, q: str, k: str, v: str, heads: int, width: int
    ) -> str:
        return b.node("Attention", q, k, v, q_num_heads=heads, kv_num_heads=heads)

    def _heads(self, b: GraphBuilder, x: str, heads: int, width: int) -> str:
        split = b.node("Reshape", x, b.constant([0, 0, heads, width]))
        return b.node("Transpose", split, perm=[0, 2, 1, 3])  # [B, heads, S, D]
