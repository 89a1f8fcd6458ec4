"""The vision tower (CLIP or SigLIP) up to the feature layer LLaVA reads, and the projector."""

from __future__ import annotations

import numpy as np

from edgespec_export.blocks import activation, convolution, layer_norm, linear, stored
from edgespec_export.builder import FLOATS, Array, GraphBuilder, Weight
from edgespec_export.checkpoint import Checkpoint
from edgespec_export.geometry import LlavaGeometry, VisionGeometry
from edgespec_export.lowerings import Lowering


def build_vision(
    checkpoint: Checkpoint, geometry: LlavaGeometry, lowering: Lowering, name: str = "vision"
) -> GraphBuilder:
    """``pixel_values`` [N, 3, size, size] -> ``features`` [N, P, F], P = visual tokens per image.

    F is the tower's width times the number of feature layers (1 in published checkpoints).
    """
    vision = geometry.vision
    b = lowering.graph(name)
    pixels = b.given("pixel_values", ["N", 3, vision.image_size, vision.image_size])
    hidden = _embeddings(b, pixels, checkpoint, vision)
    states = {0: hidden}
    for layer in range(max(geometry.feature_layers)):
        hidden = _encoder_layer(b, hidden, checkpoint, vision, layer, lowering)
        states[layer + 1] = hidden
    chosen = [states[i] for i in geometry.feature_layers]
    features = chosen[0] if len(chosen) == 1 else b.node("Concat", *chosen, axis=-1)
    if geometry.drop_class_token:
        # LLaVA's "default" strategy drops the first position whatever it holds, as the original
        # does; SigLIP checkpoints, which have no class token, use "full".
        end = b.constant([np.iinfo(np.int64).max])
        features = b.node("Slice", features, b.constant([1]), end, b.constant([1]))
    width = vision.hidden * len(chosen)
    b.give(features, "features", ["N", geometry.visual_tokens, width])
    return b


def build_projector(
    checkpoint: Checkpoint, geometry: LlavaGeometry, lowering: Lowering, name: str
) -> GraphBuilder:
    """``features`` [N, P, F] -> ``image_embeds`` [N, P, H]."""
    b = lowering.graph(name)
    width = geometry.vision.hidden * len(geometry.feature_layers)
    x = b.given("features", ["N", "P", width])
    x = linear(b, x, checkpoint, ["projector.linear_1"], "projector.linear_1")
    x = activation(b, x, geometry.projector_activation)
    x = linear(b, x, checkpoint, ["projector.linear_2"], "projector.linear_2")
    b.give(x, "image_embeds", ["N", "P", geometry.text.hidden])
    return b


def _embeddings(
    b: GraphBuilder, pixels: str, checkpoint: Checkpoint, vision: VisionGeometry
) -> str:
    prefix = "vision.embeddings."
    parts = ("weight", "bias") if vision.kind == "siglip" else ("weight",)
    names = [f"{prefix}patch_embedding.{part}" for part in parts]
    size = [vision.patch_size] * 2
    patches = convolution(b, pixels, checkpoint, names, kernel_shape=size, strides=size)
    flat = b.node("Reshape", patches, b.constant([0, vision.hidden, -1]))
    x = b.node("Transpose", flat, perm=[0, 2, 1])  # [N, P, H]
    table = f"{prefix}position_embedding.weight"
    if vision.kind == "siglip":
        return b.node("Add", x, b.weight(table, stored(checkpoint, table)))

    def class_row() -> Array:
        return checkpoint.tensor(f"{prefix}class_embedding").reshape(1, 1, -1)

    token = b.weight(f"{prefix}class", Weight((1, 1, vision.hidden), FLOATS, class_row))
    batch = b.node("Shape", x, start=0, end=1)
    shape = b.node("Concat", batch, b.constant([1, vision.hidden]), axis=0)
    x = b.node("Concat", b.node("Expand", token, shape), x, axis=1)
    x = b.node("Add", x, b.weight(table, stored(checkpoint, table)))
    return layer_norm(b, x, checkpoint, "vision.pre_layrnorm", vision.eps)


def _encoder_layer(
    b: GraphBuilder,
    x: str,
    checkpoint: Checkpoint,
    vision: VisionGeometry,
    layer: int,
    lowering: Lowering,
) -> str:
    prefix = f"vision.encoder.layers.{layer}"
    normed = layer_norm(b, x, checkpoint, f"{prefix}.layer_norm1", vision.eps)
    names = [f"{prefix}.self_attn.{part}_proj" for part in "qkv"]
    qkv = linear(b, normed, checkpoint, names, f"{prefix}.qkv")
    q, k, v = b.nodes("Split", qkv, b.constant([vision.hidden] * 3), outputs=3, axis=-1)
    mixed = lowering.full_attention(b, q, k, v, vision.heads, vision.hidden)
    out = linear(b, mixed, checkpoint, [f"{prefix}.self_attn.out_proj"], f"{prefix}.out")
    x = b.node("Add", x, out)
    normed = layer_norm(b, x, checkpoint, f"{prefix}.layer_norm2", vision.eps)
    inner = linear(b, normed, checkpoint, [f"{prefix}.mlp.fc1"], f"{prefix}.fc1")
    inner = activation(b, inner, vision.activation)
    return b.node("Add", x, linear(b, inner, checkpoint, [f"{prefix}.mlp.fc2"], f"{prefix}.fc2"))
