"""Batched decoding of the family's models in torch, for distillation and evaluation."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import nn
from transformers import DynamicCache

from edgespec_export.family import models
from edgespec_export.family.models import Llava
from edgespec_export.family.packing import Writer


def cache_argument(decoder: nn.Module) -> str:
    """What the installed transformers calls the cache that a decoder is given: 5.24 renamed it."""
    known = inspect.signature(type(decoder).forward).parameters
    return "cache" if "cache" in known else "past_key_values"


@torch.no_grad()
def decode(
    model: Llava,
    writer: Writer,
    images: torch.Tensor,
    prompts: Sequence[str],
    *,
    limit: int = 200,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[list[int]]:
    """Answers to one prompt per picture ([B, side, side, 3] uint8), without the final `</s>`.

    Greedy at temperature 0, else sampled.
    """
    device = images.device
    asked = [[*writer.prefix(1), *writer.prompt(prompt, images=1)] for prompt in prompts]
    width = max(len(ids) for ids in asked)
    pad = writer.words.pad
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in asked], device=device)
    real = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in asked], device=device)
    visual = models.visual_tokens(model, images, tokens=writer.visual_tokens)
    embeds = model.get_input_embeddings()(ids)
    embeds = embeds.masked_scatter((ids == writer.words.image)[..., None], visual.flatten(0, 1))
    positions = (real.cumsum(-1) - 1).clamp(min=0)
    draws = torch.Generator(device=device).manual_seed(seed)
    cache = DynamicCache(config=model.config.text_config)
    done = torch.zeros(len(asked), dtype=torch.bool, device=device)
    said: list[torch.Tensor] = []
    for _ in range(limit):
        states = model.model.language_model(
            inputs_embeds=embeds,
            attention_mask=real,
            position_ids=positions,
            use_cache=True,
            **{cache_argument(model.model.language_model): cache},
        ).last_hidden_state[:, -1]
        logits = model.lm_head(states)
        if temperature > 0:
            chances = torch.softmax(logits / temperature, -1)
            token = torch.multinomial(chances, 1, generator=draws)[:, 0]
        else:
            token = logits.argmax(-1)
        token = torch.where(done, writer.words.eos, token)
        said.append(token)
        done |= token == writer.words.eos
        if bool(done.all()):
            break
        embeds = model.get_input_embeddings()(token)[:, None]
        real = torch.cat([real, torch.ones_like(real[:, :1])], 1)
        positions = positions[:, -1:] + 1
    rows = torch.stack(said, 1).tolist()
    return [row[: row.index(writer.words.eos)] if writer.words.eos in row else row for row in rows]
