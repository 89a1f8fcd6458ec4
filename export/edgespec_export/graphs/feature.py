"""Graphs of a feature-level draft: its step, its chain, and what turns features and image rows.

The step graph has the decoder's contract (``graphs/decoder.py``) with one input more, ``hidden``
[B, S, H]: the target's features for committed rows, the draft's own ``feedback`` [B, R, H] for
drafted ones. Its token side is folded into the embedding table (``heads/folded.py``), so a row is
``inputs_embeds + hidden @ W``; image rows come ready made, with zeros for ``hidden``.
"""

from __future__ import annotations

from edgespec_export.blocks import linear, norm_scale
from edgespec_export.builder import FLOATS, GraphBuilder, Weight
from edgespec_export.graphs.chain import chained_steps, join_steps, publish_step
from edgespec_export.graphs.decoder import begin_step, publish_caches
from edgespec_export.graphs.proposer import Proposer, coupling_inputs
from edgespec_export.heads.folded import Folded
from edgespec_export.lowerings import Lowering
from edgespec_export.lowerings.base import Cache, ChainLowering, StepInputs
from edgespec_export.quantise.matrix import Matrix


def build_feature_step(
    folded: Folded, proposer: Proposer, lowering: Lowering, *, name: str, top_k: int
) -> GraphBuilder:
    """The step graph: ``logits`` [B, R, V_d], ``topk_logprobs``, ``topk_ids``, ``feedback``."""
    b = lowering.graph(name)
    text = folded.geometry.text
    x, step, caches = begin_step(b, text, lowering)
    hidden = b.given("hidden", ["B", "S", text.hidden])
    index = b.input("logit_index", "int64", ["R"])
    out, written = _pass(b, folded, lowering, x, hidden, caches[0], step)
    out = b.node("Gather", out, index, axis=1)
    scored, feedback = _ends(b, folded, lowering, out)
    logits = proposer.logits(b, scored)
    b.give(logits, "logits", ["B", "R", proposer.size])
    logprobs, ids = proposer.best(b, "logits", top_k, coupling_inputs(b, "N"))
    b.output(logprobs, "topk_logprobs", "float32", ["B", "R", top_k])
    b.output(ids, "topk_ids", "int64", ["B", "R", top_k])
    b.give(b.node("Identity", feedback), "feedback", ["B", "R", text.hidden])
    publish_caches(b, text, lowering, [written])
    return b


def build_feature_chain(
    folded: Folded,
    proposer: Proposer,
    lowering: ChainLowering,
    *,
    name: str,
    top_k: int,
    steps: int,
) -> GraphBuilder:
    """All steps of a greedy chain in one call (see ``graphs/chain.py``); ViSpec's rows also carry
    the input ``offset`` [B, 1, H], which the first step's embeddings hold already. ``feedback``
    [B, 1, H] is the last step's: the ``hidden`` of the row that continues the chain."""
    b = lowering.graph(name)
    text = folded.geometry.text
    x, first, caches = begin_step(b, text, lowering)
    hidden = b.given("hidden", ["B", "S", text.hidden])
    vispec = folded.geometry.variant == "vispec"
    offset = b.given("offset", ["B", 1, text.hidden]) if vispec else ""
    rows = Weight((folded.vocab, text.hidden), FLOATS, folded.table_array)
    table = b.weight("table.rows", rows)
    found: list[tuple[str, str]] = []
    for step in chained_steps(b, text, lowering, first, steps):
        out, written = _pass(b, folded, lowering, x, hidden, caches[0], step.inputs)
        caches = lowering.following(caches, [written])
        publish_step(b, text, lowering, [written], step)
        row = b.node("Gather", out, b.constant([-1]), axis=1)
        scored, hidden = _ends(b, folded, lowering, row)
        logits = b.float32(proposer.logits(b, scored))
        found.append(proposer.best(b, logits, top_k, step.coupling))
        if not step.last:
            token = b.node("Gather", found[-1][1], b.constant(0), axis=2)  # [B, 1]
            x = b.node("Gather", table, token, axis=0)
            x = b.node("Add", x, offset) if offset else x
    join_steps(b, found, top_k)
    b.give(hidden, "feedback", ["B", 1, text.hidden])
    return b


def build_feature_encoder(folded: Folded, lowering: Lowering) -> GraphBuilder:
    """EAGLE-3's ``fc``: target ``features`` [N, F] -> ``hidden`` [N, H]."""
    geometry, head = folded.geometry, folded.head
    b = lowering.graph("draft_features")
    x = b.given("features", ["N", geometry.feature_size])
    if geometry.norm_before_fc:
        x = lowering.rms_norm(b, x, norm_scale(b, head, "input_norm"), geometry.text.eps)
    if geometry.fc_norm:
        parts = b.nodes(
            "Split", x, b.constant([geometry.feature_size // 3] * 3), outputs=3, axis=-1
        )
        x = b.node("Concat", *(
            lowering.rms_norm(b, part, norm_scale(b, head, f"fc_norm.{i}"), geometry.text.eps)
            for i, part in enumerate(parts)
        ), axis=-1)  # fmt: skip
    x = linear(b, x, head, ["fc"], "fc")
    b.give(x, "hidden", ["N", geometry.text.hidden])
    return b


def build_image_rows(folded: Folded, lowering: Lowering) -> GraphBuilder:
    """The token side of image rows: target ``image_embeds`` [N, P, H] -> ``draft_rows``."""
    text = folded.geometry.text
    b = lowering.graph("draft_projector")
    x = b.given("image_embeds", ["N", "P", text.hidden])
    if folded.geometry.variant == "eagle3":
        scale = norm_scale(b, folded.head, "midlayer.input_layernorm")
        x = lowering.rms_norm(b, x, scale, text.eps)
    else:
        shape = (text.hidden, text.hidden)
        x = b.product(x, "fc.tokens", Matrix.of(*shape, lambda: folded.token_map))
        constant = Weight((text.hidden,), FLOATS, lambda: folded.constant)
        x = b.node("Add", x, b.weight("fc.constant", constant))
    b.give(x, "draft_rows", ["N", "P", text.hidden])
    return b


def _pass(
    b: GraphBuilder,
    folded: Folded,
    lowering: Lowering,
    x: str,
    hidden: str,
    cache: Cache,
    step: StepInputs,
) -> tuple[str, Cache]:
    """One pass of the layer over rows of (token side, hidden): [B, S, H] and the cache after it."""
    geometry, head = folded.geometry, folded.head
    text = geometry.text
    if geometry.variant == "eagle3":
        prefix = "midlayer"
        normed = lowering.rms_norm(b, hidden, norm_scale(b, head, "midlayer.hidden_norm"), text.eps)
        given = b.node("Concat", x, normed, axis=-1)
        residual = normed if geometry.norm_before_residual else hidden
    else:
        prefix = "layers.0"
        shape = (text.hidden, text.hidden)
        matrix = Matrix.of(*shape, folded.hidden_map)
        residual = b.node("Add", x, b.product(hidden, "fc.hidden", matrix, "layer"))
        given = residual
        if geometry.input_norm:
            scale = norm_scale(b, head, "layers.0.input_layernorm")
            given = lowering.rms_norm(b, residual, scale, text.eps)
    names = [f"{prefix}.self_attn.{part}_proj" for part in "qkv"]
    qkv = linear(b, given, head, names, f"{prefix}.qkv", part="layer")
    mixed, written = lowering.attention(b, qkv, cache, text, step)
    out_name = [f"{prefix}.self_attn.o_proj"]
    mixed = linear(b, mixed, head, out_name, f"{prefix}.o", part="layer")
    scale = norm_scale(b, head, f"{prefix}.post_attention_layernorm")
    normed, residual = lowering.add_rms_norm(b, mixed, residual, scale, text.eps)
    both = [f"{prefix}.mlp.{part}_proj" for part in ("gate", "up")]
    gate_up = linear(b, normed, head, both, f"{prefix}.gate_up", part="layer")
    inner = lowering.gated_silu(b, gate_up)
    down_name = [f"{prefix}.mlp.down_proj"]
    down = linear(b, inner, head, down_name, f"{prefix}.down", part="layer")
    return b.node("Add", down, residual), written


def _ends(b: GraphBuilder, folded: Folded, lowering: Lowering, out: str) -> tuple[str, str]:
    """(what the head scores, what is fed back) of layer outputs."""
    geometry = folded.geometry
    if geometry.variant != "eagle3":
        return out, out
    normed = lowering.rms_norm(b, out, norm_scale(b, folded.head, "norm"), geometry.text.eps)
    return normed, normed if geometry.norm_output else out
