"""The shapes of the family: configurations and untrained models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from edgespec_export.family.scenes import SIDE

if TYPE_CHECKING:
    from edgespec_export.family.tokenizer import Words

# What transformers declares about its modules is too loose (and partly wrong) for strict checking.
Llava: TypeAlias = Any

PATCH = 14
VISUAL_TOKENS = (SIDE // PATCH) ** 2
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class TextShape:
    """Width and depth of a text model; heads are always 64 wide."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int


@dataclass(frozen=True)
class VisionShape:
    """Width and depth of the CLIP-type tower."""

    hidden: int = 160
    layers: int = 6
    heads: int = 5
    intermediate: int = 640


TARGET = TextShape(hidden=256, layers=12, heads=4, kv_heads=2, intermediate=640)
DRAFT = TextShape(hidden=192, layers=2, heads=3, kv_heads=3, intermediate=512)
VISION = VisionShape()


def config(text: TextShape, vision: VisionShape, words: Words) -> LlavaConfig:
    """A LLaVA configuration in the layout of llava-hf."""
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=vision.hidden,
            intermediate_size=vision.intermediate,
            num_hidden_layers=vision.layers,
            num_attention_heads=vision.heads,
            image_size=SIDE,
            patch_size=PATCH,
            projection_dim=vision.hidden,
        ),
        text_config=LlamaConfig(
            vocab_size=words.size,
            hidden_size=text.hidden,
            intermediate_size=text.intermediate,
            num_hidden_layers=text.layers,
            num_attention_heads=text.heads,
            num_key_value_heads=text.kv_heads,
            head_dim=64,
            max_position_embeddings=1024,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            bos_token_id=words.bos,
            eos_token_id=words.eos,
            pad_token_id=words.pad,
        ),
        image_token_index=words.image,
        projector_hidden_act="gelu",
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
        image_seq_length=VISUAL_TOKENS,
        tie_word_embeddings=True,
    )


def build(text: TextShape, words: Words, *, seed: int, vision: VisionShape = VISION) -> Llava:
    """An untrained model in float32."""
    torch.manual_seed(seed)
    model: Llava = LlavaForConditionalGeneration(config(text, vision, words))
    model = model.float()
    model.config._attn_implementation = "sdpa"
    return model


def pixels(images: torch.Tensor) -> torch.Tensor:
    """[B, side, side, 3] uint8 -> the normalised [B, 3, side, side] of the CLIP processor."""
    scaled = images.permute(0, 3, 1, 2).float() / 255.0
    mean = torch.tensor(MEAN, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=images.device).view(1, 3, 1, 1)
    return (scaled - mean) / std


def features(model: Llava, images: torch.Tensor) -> torch.Tensor:
    """[B, side, side, 3] uint8 -> the tower's patch features [B, patches, vision hidden]."""
    states = model.model.vision_tower(pixels(images), output_hidden_states=True).hidden_states
    patches: torch.Tensor = states[-1][:, 1:]
    return patches


def project(model: Llava, patches: torch.Tensor) -> torch.Tensor:
    """[B, patches, vision hidden] -> visual tokens [B, patches, text hidden]."""
    tokens: torch.Tensor = model.model.multi_modal_projector(patches)
    return tokens


POOLED_TOKENS = VISUAL_TOKENS // 4


def pool(tokens: torch.Tensor) -> torch.Tensor:
    """Visual tokens on their square grid, averaged 2 x 2: [B, n * n, H] -> [B, n * n / 4, H]."""
    batch, count, hidden = tokens.shape
    side = round(count**0.5)
    grid = tokens.view(batch, side // 2, 2, side // 2, 2, hidden)
    return grid.mean((2, 4)).reshape(batch, count // 4, hidden)


def visual_tokens(model: Llava, images: torch.Tensor, *, tokens: int) -> torch.Tensor:
    """[B, side, side, 3] uint8 -> visual tokens [B, tokens, text hidden], pooled if so asked."""
    full = project(model, features(model, images))
    return full if tokens == full.shape[1] else pool(full)
