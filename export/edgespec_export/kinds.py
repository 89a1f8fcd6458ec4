"""Kinds of models that are exported, and those that are recognised and are not, each with why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgespec.errors import CheckpointError

KINDS: Mapping[str, str] = {
    "llava_next": "LLaVA-1.6 (LLaVA-NeXT): an image becomes tiles with image_newline vectors",
    "llava_next_video": "LLaVA-NeXT-Video: tiles and pooled video frames",
    "llava_onevision": "LLaVA-OneVision: tiles that are interpolated, and video frames",
    "video_llava": "Video-LLaVA: a second tower for video",
    "vipllava": "ViP-LLaVA: features of five layers through a norm",
    "qwen2_vl": "Qwen2-VL: a tower of its own and three-axis rotary positions",
    "qwen2_5_vl": "Qwen2.5-VL: a window-attention tower and three-axis rotary positions",
    "qwen3_vl": "Qwen3-VL: features that enter several layers, three-axis rotary positions",
    "internvl": "InternVL: a tower and a pixel-shuffling projector of its own",
    "internvl_chat": "InternVL in its authors' layout",
    "paligemma": "PaliGemma: a Gemma decoder with attention both ways over the prompt",
    "gemma3": "Gemma 3: a decoder with sliding windows",
    "idefics3": "Idefics3: tiles and a pixel-shuffling projector",
    "smolvlm": "SmolVLM: tiles and a pixel-shuffling projector",
    "mllama": "Llama-3.2-Vision: cross-attention layers instead of visual tokens",
    "mistral3": "Mistral 3 with a Pixtral tower: images of any size",
    "pixtral": "Pixtral: images of any size",
}
EXPORTED = (
    "'llava' (LlavaForConditionalGeneration: LLaVA-1.5 and its relatives, with a CLIP or SigLIP "
    "tower over Llama, Mistral or Qwen2), and 'llama', 'mistral' and 'qwen2' text models"
)


def check_kind(config: Mapping[str, Any]) -> None:
    """Raises CheckpointError unless ``config`` is of a LLaVA in the Hugging Face layout."""
    kind, listed = config.get("model_type"), config.get("architectures")
    architectures = listed if isinstance(listed, list) else []
    names = ", ".join(map(str, architectures)) or "no architecture"
    original = kind in ("llava", "llava_llama") and "mm_vision_tower" in config
    if original or "LlavaLlamaForCausalLM" in architectures:
        raise CheckpointError(
            f"model_type is {kind!r} ({names}): a LLaVA in its original layout, without its vision "
            "tower; give the Hugging Face one, such as 'llava-hf/llava-1.5-7b-hf'"
        )
    if kind == "llava":
        return
    known = KINDS.get(kind) if isinstance(kind, str) else None
    what = f": {known}; it is recognised, but cannot be exported yet" if known else ""
    raise CheckpointError(f"model_type is {kind!r} ({names}){what}. edgespec exports {EXPORTED}")


def check_architecture(config: Mapping[str, Any]) -> None:
    """Raises CheckpointError for a text model that is listed as anything but a ForCausalLM."""
    listed = config.get("architectures")
    names = listed if isinstance(listed, list) else []
    others = [name for name in names if not str(name).endswith("ForCausalLM")]
    if others:
        raise CheckpointError(
            f"model_type is {config['model_type']!r} ({', '.join(map(str, others))}), which does "
            "not generate text; edgespec exports text models that are listed as ...ForCausalLM"
        )
