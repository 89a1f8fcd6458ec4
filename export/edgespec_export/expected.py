"""Which tensors a geometry must have, with shapes; anything missing, extra or misshapen is
refused by name. Nothing is ever filled in or left out silently.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from edgespec.errors import CheckpointError
from edgespec_export.checkpoint import STORED, Checkpoint
from edgespec_export.geometry import LlavaGeometry, ModelGeometry, TextGeometry, VisionGeometry

Shapes = dict[str, tuple[int, ...]]

# Buffers and parts of the tower that LLaVA never uses (pooling head, final norm).
UNUSED = re.compile(
    r"(.*\.rotary_emb\.inv_freq|vision\.embeddings\.position_ids|vision\.post_layernorm\..*"
    r"|vision\.head\..*)$"
)


@dataclass(frozen=True)
class Tensors:
    """The checked result: which table the head uses, and which names make up each part."""

    tied: bool
    vision: tuple[str, ...]
    text: tuple[str, ...]


def check_tensors(checkpoint: Checkpoint, geometry: ModelGeometry) -> Tensors:
    """Cross-checks config and tensors. Raises CheckpointError listing every difference."""
    vision: Shapes = {}
    text = text_shapes(geometry.text)
    expected = dict(text)
    if isinstance(geometry, LlavaGeometry):
        vision = vision_shapes(geometry.vision)
        expected |= vision | projector_shapes(geometry)
    head = (geometry.text.vocab, geometry.text.hidden)
    found = checkpoint.shapes
    tied = "lm_head.weight" not in found
    if not tied:
        expected["lm_head.weight"] = head
    elif geometry.tied_in_config is False:
        raise CheckpointError(
            f"{checkpoint.source}: lm_head.weight is missing, and the config says that the "
            "embeddings are not tied"
        )
    check_shapes(checkpoint, expected)
    if not tied and geometry.tied_in_config and not _same_table(checkpoint):
        raise CheckpointError(
            f"{checkpoint.source}: tie_word_embeddings is true, but lm_head.weight differs from "
            "the embedding; set it to false or remove lm_head.weight"
        )
    text_names = (*text, *(() if tied else ("lm_head.weight",)))
    return Tensors(tied=tied, vision=tuple(vision), text=text_names)


def check_shapes(
    checkpoint: Checkpoint, expected: Shapes, unused: re.Pattern[str] = UNUSED
) -> None:
    """Raises CheckpointError that lists what is missing, extra, misshapen or unreadable."""
    problems = _differences(expected, dict(checkpoint.shapes), unused)
    refuse(checkpoint.source, problems + _unreadable(expected, checkpoint))


def refuse(source: str, problems: list[str]) -> None:
    """Raises CheckpointError with the first six of ``problems``, if there are any."""
    if problems:
        shown = "; ".join(problems[:6])
        more = f"; and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise CheckpointError(f"{source} does not match its config.json: {shown}{more}")


def _differences(expected: Shapes, found: Shapes, unused: re.Pattern[str]) -> list[str]:
    missing = [
        f"missing tensor {name} {list(expected[name])}" for name in expected.keys() - found.keys()
    ]
    extra = [
        f"unexpected tensor {name} {list(found[name])}"
        for name in found.keys() - expected.keys()
        if not unused.match(name)
    ]
    wrong = [
        f"{name} has shape {list(found[name])} where {list(shape)} was expected"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    return sorted(missing) + sorted(extra) + sorted(wrong)


def _unreadable(expected: Shapes, checkpoint: Checkpoint) -> list[str]:
    return [
        f"{name} is stored as {entry.dtype} where one of {', '.join(STORED)} was expected"
        for name, entry in sorted(checkpoint.entries.items())
        if name in expected and entry.dtype not in STORED
    ]


def _same_table(checkpoint: Checkpoint) -> bool:
    heads = checkpoint.pieces("lm_head.weight")
    tables = checkpoint.pieces("text.embed_tokens.weight")
    return all(np.array_equal(a, b) for a, b in zip(heads, tables, strict=True))


def text_shapes(text: TextGeometry) -> Shapes:
    """Tensors of a Llama-family decoder without its head."""
    hidden, width = text.hidden, text.head_dim
    shapes: Shapes = {
        "text.embed_tokens.weight": (text.vocab, hidden),
        "text.norm.weight": (hidden,),
    }
    linears = {
        "self_attn.q_proj": (text.heads * width, hidden, text.qkv_bias),
        "self_attn.k_proj": (text.kv_heads * width, hidden, text.qkv_bias),
        "self_attn.v_proj": (text.kv_heads * width, hidden, text.qkv_bias),
        "self_attn.o_proj": (hidden, text.heads * width, text.o_bias),
        "mlp.gate_proj": (text.intermediate, hidden, text.mlp_bias),
        "mlp.up_proj": (text.intermediate, hidden, text.mlp_bias),
        "mlp.down_proj": (hidden, text.intermediate, text.mlp_bias),
    }
    for layer in range(text.layers):
        prefix = f"text.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}{norm}.weight"] = (hidden,)
        for name, (rows, columns, bias) in linears.items():
            linear_shapes(shapes, prefix + name, rows, columns, bias)
    return shapes


def vision_shapes(vision: VisionGeometry) -> Shapes:
    """Tensors of the tower's embeddings and encoder layers."""
    hidden, patch = vision.hidden, vision.patch_size
    rows = vision.grid**2 + int(vision.has_class_token)
    shapes: Shapes = {
        "vision.embeddings.patch_embedding.weight": (hidden, 3, patch, patch),
        "vision.embeddings.position_embedding.weight": (rows, hidden),
    }
    if vision.kind == "clip":
        shapes["vision.embeddings.class_embedding"] = (hidden,)
        shapes["vision.pre_layrnorm.weight"] = shapes["vision.pre_layrnorm.bias"] = (hidden,)
    else:
        shapes["vision.embeddings.patch_embedding.bias"] = (hidden,)
    for layer in range(vision.layers):
        prefix = f"vision.encoder.layers.{layer}."
        for norm in ("layer_norm1", "layer_norm2"):
            shapes[f"{prefix}{norm}.weight"] = shapes[f"{prefix}{norm}.bias"] = (hidden,)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linear_shapes(shapes, f"{prefix}self_attn.{name}", hidden, hidden, True)
        linear_shapes(shapes, f"{prefix}mlp.fc1", vision.intermediate, hidden, True)
        linear_shapes(shapes, f"{prefix}mlp.fc2", hidden, vision.intermediate, True)
    return shapes


def projector_shapes(geometry: LlavaGeometry) -> Shapes:
    """Tensors of the two-layer multi-modal projector."""
    width = geometry.vision.hidden * len(geometry.feature_layers)
    hidden = geometry.text.hidden
    shapes: Shapes = {}
    linear_shapes(shapes, "projector.linear_1", hidden, width, geometry.projector_bias)
    linear_shapes(shapes, "projector.linear_2", hidden, hidden, geometry.projector_bias)
    return shapes


def linear_shapes(shapes: Shapes, name: str, rows: int, columns: int, bias: bool) -> None:
    """Adds the tensors of one linear layer."""
    shapes[f"{name}.weight"] = (rows, columns)
    if bias:
        shapes[f"{name}.bias"] = (rows,)
