"""Write a model of the family as a Hugging Face checkpoint in the layout of llava-hf."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from edgespec_export.family import models
from edgespec_export.family.models import Llava
from edgespec_export.family.scenes import SIDE

hf: Any = transformers

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}ASSISTANT: {% elif message['role'] == 'user' %}USER: "
    "{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}<image>\n"
    "{% endif %}{% endfor %}"
    "{% for content in message['content'] %}{% if content['type'] == 'text' %}"
    "{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}</s>{% else %} {% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def processor(tokenizer: Tokenizer) -> Any:
    """The processor of both models: CLIP pictures of SIDE pixels, and the family's tokenizer."""
    fast = hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
        extra_special_tokens={"image_token": "<image>"},
    )
    images = hf.CLIPImageProcessor(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=list(models.MEAN),
        image_std=list(models.STD),
    )
    return hf.LlavaProcessor(
        image_processor=images,
        tokenizer=fast,
        patch_size=models.PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=CHAT_TEMPLATE,
    )


def save(model: Llava, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the checkpoint with weights in float16, whole or not at all."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    text = model.config.text_config
    model.generation_config = hf.GenerationConfig(
        bos_token_id=text.bos_token_id,
        eos_token_id=text.eos_token_id,
        pad_token_id=text.pad_token_id,
        do_sample=False,
        max_new_tokens=256,
    )
    half = hf.LlavaForConditionalGeneration(model.config)
    half.load_state_dict(model.state_dict())
    half.generation_config = model.generation_config
    half.to(torch.float16).save_pretrained(partial)
    both = processor(tokenizer)
    both.save_pretrained(partial)
    both.image_processor.save_pretrained(partial)
    _classic(partial)
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)


def _classic(folder: Path) -> None:
    """Give the files the names that every release of transformers reads, 4.x and 5.x alike."""
    weights = folder / "model.safetensors"
    tensors = {
        key.replace("vision_tower.", "vision_tower.vision_model.")
        if key.startswith("vision_tower.") and ".vision_model." not in key
        else key: tensor
        for key, tensor in load_file(weights).items()
    }
    save_file(tensors, weights, metadata={"format": "pt"})
    _edit(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = settings["text_config"]
    text["rope_theta"] = text.get("rope_parameters", {}).get("rope_theta", 10000.0)
    settings["torch_dtype"] = settings["dtype"]
    _edit(folder / "config.json", **settings)


def _edit(path: Path, **changes: object) -> None:
    """Change keys of a JSON file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    content.update(changes)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
