"""A Llama or Qwen2 checkpoint as GGUF, by the ``gguf`` package; llama.cpp itself quantises it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MOST_CONTEXT = 8192
"""llama.cpp reserves its cache for the whole context when it loads."""
QUANTISED = {"fp16": "MOSTLY_F16", "int8": "MOSTLY_Q8_0", "int4": "MOSTLY_Q4_0"}
LINEARS = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
OTHERS = {
    "model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}  # fmt: skip


def write(checkpoint: Path, out: Path) -> int:
    """Writes ``out`` in float32; returns the context it holds."""
    import gguf

    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    kind = config["model_type"]
    name = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2"}[kind]
    writer = gguf.GGUFWriter(str(out), name)
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    context = min(config["max_position_embeddings"], MOST_CONTEXT)
    writer.add_context_length(context)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(_theta(config))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _add_words(writer, config["vocab_size"])
    tied = bool(config.get("tie_word_embeddings"))
    for key, tensor in _tensors(checkpoint):
        if name == "llama" and key.endswith(("q_proj.weight", "k_proj.weight")):
            tensor = interleaved(tensor, heads if "q_proj" in key else kv_heads)
        if not (tied and key == "lm_head.weight"):
            writer.add_tensor(_name(key), tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return int(context)


def interleaved(weight: Any, heads: int) -> Any:
    """Rows of every head from halves to pairs: llama.cpp rotates neighbours."""
    rows, width = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def halved(weight: Any, heads: int) -> Any:
    """The inverse of ``interleaved``."""
    rows, width = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


def quantise(whole: Path, out: Path, precision: str) -> None:
    import llama_cpp

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_{QUANTISED[precision]}")
    if code := llama_cpp.llama_model_quantize(str(whole).encode(), str(out).encode(), settings):
        raise RuntimeError(f"llama.cpp could not quantise: code {code}")


def _theta(config: dict[str, Any]) -> float:
    rule = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rule.get("rope_type", rule.get("type", "default"))
    if kind != "default":
        raise ValueError(f"rotary scaling '{kind}' is not written to GGUF here")
    return float(rule.get("rope_theta") or config.get("rope_theta") or 10000.0)


def _add_words(writer: Any, count: int) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([f"w{i}" for i in range(count)])
    writer.add_token_types([1] * count)
    writer.add_token_merges(["w 0"])


def _tensors(checkpoint: Path) -> Iterator[tuple[str, Any]]:
    """Every tensor in float32, bfloat16 included, which numpy does not know."""
    import numpy as np

    for file in sorted(checkpoint.glob("*.safetensors")):
        with file.open("rb") as handle:
            size = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(size))
        header.pop("__metadata__", None)
        for key, row in header.items():
            begin, end = row["data_offsets"]
            kind = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[row["dtype"]]
            count = (end - begin) // np.dtype(kind).itemsize
            raw = np.fromfile(file, dtype=kind, count=count, offset=8 + size + begin)
            if row["dtype"] == "BF16":
                raw = (raw.astype("<u4") << 16).view("<f4")
            yield key, raw.astype(np.float32).reshape(row["shape"])


def _name(key: str) -> str:
    if key in OTHERS:
        return OTHERS[key]
    _, _, layer, *middle, kind = key.split(".")
    return f"blk.{layer}.{LINEARS['.'.join(middle)]}.{kind}"
