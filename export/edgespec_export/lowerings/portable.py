"""Basic operators of opset 20, for TensorRT 10.3 to 10.14, which know no Attention and no cache.

Nothing is written into the cache: scores against it and against the new rows stand side by side in
one softmax, and the new rows come out for the engine to put behind it. Rotation, norm and gate are
spelled out. Query heads that share a key head are stacked, so that no key is repeated.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgespec_export.builder import GraphBuilder
from edgespec_export.geometry import TextGeometry
from edgespec_export.lowerings.base import CONTRACT, PAST_LENGTH, Cache, Given, StepInputs
from edgespec_export.precision import Precision

MASKED = -6e4
"""Added to scores that do not count. Finite: a row of nothing else gives an average, never NaN."""
END = (1 << 63) - 1
SWAP = [0, 2, 1, 3]


class PortableLowering:
    name = "portable"
    mask_span = "behind"
    in_place = False
    lengths = PAST_LENGTH
    names_best = True

    def __init__(self, precision: Precision) -> None:
        self._precision = precision

    def graph(self, name: str) -> GraphBuilder:
        return GraphBuilder(name, 20, self._precision)

    @property
    def chains(self) -> PortableLowering:
        return self

    def step_inputs(
        self, b: GraphBuilder, text: TextGeometry, cos: str, sin: str, given: Given = CONTRACT
    ) -> StepInputs:
        zero, masked = b.constant(0.0, "float32"), b.constant(MASKED, "float32")
        bias = b.node("Where", given.mask, zero, masked)
        shared = text.heads // text.kv_heads
        bias = b.node("Concat", *[bias] * shared, axis=2) if shared > 1 else bias
        turns = _turns(b, cos, sin, given.positions)
        return StepInputs(bias, given.positions, *turns, (cos, sin))

    def rms_norm(self, b: GraphBuilder, x: str, scale: str, eps: float) -> str:
        wide = b.float32(x)
        mean = b.node("ReduceMean", b.node("Mul", wide, wide), b.constant([-1]), keepdims=1)
        root = b.node("Sqrt", b.node("Add", mean, b.constant(eps, "float32")))
        return b.node("Mul", b.floating(b.node("Div", wide, root)), scale)

    def add_rms_norm(
        self, b: GraphBuilder, x: str, residual: str, scale: str, eps: float
    ) -> tuple[str, str]:
        total = b.node("Add", x, residual)
        return self.rms_norm(b, total, scale, eps), total

    def chained(
        self, b: GraphBuilder, text: TextGeometry, step: StepInputs, positions: str, ahead: int
    ) -> StepInputs:
        last = _slice(b, step.mask, b.constant([-1]), b.constant([END]), 2)
        itself = _slice(b, last, b.constant([-1]), b.constant([END]), 3)
        bias = b.node("Concat", last, *[itself] * ahead, axis=3)
        cos, sin = step.own
        return StepInputs(bias, positions, *_turns(b, cos, sin, positions), step.own)

    def following(self, past: Sequence[Cache], written: Sequence[Cache]) -> list[Cache]:
        return list(written)

    def attention(
        self, b: GraphBuilder, qkv: str, past: Cache, text: TextGeometry, step: StepInputs
    ) -> tuple[str, Cache]:
        widths = [text.heads, text.kv_heads, text.kv_heads]
        split = b.constant([n * text.head_dim for n in widths])
        parts = b.nodes("Split", qkv, split, outputs=3, axis=-1)
        q, k, v = (_heads(b, part, n, text.head_dim) for part, n in zip(parts, widths, strict=True))
        q, k = (_rotated(b, x, step) for x in (q, k))
        key, value, *before = past
        if before:  # the rows of earlier steps of a chain
            k, v = (b.node("Concat", *pair, axis=2) for pair in zip(before, (k, v), strict=True))
        q = b.node("Mul", q, b.number(text.head_dim**-0.5))  # before the product: float16 is small
        grouped = text.heads != text.kv_heads
        if grouped:  # [B, KV, G S, D]: the group's heads one behind the other
            q = b.node("Reshape", q, b.constant([0, text.kv_heads, -1, text.head_dim]))
        scores = b.node("Concat", _scores(b, q, key), _scores(b, q, k), axis=-1)
        weights = _softmax(b, scores, step.mask)
        cached = b.node("Shape", key, start=2, end=3)
        seen = _slice(b, weights, b.constant([0]), cached, 3)
        new = _slice(b, weights, cached, b.constant([END]), 3)
        mixed = b.node("Add", b.node("MatMul", seen, value), b.node("MatMul", new, v))
        if grouped:
            mixed = b.node("Reshape", mixed, b.constant([0, text.heads, -1, text.head_dim]))
        return _joined(b, mixed, text.heads * text.head_dim), (key, value, k, v)

    def gated_silu(self, b: GraphBuilder, gate_up: str) -> str:
        gate, up = b.nodes("Split", gate_up, outputs=2, axis=-1, num_outputs=2)
        return b.node("Mul", b.node("Mul", gate, b.node("Sigmoid", gate)), up)

    def full_attention(
        self, b: GraphBuilder, q: str, k: str, v: str, heads: int, width: int
    ) -> str:
        q, k, v = (_heads(b, x, heads, width // heads) for x in (q, k, v))
        q = b.node("Mul", q, b.number((width // heads) ** -0.5))
        return _joined(b, b.node("MatMul", _softmax(b, _scores(b, q, k)), v), width)


def _heads(b: GraphBuilder, x: str, heads: int, width: int) -> str:
    """[B, S, heads D] -> [B, heads, S, D]."""
    return b.node("Transpose", b.node("Reshape", x, b.constant([0, 0, heads, width])), perm=SWAP)


def _joined(b: GraphBuilder, x: str, width: int) -> str:
    """[B, heads, S, D] -> [B, S, heads D]."""
    return b.node("Reshape", b.node("Transpose", x, perm=SWAP), b.constant([0, 0, width]))


def _turns(b: GraphBuilder, cos: str, sin: str, positions: str) -> tuple[str, str]:
    """The tables' rows of ``positions``, [B, 1, S, D / 2]: for all heads."""
    one = b.constant([1])
    rows = (b.node("Gather", table, positions, axis=0) for table in (cos, sin))
    cosines, sines = (b.node("Unsqueeze", row, one) for row in rows)
    return cosines, sines


def _rotated(b: GraphBuilder, x: str, step: StepInputs) -> str:
    """Rotary positions of [B, heads, S, D], whose halves are the pairs' two coordinates."""
    first, second = b.nodes("Split", x, outputs=2, axis=-1, num_outputs=2)
    left = b.node("Sub", b.node("Mul", first, step.cos), b.node("Mul", second, step.sin))
    right = b.node("Add", b.node("Mul", second, step.cos), b.node("Mul", first, step.sin))
    return b.node("Concat", left, right, axis=-1)


def _scores(b: GraphBuilder, q: str, k: str) -> str:
    return b.node("MatMul", q, b.node("Transpose", k, perm=[0, 1, 3, 2]))


def _softmax(b: GraphBuilder, scores: str, bias: str = "") -> str:
    """Over the last axis, in float32."""
    wide = b.float32(scores)
    wide = b.node("Add", wide, bias) if bias else wide
    return b.floating(b.node("Softmax", wide, axis=-1))


def _slice(b: GraphBuilder, x: str, start: str, end: str, axis: int) -> str:
    return b.node("Slice", x, start, end, b.constant([axis]))
