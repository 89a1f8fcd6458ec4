"""The step graph of a Llama-family decoder: prefill, drafting and verification are all this graph.

The contract (DESIGN, decision 3), B named for servers that batch sessions:

==================  =====================  ======================================================
``inputs_embeds``   [B, S, H] float32      new tokens, or visual tokens
``position_ids``    [B, S] int64           committed length + depth in the tree
``tree_mask``       [B, 1, S, T] bool      True = may attend; over cached rows and the S new ones
``past_length``     [B] int64              rows already in the cache; the new ones go behind them
``logit_index``     [R] int64              which of the S rows need logits
``past_key.i``      [B, KV, capacity, D]   the KV cache; ``present_key.i`` is the same buffer
==================  =====================  ======================================================

Outputs: ``logits`` [B, R, V]; for the target of a feature-level draft ``hidden`` [B, S, F], every
row's feature. A draft, which may propose V_d of the V tokens, also gives ``topk_logprobs`` and
``topk_ids`` [B, R, K], so that the vocabulary need not cross into Python. They are the best of
log-softmax(logits * inv_temperature + noise), of two more inputs; ``logits`` stay raw:

==================  =====================  ======================================================
``noise``           [B, N, W] float32      N 1 or R, W 1 or V_d; a single 0: the plain ranking
``inv_temperature`` [1] float32            1: the draft's own distribution
==================  =====================  ======================================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from edgespec_export.blocks import F32, linear, rotary_tables, stored
from edgespec_export.builder import Array, GraphBuilder, Weight
from edgespec_export.checkpoint import Checkpoint
from edgespec_export.geometry import TextGeometry
from edgespec_export.graphs.proposer import Proposer, coupling_inputs
from edgespec_export.lowerings import Lowering
from edgespec_export.lowerings.base import Cache, StepInputs

TREE_ROWS = 1024
"""Spare rows of the rotary tables. Nodes of a tree share positions, but each has a cache row of its
own, and GroupQueryAttention wants a table row for every cache row in use: without these, a tree
near the end of the context would be refused."""


Written = TypeVar("Written")

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
    b = GraphBuilder(name, lowering.opset)
    step, caches = begin_step(b, text, lowering)
    index = b.input("logit_index", "int64", ["R"])
    done = stack(b, checkpoint, text, lowering, "inputs_embeds", caches, step)
    rows = b.node("Gather", done.normed, index, axis=1)
    logits = proposer.logits(b, rows)
    b.output(logits, "logits", "float32", ["B", "R", proposer.size])
    if features:
        states = [*done.entering, done.normed]  # as transformers numbers them
        parts = [states[k] for k in features]
        joined = b.node("Concat", *parts, axis=-1)
        b.output(joined, "hidden", "float32", ["B", "S", text.hidden * len(parts)])
    if top_k:
        logprobs, ids = proposer.best(b, "logits", top_k, coupling_inputs(b, "N"))
        b.output(logprobs, "topk_logprobs", "float32", ["B", "R", top_k])
        b.output(ids, "topk_ids", "int64", ["B", "R", top_k])
    publish_caches(b, text, done.caches)
    return b


@dataclass(frozen=True)
class Stacked:
    """All layers over some rows."""

    normed: str
    """After the final norm, [B, S, H]."""
    caches: list[Cache]
    entering: list[str]
    """The residual stream before every layer, [B, S, H]."""


def begin_step(
    b: GraphBuilder, text: TextGeometry, lowering: Lowering
) -> tuple[StepInputs, list[Cache]]:
    """Declares the contract's inputs; returns what attention wants and the caches' names."""
    b.input("inputs_embeds", "float32", ["B", "S", text.hidden])
    b.input("position_ids", "int64", ["B", "S"])
    b.input("tree_mask", "bool", ["B", 1, "S", "T"])
    b.input("past_length", "int64", ["B"])
    caches = [(f"past_key.{layer}", f"past_value.{layer}") for layer in range(text.layers)]
    for pair in caches:
        for name in pair:
            b.input(name, "float32", cache_axes(text))
    return lowering.step_inputs(b, *rotary(b, text)), caches


def publish_caches(
    b: GraphBuilder, text: TextGeometry, caches: Sequence[Cache], suffix: str = ""
) -> None:
    """Makes the caches with the new rows graph outputs, to be bound to the inputs' buffers."""
    for layer, (key, value) in enumerate(caches):
        b.output(key, f"present_key.{layer}{suffix}", "float32", cache_axes(text))
        b.output(value, f"present_value.{layer}{suffix}", "float32", cache_axes(text))


def stack(
    b: GraphBuilder,
    checkpoint: Checkpoint,
    text: TextGeometry,
    lowering: Lowering,
    x: str,
    caches: Sequence[Cache],
    step: StepInputs,
) -> Stacked:
    """All layers and the final norm over ``x`` [B, S, H]."""

    def attend(layer: int, qkv: str) -> tuple[str, Cache]:
        return lowering.attention(b, qkv, caches[layer], text, step)

    normed, entering, written = layers(b, checkpoint, text, lowering, x, attend)
    return Stacked(normed, written, entering)


Attend = Callable[[int, str], tuple[str, Written]]
"""(layer, packed qkv [B, S, (heads + 2 kv) D]) -> [B, S, heads D], and what it wrote."""


def layers(
    b: GraphBuilder,
    checkpoint: Checkpoint,
    text: TextGeometry,
    lowering: Lowering,
    x: str,
    attend: Attend[Written],
) -> tuple[str, list[str], list[Written]]:
    """The layers and the final norm around any attention: what is normed, what entered every
    layer, what attention wrote."""
    scale = _scale(b, checkpoint, "text.layers.0.input_layernorm")
    normed, residual = lowering.rms_norm(b, x, scale, text.eps), x
    written: list[Written] = []
    entering: list[str] = []
    for layer in range(text.layers):
        entering.append(residual)
        prefix = f"text.layers.{layer}"
        qkv_names = [f"{prefix}.self_attn.{part}_proj" for part in "qkv"]
        qkv = linear(b, normed, checkpoint, qkv_names, f"{prefix}.qkv")
        mixed, cache = attend(layer, qkv)
        written.append(cache)
        mixed = linear(b, mixed, checkpoint, [f"{prefix}.self_attn.o_proj"], f"{prefix}.o")
        scale = _scale(b, checkpoint, f"{prefix}.post_attention_layernorm")
        normed, residual = lowering.add_rms_norm(b, mixed, residual, scale, text.eps)
        gate_up_names = [f"{prefix}.mlp.{part}_proj" for part in ("gate", "up")]
        gate_up = linear(b, normed, checkpoint, gate_up_names, f"{prefix}.gate_up")
        down_names = [f"{prefix}.mlp.down_proj"]
        down = linear(b, lowering.gated_silu(b, gate_up), checkpoint, down_names, f"{prefix}.down")
        last = layer + 1 == text.layers
        following = "text.norm" if last else f"text.layers.{layer + 1}.input_layernorm"
        scale = _scale(b, checkpoint, following)
        normed, residual = lowering.add_rms_norm(b, down, residual, scale, text.eps)
    return normed, entering, written


def cache_axes(text: TextGeometry) -> list[int | str]:
    return ["B", text.kv_heads, "C", text.head_dim]


def _scale(b: GraphBuilder, checkpoint: Checkpoint, name: str) -> str:
    return b.weight(f"{name}.weight", stored(checkpoint, f"{name}.weight"))


def rotary(b: GraphBuilder, text: TextGeometry) -> tuple[str, str]:
    rows = text.max_positions + TREE_ROWS
    shape = (rows, text.head_dim // 2)

    def table(which: int) -> Array:
        return rotary_tables(text.rope, text.head_dim, rows)[which]

    cos = b.weight("rotary.cos", Weight(shape, F32, lambda: table(0)))
    sin = b.weight("rotary.sin", Weight(shape, F32, lambda: table(1)))
    return cos, sin
