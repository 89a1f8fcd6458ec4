"""The step graph of a Llama-family decoder: prefill, drafting and verification are all this graph.

The contract (DESIGN, decision 3), B named for servers that batch sessions:

==================  =====================  ======================================================
``inputs_embeds``   [B, S, H] float32      new tokens, or visual tokens
``position_ids``    [B, S] int64           committed length + depth in the tree
``tree_mask``       [B, 1, S, T] bool      True = may attend; over cached rows and the S new ones
``past_length``     [B] int64              rows already in the cache; the new ones go behind them
                                           (lowering cuda is told otherwise)
``logit_index``     [R] int64              which of the S rows need logits
``past_key.i``      [B, KV, capacity, D]   the KV cache; ``present_key.i`` is the same buffer
==================  =====================  ======================================================

``inputs_embeds`` and what else is computed with is float32 whatever the graph's precision, as are
all outputs; only the caches are of the type that the graph computes with. A lowering that is not
``in_place`` reads the caches and gives ``new_key.i`` [B, KV, S, D] in place of ``present_key.i``.

Outputs: ``logits`` [B, R, V]; of the target of a GPU's lowering ``best_ids`` and ``best_logits``
[B, R], their arg-max; of the target of a feature-level draft ``hidden`` [B, S, F], every row's
feature. A draft, which may propose V_d of the V tokens, also gives ``topk_logprobs`` and
``topk_ids`` [B, R, K], so that the vocabulary need not cross into Python. They are the best of
log-softmax(logits * inv_temperature + noise), of two more inputs; ``logits`` stay raw:

==================  =====================  ======================================================
``noise``           [B, N, W] float32      N 1 or R, W 1 or V_d; a single 0: the plain ranking
``inv_temperature`` [1] float32            1: the draft's own distribution
==================  =====================  ======================================================
"""

from __future__ import annotations

from collections.abc import Sequence

from edgespec_export.blocks import rotary_tables
from edgespec_export.builder import FLOATS, Array, Axis, GraphBuilder, Weight
from edgespec_export.checkpoint import Checkpoint
from edgespec_export.geometry import TextGeometry
from edgespec_export.graphs.layers import stack
from edgespec_export.graphs.proposer import Proposer, coupling_inputs
from edgespec_export.lowerings import Lowering
from edgespec_export.lowerings.base import Cache, StepInputs

TREE_ROWS = 1024
"""Spare rows of the rotary tables. Nodes of a tree share positions, but each has a cache row of its
own, and GroupQueryAttention wants a table row for every cache row in use: without these, a tree
near the end of the context would be refused."""


FINAL = (-1,)
"""Features that are the final normed hidden state: what EAGLE-1/2 and its kin read."""


def build_decoder(
    checkpoint: Checkpoint,
    text: TextGeometry,
    proposer: Proposer,
    lowering: Lowering,
    *,
    name: str,
    top_k: int = 0,
    features: Sequence[int] = (),
) -> GraphBuilder:
    """The step graph; ``top_k`` > 0 adds the draft's log-softmax and top-k outputs, ``features``
    the output ``hidden``: FINAL, or what enters the named layers, side by side (EAGLE-3)."""
    b = lowering.graph(name)
    x, step, caches = begin_step(b, text, lowering)
    index = b.input("logit_index", "int64", ["R"])
    done = stack(b, checkpoint, text, lowering, x, caches, step)
    rows = b.node("Gather", done.normed, index, axis=1)
    logits = proposer.logits(b, rows)
    b.give(logits, "logits", ["B", "R", proposer.size])
    if features:
        states = [*done.entering, done.normed]  # as transformers numbers them
        parts = [states[k] for k in features]
        joined = b.node("Concat", *parts, axis=-1)
        b.give(joined, "hidden", ["B", "S", text.hidden * len(parts)])
    if top_k:
        logprobs, ids = proposer.best(b, "logits", top_k, coupling_inputs(b, "N"))
        b.output(logprobs, "topk_logprobs", "float32", ["B", "R", top_k])
        b.output(ids, "topk_ids", "int64", ["B", "R", top_k])
    elif lowering.names_best:
        _name_best(b)
    publish_caches(b, text, lowering, done.caches)
    return b


def begin_step(
    b: GraphBuilder, text: TextGeometry, lowering: Lowering
) -> tuple[str, StepInputs, list[Cache]]:
    """Declares the contract's inputs; returns the rows, what attention wants and the caches."""
    x = b.given("inputs_embeds", ["B", "S", text.hidden])
    b.input("position_ids", "int64", ["B", "S"])
    b.input("tree_mask", "bool", ["B", 1, "S", "T"])
    for name, dtype, axes in lowering.lengths:
        b.input(name, dtype, axes)
    caches = [begin_cache(b, text, str(layer)) for layer in range(text.layers)]
    return x, lowering.step_inputs(b, text, *rotary(b, text)), caches


def begin_cache(b: GraphBuilder, text: TextGeometry, label: str, batch: Axis = "B") -> Cache:
    """Declares one layer's cache as inputs."""
    axes = [batch, text.kv_heads, "C", text.head_dim]
    return tuple(b.input(f"past_{kind}.{label}", b.floats, axes) for kind in ("key", "value"))


def publish_caches(
    b: GraphBuilder,
    text: TextGeometry,
    lowering: Lowering,
    caches: Sequence[Cache],
    suffix: str = "",
    rows: Axis = "S",
) -> None:
    """Makes every layer's cache an output (``publish_cache``)."""
    for layer, written in enumerate(caches):
        publish_cache(b, text, lowering, written, f"{layer}{suffix}", "B", rows)


def publish_cache(
    b: GraphBuilder,
    text: TextGeometry,
    lowering: Lowering,
    written: Cache,
    label: str,
    batch: Axis,
    rows: Axis,
) -> None:
    """Makes a cache with the new rows in it an output, to be bound to the input's buffer; of a
    lowering that leaves the cache alone the new ``rows``, for the engine to put behind it."""
    name, length = ("present", "C") if lowering.in_place else ("new", rows)
    axes: list[Axis] = [batch, text.kv_heads, length, text.head_dim]
    for kind, value in zip(("key", "value"), written[-2:], strict=True):
        b.output(value, f"{name}_{kind}.{label}", b.floats, axes)


def _name_best(b: GraphBuilder) -> None:
    """The arg-max of all rows of ``logits``: plain greedy verification needs nothing else."""
    values, ids = b.nodes(
        "TopK", "logits", b.constant([1]), outputs=2, axis=-1, largest=1, sorted=1
    )
    last = b.constant([-1])
    b.output(b.node("Squeeze", values, last), "best_logits", "float32", ["B", "R"])
    b.output(b.node("Squeeze", ids, last), "best_ids", "int64", ["B", "R"])


def rotary(b: GraphBuilder, text: TextGeometry) -> tuple[str, str]:
    rows = text.max_positions + TREE_ROWS
    shape = (rows, text.head_dim // 2)

    def table(which: int) -> Array:
        return rotary_tables(text.rope, text.head_dim, rows)[which]

    cos = b.weight("rotary.cos", Weight(shape, FLOATS, lambda: table(0)))
    sin = b.weight("rotary.sin", Weight(shape, FLOATS, lambda: table(1)))
    return cos, sin
