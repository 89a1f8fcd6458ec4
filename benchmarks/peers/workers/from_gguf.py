"""``from_gguf.py FILE OUT``: a Llama in GGUF as a Hugging Face-format checkpoint in float32."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf_file import LINEARS, OTHERS, halved
from safetensors.numpy import save_file

SPECIAL = 3
"""llama.cpp's type of control tokens."""


def main(source: Path, out: Path) -> None:
    reader = gguf.GGUFReader(source)
    facts = {key: field.contents() for key, field in reader.fields.items()}
    if facts["general.architecture"] != "llama":
        raise SystemExit(f"{source} holds a '{facts['general.architecture']}', not a llama")
    out.mkdir(parents=True, exist_ok=True)
    tensors = dict(_renamed(tensor, facts) for tensor in reader.tensors)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    words = facts["tokenizer.ggml.tokens"]
    special = [words[i] for i, t in enumerate(facts["tokenizer.ggml.token_type"]) if t == SPECIAL]
    named = {
        name: words[facts[f"tokenizer.ggml.{key}_token_id"]]
        for name, key in (("bos_token", "bos"), ("eos_token", "eos"), ("pad_token", "padding"))
    }
    _write(out / "config.json", _config(facts, tied="lm_head.weight" not in tensors))
    _write(out / "generation_config.json", _ends(facts))
    _write(out / "tokenizer.json", _tokenizer(words, special, facts["tokenizer.ggml.merges"]))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    _write(
        out / "tokenizer_config.json",
        {**settings, **named, "chat_template": facts["tokenizer.chat_template"]},
    )


def _renamed(tensor: Any, facts: dict[str, Any]) -> tuple[str, Any]:
    """Name and values as Hugging Face has them; llama.cpp keeps rows of q and k in pairs."""
    values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    others = {short: key for key, short in OTHERS.items()}
    if tensor.name in others:
        return others[tensor.name], values
    _, layer, short, kind = tensor.name.split(".")
    heads = {"attn_q": "head_count", "attn_k": "head_count_kv"}.get(short)
    if heads:
        values = halved(values, facts[f"llama.attention.{heads}"])
    long = next(key for key, name in LINEARS.items() if name == short)
    return f"model.layers.{layer}.{long}.{kind}", np.ascontiguousarray(values)


def _config(facts: dict[str, Any], tied: bool) -> dict[str, Any]:
    theta = float(facts["llama.rope.freq_base"])
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": facts["llama.embedding_length"],
        "intermediate_size": facts["llama.feed_forward_length"],
        "num_hidden_layers": facts["llama.block_count"],
        "num_attention_heads": facts["llama.attention.head_count"],
        "num_key_value_heads": facts["llama.attention.head_count_kv"],
        "max_position_embeddings": facts["llama.context_length"],
        "rms_norm_eps": round(float(facts["llama.attention.layer_norm_rms_epsilon"]), 9),
        "rope_theta": theta,
        "vocab_size": len(facts["tokenizer.ggml.tokens"]),
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "bos_token_id": facts["tokenizer.ggml.bos_token_id"],
        "eos_token_id": facts["tokenizer.ggml.eos_token_id"],
        "torch_dtype": "float32",
    }


def _ends(facts: dict[str, Any]) -> dict[str, Any]:
    names = ("bos", "eos")
    return {f"{name}_token_id": facts[f"tokenizer.ggml.{name}_token_id"] for name in names}


def _tokenizer(words: list[str], special: list[str], merges: list[str]) -> dict[str, Any]:
    """Byte-level BPE with single digits, as llama.cpp's "smollm" splits text."""
    ids = {word: i for i, word in enumerate(words)}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": ids[word], "content": word, **added, "special": True} for word in special
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {**level, "use_regex": True},
            ],
        },
        "post_processor": None,
        "decoder": {**level, "use_regex": True},
        "model": {"type": "BPE", "vocab": ids, "merges": merges},
    }


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
