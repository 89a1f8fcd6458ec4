"""Sizes and rules of a model, as far as its graphs depend on them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rope:
    """Rotary embedding: base, and a scaling rule that is a pure function of the position."""

    theta: float
    kind: str = "default"  # default | linear | llama3
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192


@dataclass(frozen=True)
class TextGeometry:
    """A Llama-family decoder."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_positions: int
    eps: float
    rope: Rope
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool


@dataclass(frozen=True)
class VisionGeometry:
    """A CLIP or SigLIP encoder."""

    kind: str  # clip | siglip
    hidden: int
    intermediate: int
    layers: int
    heads: int
    image_size: int
    patch_size: int
    eps: float
    activation: str

    @property
    def grid(self) -> int:
        """Patches per side."""
        return self.image_size // self.patch_size

    @property
    def has_class_token(self) -> bool:
        return self.kind == "clip"


@dataclass(frozen=True)
class ModelGeometry:
    """A language model; by itself it sees no pictures."""

    text: TextGeometry
    tied_in_config: bool | None
    """What the config says of tied embeddings; the tensors have the last word."""
    image_token_id: int | None
    """None where the model sees no pictures."""

    @property
    def visual_tokens(self) -> int:
        """Tokens that one image becomes in the prompt; 0 where the model sees none."""
        return 0


@dataclass(frozen=True)
class LlavaGeometry(ModelGeometry):
    """Vision tower, projector and decoder, and how features pass from one to the next."""

    vision: VisionGeometry
    feature_layers: tuple[int, ...]
    """Indices into the tower's hidden states (0 = embeddings), all >= 0."""
    drop_class_token: bool
    projector_activation: str
    projector_bias: bool

    @property
    def visual_tokens(self) -> int:
        return self.vision.grid**2 + int(self.vision.has_class_token) - int(self.drop_class_token)
