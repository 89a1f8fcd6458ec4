"""Small random Hugging Face LLaVA checkpoints, written by transformers itself.

Weights are drawn so that logits are of order ten: near-ties below 1e-4, which float32 cannot keep
apart, are then rare. Every character of a prompt is one token, so prompts of any length are easy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SPECIAL = ("<unk>", "<s>", "</s>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""llava-hf's Vicuna template, without its marks for training."""

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Geometry:
    """What distinguishes one checkpoint from another; everything else is tiny and fixed."""

    name: str
    tower: str = "clip"  # clip | siglip
    image_size: int = 32
    patch_size: int = 8
    feature_layer: int = -2
    strategy: str = "default"
    text: str = "llama"  # llama | qwen2
    vocab: int = 320
    hidden: int = 64
    heads: int = 4
    kv_heads: int = 4
    layers: int = 2
    tied: bool = False
    max_positions: int = 512
    image_token_id: int = 3
    eos_ids: tuple[int, ...] = (2,)

    @property
    def visual_tokens(self) -> int:
        extra = self.tower == "clip" and self.strategy == "full"
        return (self.image_size // self.patch_size) ** 2 + int(extra)


GEOMETRIES: Mapping[str, Geometry] = {
    g.name: g
    for g in (
        Geometry("mha"),
        Geometry("gqa", kv_heads=2),
        Geometry("tied", kv_heads=1, tied=True),
        Geometry("qwen2", text="qwen2", kv_heads=2, vocab=300),
        Geometry("siglip", tower="siglip", strategy="full", feature_layer=-1, kv_heads=2),
        Geometry("wide-vocab", vocab=32064, image_token_id=32000, heads=2, kv_heads=2, hidden=32),
        Geometry(
            "clip-336", image_size=336, patch_size=14, heads=2, kv_heads=1, hidden=32,
            max_positions=1536,
        ),
        # Every sixteenth token ends the text, so that most answers end by themselves.
        Geometry("many-eos", kv_heads=2, eos_ids=tuple(range(12, 320, 16))),
        Geometry("small-vocab", vocab=40, heads=2, kv_heads=1, hidden=32),
    )
}  # fmt: skip


def write_checkpoint(folder: Path, geometry: Geometry, seed: int) -> Path:
    """A random checkpoint of that geometry, as ``save_pretrained`` writes it."""
    model = _model(geometry)
    randomise(model, seed)
    return _save(folder, geometry, model)


def write_draft(
    folder: Path, geometry: Geometry, target: Path, seed: int, *, own_tower: bool, noise: float
) -> Path:
    """A disturbed copy of ``target``: agrees with it now and then. The vision tower stays equal
    to the last bit unless the draft is to have its own."""
    import torch
    from transformers import LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(target)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if own_tower or "vision_tower" not in name:
                wobble = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise * parameter.std(correction=0) * wobble)
    return _save(folder, geometry, model)


def picture(size: int, seed: int) -> Image.Image:
    """A random picture with coarse structure, of exactly ``size`` x ``size`` pixels."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, size=(4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.NEAREST)


def words(length: int, seed: int) -> str:
    """``length`` random letters: as many tokens."""
    rng = np.random.default_rng(seed)
    return "".join(LETTERS[i] for i in rng.integers(0, len(LETTERS), size=length))


def _model(geometry: Geometry) -> Any:
    import transformers

    hf: Any = transformers  # its annotations are not complete
    vision = (hf.CLIPVisionConfig if geometry.tower == "clip" else hf.SiglipVisionConfig)(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=geometry.image_size,
        patch_size=geometry.patch_size,
    )
    text = (hf.LlamaConfig if geometry.text == "llama" else hf.Qwen2Config)(
        vocab_size=geometry.vocab,
        hidden_size=geometry.hidden,
        intermediate_size=96,
        num_hidden_layers=geometry.layers,
        num_attention_heads=geometry.heads,
        num_key_value_heads=geometry.kv_heads,
        max_position_embeddings=geometry.max_positions,
        tie_word_embeddings=geometry.tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    config = hf.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=geometry.image_token_id,
        vision_feature_layer=geometry.feature_layer,
        vision_feature_select_strategy=geometry.strategy,
        image_seq_length=geometry.visual_tokens,
        tie_word_embeddings=geometry.tied,
    )
    return hf.LlavaForConditionalGeneration(config).eval()


def randomise(model: Any, seed: int) -> None:
    """Weights of a size at which attention is selective and logits are of order ten."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() < 2 and "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif parameter.dim() < 2:
                parameter.copy_(0.2 * noise)
            else:
                gain = 4.0 if "lm_head" in name or "embed_tokens" in name else 1.5
                parameter.copy_(gain * noise / parameter[0].numel() ** 0.5)


def _save(folder: Path, geometry: Geometry, model: Any) -> Path:
    import transformers

    hf: Any = transformers
    eos = list(geometry.eos_ids)
    model.generation_config = hf.GenerationConfig(
        bos_token_id=1, eos_token_id=eos[0] if len(eos) == 1 else eos, pad_token_id=0
    )
    model.save_pretrained(folder)
    _save_processor(folder, geometry)
    return folder


def _save_processor(folder: Path, geometry: Geometry) -> None:
    import transformers

    hf: Any = transformers
    size = {"height": geometry.image_size, "width": geometry.image_size}
    if geometry.tower == "clip":
        images = hf.CLIPImageProcessor(size={"shortest_edge": geometry.image_size}, crop_size=size)
    else:
        images = hf.SiglipImageProcessor(size=size)
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer(geometry),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
    )
    processor = hf.LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=geometry.patch_size,
        vision_feature_select_strategy=geometry.strategy,
        num_additional_image_tokens=int(geometry.tower == "clip"),
        chat_template=CHAT_TEMPLATE,
    )
    processor.save_pretrained(folder)
    images.save_pretrained(folder)


def byte_tokenizer(geometry: Geometry, *, image: bool = True) -> Any:
    """Byte-level BPE without merges; ids beyond the alphabet are made-up words, as far as the
    image token (which llava-hf puts behind the words), and then nothing."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet: list[str] = sorted(pre_tokenizers.ByteLevel.alphabet())
    if geometry.vocab < 300:
        alphabet = [*LETTERS, ":", "Ġ"]
    pieces = list(SPECIAL)
    marks = (*SPECIAL, "<image>") if image else SPECIAL
    if image and geometry.image_token_id == len(SPECIAL):
        pieces.append("<image>")
    pieces += alphabet
    size = min(geometry.vocab, max(geometry.image_token_id, 320))
    pieces += [f"Ġw{n}" for n in range(size - len(pieces))]
    if image and geometry.image_token_id == len(pieces):
        pieces.append("<image>")
    tokenizer = Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens(
        [AddedToken(piece, special=True, normalized=False) for piece in marks]
    )
    return tokenizer
