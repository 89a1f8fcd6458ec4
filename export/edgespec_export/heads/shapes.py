"""Which tensors a head must have, by geometry; names are those of the published checkpoints."""

from __future__ import annotations

import re

from edgespec_export.compression import ELASTIC, Compression
from edgespec_export.expected import Shapes, linear_shapes
from edgespec_export.heads.geometry import HeadGeometry

UNUSED = re.compile(r".*\.rotary_emb\.inv_freq$|verifier_(norm|lm_head)\.weight$")
"""Buffers, and what speculators keeps of the target for training alone."""


def head_shapes(geometry: HeadGeometry) -> Shapes:
    """Every float tensor but ``embed_tokens.weight``."""
    text, three = geometry.text, geometry.variant == "eagle3"
    hidden, layer = text.hidden, "midlayer." if three else "layers.0."
    shapes: Shapes = {}
    linear_shapes(shapes, "fc", hidden, fc_width(geometry), geometry.fc_bias)
    width, inner, outer = hidden * (1 + three), text.heads, text.kv_heads
    for name, heads in (("q_proj", inner), ("k_proj", outer), ("v_proj", outer)):
        rows = heads * text.head_dim
        linear_shapes(shapes, f"{layer}self_attn.{name}", rows, width, text.qkv_bias)
    columns = inner * text.head_dim
    linear_shapes(shapes, f"{layer}self_attn.o_proj", hidden, columns, text.o_bias)
    for name in ("gate_proj", "up_proj"):
        linear_shapes(shapes, f"{layer}mlp.{name}", text.intermediate, hidden, text.mlp_bias)
    linear_shapes(shapes, f"{layer}mlp.down_proj", hidden, text.intermediate, text.mlp_bias)
    shapes[f"{layer}post_attention_layernorm.weight"] = (hidden,)
    if three or geometry.input_norm:
        shapes[f"{layer}input_layernorm.weight"] = (hidden,)
    if three:
        shapes |= _eagle3_shapes(geometry)
    if geometry.variant == "vispec":
        shapes |= _attention_shapes("imadpt.", geometry.queries, geometry, text.qkv_bias)
        linear_shapes(shapes, "img_fc", hidden, 2 * hidden, geometry.fc_bias)
    if geometry.compression:
        shapes |= compressor_shapes(geometry.compression, geometry, "compressor.")
    return shapes


def fc_width(geometry: HeadGeometry) -> int:
    """Columns of ``fc``: [embedding; feature], or EAGLE-3's three features."""
    if geometry.variant == "eagle3":
        return geometry.feature_size
    return geometry.text.hidden + geometry.feature_size


def _eagle3_shapes(geometry: HeadGeometry) -> Shapes:
    hidden, size = geometry.text.hidden, geometry.feature_size
    shapes: Shapes = {
        "midlayer.hidden_norm.weight": (hidden,),
        "norm.weight": (hidden,),
        "lm_head.weight": (geometry.draft_vocab or geometry.text.vocab, hidden),
    }
    if geometry.norm_before_fc:
        shapes["input_norm.weight"] = (size,)
    if geometry.fc_norm:
        shapes |= {f"fc_norm.{i}.weight": (size // 3,) for i in range(3)}
    return shapes


def compressor_shapes(compression: Compression, geometry: HeadGeometry, prefix: str) -> Shapes:
    """Weights of a trained compressor; names as in ``compressors``."""
    hidden, kind = geometry.text.hidden, compression.kind
    if kind == "conv":
        kernel = (hidden, hidden, compression.amount)
        return {f"{prefix}weight": kernel, f"{prefix}bias": (hidden,)}
    if kind == "resampler":
        return _attention_shapes(f"{prefix}attention.", compression.amount, geometry, False)
    shapes: Shapes = {}
    for index, branch in enumerate(compression.branches):
        shapes |= compressor_shapes(branch, geometry, f"{prefix}branches.{index}.")
    if kind in ELASTIC and kind != "concat":
        linear_shapes(shapes, f"{prefix}gate.0", hidden // 4, hidden, True)
        linear_shapes(shapes, f"{prefix}gate.2", len(compression.branches), hidden // 4, True)
    return shapes


def _attention_shapes(prefix: str, queries: int, geometry: HeadGeometry, bias: bool) -> Shapes:
    """Learned queries over an image; full multi-head attention whatever the layer's is."""
    hidden, heads = geometry.text.hidden, geometry.text.heads
    shapes: Shapes = {f"{prefix}q": (queries, heads, hidden // heads)}
    for name in ("k_proj", "v_proj"):
        linear_shapes(shapes, prefix + name, hidden, hidden, bias)
    linear_shapes(shapes, f"{prefix}o_proj", hidden, hidden, False)
    return shapes
