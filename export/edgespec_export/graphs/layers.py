"""The layers of a Llama-family decoder, around any attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from edgespec_export.blocks import linear, norm_scale
from edgespec_export.builder import GraphBuilder
from edgespec_export.checkpoint import Checkpoint
from edgespec_export.geometry import TextGeometry
from edgespec_export.lowerings import Lowering
from edgespec_export.lowerings.base import Cache, StepInputs

Written = TypeVar("Written")


@dataclass(frozen=True)
class Stacked:
    """All layers over some rows."""

    normed: str
    """After the final norm, [B, S, H]."""
    caches: list[Cache]
    entering: list[str]
    """The residual stream before every layer, [B, S, H]."""


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
    scale = input_scale(b, checkpoint, 0)
    normed, residual = lowering.rms_norm(b, x, scale, text.eps), x
    written: list[Written] = []
    entering: list[str] = []
    for layer in range(text.layers):
        entering.append(residual)
        down, residual, cache = block(
            b, checkpoint, text, lowering, layer, normed, residual, attend
        )
        written.append(cache)
        last = layer + 1 == text.layers
        scale = (
            norm_scale(b, checkpoint, "text.norm")
            if last
            else input_scale(b, checkpoint, layer + 1)
        )
        normed, residual = lowering.add_rms_norm(b, down, residual, scale, text.eps)
    return normed, entering, written


def block(
    b: GraphBuilder,
    checkpoint: Checkpoint,
    text: TextGeometry,
    lowering: Lowering,
    layer: int,
    normed: str,
    residual: str,
    attend: Attend[Written],
) -> tuple[str, str, Written]:
    """One layer over ``normed`` rows: (what it adds to the residual stream last, that stream before
    it, what attention wrote)."""
    prefix = f"text.layers.{layer}"
    qkv_names = [f"{prefix}.self_attn.{part}_proj" for part in "qkv"]
    qkv = linear(b, normed, checkpoint, qkv_names, f"{prefix}.qkv", part="layer")
    mixed, cache = attend(layer, qkv)
    out_name = [f"{prefix}.self_attn.o_proj"]
    mixed = linear(b, mixed, checkpoint, out_name, f"{prefix}.o", part="layer")
    scale = norm_scale(b, checkpoint, f"{prefix}.post_attention_layernorm")
    normed, residual = lowering.add_rms_norm(b, mixed, residual, scale, text.eps)
    gate_up_names = [f"{prefix}.mlp.{part}_proj" for part in ("gate", "up")]
    gate_up = linear(b, normed, checkpoint, gate_up_names, f"{prefix}.gate_up", part="layer")
    inner = lowering.gated_silu(b, gate_up)
    down_name = [f"{prefix}.mlp.down_proj"]
    down = linear(b, inner, checkpoint, down_name, f"{prefix}.down", part="layer")
    return down, residual, cache


def input_scale(b: GraphBuilder, checkpoint: Checkpoint, layer: int) -> str:
    """The weights of the norm before a layer."""
    return norm_scale(b, checkpoint, f"text.layers.{layer}.input_layernorm")
