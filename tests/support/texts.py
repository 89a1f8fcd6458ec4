"""Small random text models in Hugging Face's format, written by transformers itself.

Every character of a prompt is one token; weights are drawn as in ``checkpoints``, so that near-ties
are rare.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.checkpoints import Geometry, byte_tokenizer, randomise

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '[' + message['role'] + ']' }}"
    "{{ message['content'] }}{% endfor %}{% if add_generation_prompt %}{{ '[bot]' }}{% endif %}"
)


@dataclass(frozen=True)
class TextModel:
    """What distinguishes one checkpoint from another."""

    kind: str = "Llama"  # | Qwen2 | Mistral
    tied: bool = False
    template: str | None = None
    kv_heads: int = 2
    layers: int = 2
    vocab: int = 320


def write_text_model(folder: Path, model: TextModel, seed: int = 0) -> Path:
    """A random checkpoint, as ``save_pretrained`` writes it."""
    made = _model(model)
    randomise(made, seed)
    return _save(folder, model, made)


def write_text_draft(folder: Path, model: TextModel, target: Path, noise: float) -> Path:
    """A disturbed copy of ``target``: agrees with it now and then."""
    import torch
    from transformers import AutoModelForCausalLM

    made: Any = AutoModelForCausalLM.from_pretrained(target)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            wobble = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * parameter.std(correction=0) * wobble)
    return _save(folder, model, made)


def _model(model: TextModel) -> Any:
    import transformers

    hf: Any = transformers
    more = {"sliding_window": None} if model.kind == "Mistral" else {}
    config = getattr(hf, f"{model.kind}Config")(
        vocab_size=model.vocab,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=model.layers,
        num_attention_heads=4,
        num_key_value_heads=model.kv_heads,
        max_position_embeddings=512,
        tie_word_embeddings=model.tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        **more,
    )
    return getattr(hf, f"{model.kind}ForCausalLM")(config).eval()


def _save(folder: Path, model: TextModel, made: Any) -> Path:
    import transformers

    hf: Any = transformers
    made.generation_config = hf.GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    made.save_pretrained(folder)
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer(Geometry("text", vocab=model.vocab), image=False),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
        chat_template=model.template,
    )
    tokenizer.save_pretrained(folder)
    return folder
