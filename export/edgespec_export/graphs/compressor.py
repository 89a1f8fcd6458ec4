"""Compressor graphs: they shorten the draft's visual tokens. The target's are never touched.

``image_embeds`` [N, P, H] -> ``compressed`` [N, P', H]. A gated (elastic) compressor also reads
``question`` [1, H], the mean feature of the prompt's text after its last image; ViSpec's adaptor
also gives ``offset`` [N, H], its global vector as the rows behind the image carry it.
"""

from __future__ import annotations

import numpy as np

from edgespec_export.blocks import activation, averages, convolution, linear
from edgespec_export.builder import FLOATS, Array, GraphBuilder, Weight
from edgespec_export.checkpoint import Checkpoint
from edgespec_export.compression import Compression, kept_tokens, square_window
from edgespec_export.heads.folded import Folded
from edgespec_export.lowerings import Lowering


def build_compressor(
    compression: Compression,
    visual: int,
    width: int,
    heads: int,
    lowering: Lowering,
    weights: Checkpoint | None = None,
) -> GraphBuilder:
    """The graph of ``compression`` over ``visual`` tokens of ``width``; trained kinds read their
    tensors ``compressor.*`` from ``weights``."""
    b = lowering.graph("compressor")
    x = b.given("image_embeds", ["N", visual, width])
    layers = _Layers(b, lowering, visual, width, heads, weights)
    out = layers.apply(compression, x, "compressor")
    count: int | str = compression.tokens(visual)
    if compression.kind == "select":
        count = "P"
    b.give(out, "compressed", ["N", count, width])
    return b


def build_adaptor(folded: Folded, visual: int, lowering: Lowering) -> GraphBuilder:
    """ViSpec's adaptor: all outputs but the last are tokens, the last is the global vector."""
    text, queries = folded.geometry.text, folded.geometry.queries
    b = lowering.graph("compressor")
    x = b.given("image_embeds", ["N", visual, text.hidden])
    layers = _Layers(b, lowering, visual, text.hidden, text.heads, folded.head)
    out = layers.attend(x, "imadpt", queries)
    tokens = b.node("Slice", out, b.constant([0]), b.constant([queries - 1]), b.constant([1]))
    b.give(tokens, "compressed", ["N", queries - 1, text.hidden])
    last = b.node("Gather", out, b.constant(queries - 1), axis=1)
    shape = (text.hidden, text.hidden)
    matrix = b.matrix("img_fc.offset", Weight(shape, FLOATS, folded.offset_map))
    b.give(b.node("MatMul", last, matrix), "offset", ["N", text.hidden])
    return b


class _Layers:
    """The kinds as nodes; ``prefix`` is where a kind's tensors lie in the checkpoint."""

    def __init__(
        self,
        b: GraphBuilder,
        lowering: Lowering,
        visual: int,
        width: int,
        heads: int,
        weights: Checkpoint | None,
    ) -> None:
        self.b, self.lowering, self.visual, self.width = b, lowering, visual, width
        self.heads = heads
        self._weights = weights
        self._question = ""

    @property
    def weights(self) -> Checkpoint:
        assert self._weights is not None, "a trained compressor without its weights"
        return self._weights

    def apply(self, compression: Compression, x: str, prefix: str) -> str:
        """[N, P, H] -> [N, P', H]."""
        kind, amount, b = compression.kind, compression.amount, self.b
        if kind in ("prune", "stride"):
            return b.node("Gather", x, b.constant(kept_tokens(kind, self.visual, amount)), axis=1)
        if kind == "pool":
            return self._pool(x, amount)
        if kind == "conv":
            return self._convolve(x, amount, prefix)
        if kind == "resampler":
            return self.attend(x, f"{prefix}.attention", amount)
        if kind == "text-only":
            return self._rows(x, 0, 0)
        parts = [
            self.apply(branch, x, f"{prefix}.branches.{i}")
            for i, branch in enumerate(compression.branches)
        ]
        joined = b.node("Concat", *parts, axis=1)
        if kind == "concat":
            return joined
        scores = self._gate(f"{prefix}.gate")
        return (self._select if kind == "select" else self._weigh)(compression, joined, scores)

    def attend(self, x: str, prefix: str, queries: int) -> str:
        """Learned queries over the tokens: [N, P, H] -> [N, queries, H]."""
        b = self.b
        names = [f"{prefix}.{part}_proj" for part in "kv"]
        both = linear(b, x, self.weights, names, f"{prefix}.kv")
        keys, values = b.nodes("Split", both, b.constant([self.width] * 2), outputs=2, axis=-1)
        learned = f"{prefix}.q"

        def flat() -> Array:
            return self.weights.tensor(learned).reshape(1, queries, self.width)

        q = b.weight(learned, Weight((1, queries, self.width), FLOATS, flat))
        batch = b.node("Shape", x, start=0, end=1)
        shape = b.node("Concat", batch, b.constant([queries, self.width]), axis=0)
        q = b.node("Expand", q, shape)
        mixed = self.lowering.full_attention(b, q, keys, values, self.heads, self.width)
        return linear(b, mixed, self.weights, [f"{prefix}.o_proj"], f"{prefix}.o")

    def _pool(self, x: str, ratio: int) -> str:
        """Square windows of the grid, or runs in raster order; edges average what they hold."""
        b, window = self.b, square_window(ratio, self.visual)
        x = b.node("Transpose", x, perm=[0, 2, 1])
        if not window:
            pad = -self.visual % ratio
            x = averages(b, x, kernel_shape=[ratio], strides=[ratio], pads=[0, pad])
            return b.node("Transpose", x, perm=[0, 2, 1])
        grid = int(self.visual**0.5)
        pad = -grid % window
        x = b.node("Reshape", x, b.constant([0, self.width, grid, grid]))
        sides = [window, window]
        x = averages(b, x, kernel_shape=sides, strides=sides, pads=[0, 0, pad, pad])
        x = b.node("Reshape", x, b.constant([0, self.width, -1]))
        return b.node("Transpose", x, perm=[0, 2, 1])

    def _convolve(self, x: str, ratio: int, prefix: str) -> str:
        b = self.b
        names = [f"{prefix}.{part}" for part in ("weight", "bias")]
        x = b.node("Transpose", x, perm=[0, 2, 1])
        pads = [0, -self.visual % ratio]
        x = convolution(b, x, self.weights, names, kernel_shape=[ratio], strides=[ratio], pads=pads)
        return b.node("Transpose", x, perm=[0, 2, 1])

    def _gate(self, prefix: str) -> str:
        """Scores [1, branches] of the question."""
        b = self.b
        self._question = self._question or b.given("question", [1, self.width])
        inner = linear(b, self._question, self.weights, [f"{prefix}.0"], f"{prefix}.0")
        inner = activation(b, inner, "gelu")
        return linear(b, inner, self.weights, [f"{prefix}.2"], f"{prefix}.2")

    def _select(self, compression: Compression, joined: str, scores: str) -> str:
        """The rows of the best branch."""
        b = self.b
        counts = [branch.tokens(self.visual) for branch in compression.branches]
        ends = np.cumsum(counts)
        best = b.node("ArgMax", scores, axis=1, keepdims=0)  # [1]
        start = b.node("Gather", b.constant(ends - counts), best, axis=0)
        end = b.node("Gather", b.constant(ends), best, axis=0)
        return b.node("Slice", joined, start, end, b.constant([1]))

    def _weigh(self, compression: Compression, joined: str, scores: str) -> str:
        """The branches' rows, added up under the gate's softmax."""
        b, parts = self.b, len(compression.branches)
        weights = b.node("Softmax", scores, axis=1)
        weights = b.node("Reshape", weights, b.constant([1, parts, 1, 1]))
        count = compression.branches[0].tokens(self.visual)
        stacked = b.node("Reshape", joined, b.constant([0, parts, count, self.width]))
        return b.node("ReduceSum", b.node("Mul", stacked, weights), b.constant([1]), keepdims=0)

    def _rows(self, x: str, start: int, end: int) -> str:
        b = self.b
        return b.node("Slice", x, b.constant([start]), b.constant([end]), b.constant([1]))
