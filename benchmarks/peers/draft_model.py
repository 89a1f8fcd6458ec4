"""The small Llama that is trained: its shape, its first weights, and how it is written."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgespec.errors import InputError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
SPREAD = 0.06
"""Root mean square of a row of the first embedding: logits begin with a spread of about one."""


@dataclass(frozen=True)
class Shape:
    """Size of a draft."""

    layers: int = 3
    width: int = 256
    heads: int = 4
    kv_heads: int = 2
    inner: int = 704
    """Width of the gated products."""

    def check(self) -> None:
        """Raises InputError for what no Llama can be."""
        if min(self.layers, self.width, self.heads, self.kv_heads, self.inner) < 1:
            raise InputError(f"every size of a draft must be positive; asked for {self}")
        if self.width % (2 * self.heads) or self.heads % self.kv_heads:
            raise InputError(
                f"a width of {self.width} with {self.heads} heads and {self.kv_heads} key-value "
                "heads is no Llama: give a width that twice the heads divide, and heads that the "
                "key-value heads divide"
            )


def begin(checkpoint: Path, shape: Shape, seed: int = 0) -> Any:
    """A LlamaForCausalLM in float32 with the target's vocabulary, context and rotary base; layers
    are random, the tied embedding is the target's on its principal axes. Raises InputError."""
    import torch
    from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

    shape.check()
    target = AutoConfig.from_pretrained(checkpoint)
    rows = embedding(checkpoint)
    if shape.width > rows.shape[1]:
        raise InputError(
            f"a draft of width {shape.width} is wider than its target's {rows.shape[1]}; give a "
            "smaller --width"
        )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(rows),
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=target.max_position_embeddings,
        rms_norm_eps=target.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": rotary_base(target)},
        tie_word_embeddings=True,
        bos_token_id=target.bos_token_id,
        eos_token_id=target.eos_token_id,
        pad_token_id=target.pad_token_id,
    )
    draft: Any = LlamaForCausalLM(config)
    draft.get_input_embeddings().weight.data.copy_(principal(rows, shape.width))
    return draft


def embedding(checkpoint: Path) -> Any:
    """The target's token table, float32 [V, width]."""
    import torch
    from transformers import AutoModelForCausalLM

    loader: Any = AutoModelForCausalLM
    model = loader.from_pretrained(checkpoint, dtype=torch.float32)
    return model.get_input_embeddings().weight.detach()


def principal(rows: Any, width: int) -> Any:
    """[V, width]: the rows on their ``width`` strongest axes, at ``SPREAD``."""
    import torch

    centred = rows - rows.mean(0)
    _, axes = torch.linalg.eigh(centred.T @ centred)  # weakest first
    found = centred @ axes[:, -width:]
    return found * (SPREAD / found.square().mean().sqrt())


def rotary_base(config: Any) -> float:
    """Where transformers 5 and older ones keep it."""
    found = getattr(config, "rope_parameters", None) or {}
    return float(found.get("rope_theta") or getattr(config, "rope_theta", None) or 10000.0)


def save(draft: Any, checkpoint: Path, out: Path) -> None:
    """Weights and settings by ``save_pretrained``, with the target's own tokenizer files."""
    draft.eval().save_pretrained(out)
    for name in TOKENIZER_FILES:
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, out / name)
