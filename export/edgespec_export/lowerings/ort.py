"""ONNX Runtime's fast operators: GroupQueryAttention writing the KV cache in place.

Chosen by measurement (fewest nodes and fastest at every size on small CPUs, docs/performance.md).
GroupQueryAttention stays causal below its ``attention_bias``: tree order puts ancestors first, so
the causal triangle never hides what the mask allows.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgespec_export.builder import CONTRIB, GraphBuilder
from edgespec_export.geometry import TextGeometry
from edgespec_export.lowerings.base import CONTRACT, PAST_LENGTH, Cache, Given, StepInputs
from edgespec_export.precision import Precision

# Finite, in float16 as well, so that no row of scores can become -inf minus -inf; exp() of it is
# exactly zero.
MASKED = -6e4


class OrtLowering:
    name = "ort"
    mask_span = "total"
    in_place = True
    lengths = PAST_LENGTH
    names_best = False

    def __init__(self, precision: Precision) -> None:
        self._precision = precision

    def graph(self, name: str) -> GraphBuilder:
        return GraphBuilder(name, 17, self._precision)

    @property
    def chains(self) -> OrtLowering:
        return self

    def step_inputs(
        self, b: GraphBuilder, text: TextGeometry, cos: str, sin: str, given: Given = CONTRACT
    ) -> StepInputs:
        allowed, masked = b.number(0.0), b.number(MASKED)
        bias = b.node("Where", given.mask, allowed, masked)
        new = b.node("Shape", given.positions, start=1, end=2)
        last = b.node("Sub", b.node("Add", given.past, new), b.constant([1]))
        total = b.node("Squeeze", b.node("Shape", given.mask, start=3, end=4))
        lengths = (b.node("Cast", last, to=6), b.node("Cast", total, to=6))  # 6 = int32
        return StepInputs(bias, given.positions, cos, sin, lengths)

    def rms_norm(self, b: GraphBuilder, x: str, scale: str, eps: float) -> str:
        return b.node("SimplifiedLayerNormalization", x, scale, axis=-1, epsilon=eps, stash_type=1)

    def add_rms_norm(
        self, b: GraphBuilder, x: str, residual: str, scale: str, eps: float
    ) -> tuple[str, str]:
        names = b.nodes(
            "SkipSimplifiedLayerNormalization",
            x,
            residual,
            scale,
            outputs=["*", "", "", "*"],
            domain=CONTRIB,
            epsilon=eps,
        )
        return names[0], names[3]

    def chained(
        self, b: GraphBuilder, text: TextGeometry, step: StepInputs, positions: str, ahead: int
    ) -> StepInputs:
        more = b.constant(ahead, "int32")
        last, total = (b.node("Add", length, more) for length in step.own)
        # One row sees all rows before it, and GroupQueryAttention is causal: no mask is needed.
        return StepInputs("", positions, step.cos, step.sin, (last, total))

    def following(self, past: Sequence[Cache], written: Sequence[Cache]) -> list[Cache]:
        return list(past)  # the same memory, the new rows in it

    def attention(
        self, b: GraphBuilder, qkv: str, past: Cache, text: TextGeometry, step: StepInputs
    ) -> tuple[str, Cache]:
        mixed, key, value = b.nodes(
            "GroupQueryAttention",
            qkv,
            "",
            "",
            *past,
            *step.own,
            step.cos,
            step.sin,
            step.positions,
            step.mask,
            outputs=3,
            domain=CONTRIB,
            num_heads=text.heads,
            kv_num_heads=text.kv_heads,
            do_rotary=1,
            rotary_interleaved=0,
        )
        return mixed, (key, value)

    def gated_silu(self, b: GraphBuilder, gate_up: str) -> str:
        gate, up = b.nodes("Split", gate_up, outputs=2, axis=-1)
        silu = b.node("QuickGelu", gate, domain=CONTRIB, alpha=1.0)
        return b.node("Mul", silu, up)

    def full_attention(
        self, b: GraphBuilder, q: str, k: str, v: str, heads: int, width: int
    ) -> str:
        return b.node("MultiHeadAttention", q, k, v, domain=CONTRIB, num_heads=heads)
