"""Tiny LLaVA checkpoints written by hand with numpy: in any spelling, precision and number of
files, and broken in any way. Needs neither torch nor transformers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec_export.configuration import read_geometry
from edgespec_export.expected import projector_shapes, text_shapes, vision_shapes

Config = dict[str, Any]
Tensors = dict[str, npt.NDArray[np.float32]]

SPELLINGS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "classic": (
        ("vision.", "vision_tower.vision_model."),
        ("projector.", "multi_modal_projector."),
        ("text.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    ),
    "4.52": (
        ("vision.", "model.vision_tower.vision_model."),
        ("projector.", "model.multi_modal_projector."),
        ("text.", "model.language_model."),
    ),
    "5": (
        ("vision.", "model.vision_tower."),
        ("projector.", "model.multi_modal_projector."),
        ("text.", "model.language_model."),
    ),
}
IMAGE_TOKEN_ID = 3
VOCAB = 96


def tiny_config(
    *,
    tower: str = "clip",
    text: str = "llama",
    vision_extra: Mapping[str, Any] | None = None,
    text_extra: Mapping[str, Any] | None = None,
    **top: Any,
) -> Config:
    """config.json of a two-layer model; ``top`` sets keys of the outermost level."""
    vision_config = {
        "model_type": f"{tower}_vision_model", "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
        **(vision_extra or {}),
    }  # fmt: skip
    text_config = {
        "model_type": text, "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCAB,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-5, **(text_extra or {}),
    }  # fmt: skip
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "vision_config": vision_config,
        "text_config": text_config,
        "image_token_index": IMAGE_TOKEN_ID,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default" if tower == "clip" else "full",
        "tie_word_embeddings": False,
        **top,
    }


def tiny_tensors(config: Config, seed: int = 0) -> Tensors:
    """Random tensors under canonical names, of a size at which logits are of order ten."""
    geometry = read_geometry(config)
    shapes = {
        **vision_shapes(geometry.vision),
        **text_shapes(geometry.text),
        **projector_shapes(geometry),
    }
    if not geometry.tied_in_config:
        shapes["lm_head.weight"] = (geometry.text.vocab, geometry.text.hidden)
    rng = np.random.default_rng(seed)
    return {name: _random(name, shape, rng) for name, shape in shapes.items()}


def write_tiny(
    folder: Path,
    config: Config | None = None,
    tensors: Mapping[str, npt.NDArray[Any]] | None = None,
    *,
    spelling: str = "classic",
    dtype: str = "F32",
    shards: int = 1,
    seed: int = 0,
) -> Path:
    """A whole checkpoint: weights, config, tokenizer, template, processor, generation config."""
    config = tiny_config() if config is None else config
    tensors = tiny_tensors(config, seed) if tensors is None else tensors
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {"eos_token_id": 2})
    write_json(folder / "tokenizer.json", tiny_tokenizer())
    write_json(folder / "tokenizer_config.json", {"eos_token": "</s>", "bos_token": "<s>"})
    write_json(folder / "preprocessor_config.json", tiny_processor(config))
    (folder / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    named = {spelled(name, spelling): tensor for name, tensor in tensors.items()}
    if shards == 1:
        write_safetensors(folder / "model.safetensors", named, dtype)
        return folder
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(named.items())[shard::shards])
        write_safetensors(folder / file, part, dtype)
        weight_map.update(dict.fromkeys(part, file))
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    return folder


def spelled(name: str, spelling: str) -> str:
    """The key of a canonical name in one of the three spellings."""
    for short, prefix in SPELLINGS[spelling]:
        if name.startswith(short):
            return prefix + name[len(short) :]
    return name


def tiny_tokenizer() -> Config:
    words = ["<unk>", "<s>", "</s>", "<image>", *(f"w{i}" for i in range(20))]
    return {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": words[i], "special": True} for i in range(4)],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {
            "type": "WordLevel", "vocab": {w: i for i, w in enumerate(words)}, "unk_token": "<unk>",
        },
    }  # fmt: skip


def tiny_processor(config: Config) -> Config:
    side = config["vision_config"].get("image_size", 224)
    if config["vision_config"]["model_type"].startswith("siglip"):
        return {
            "image_processor_type": "SiglipImageProcessor",
            "size": {"height": side, "width": side},
        }
    return {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
    }


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def write_safetensors(path: Path, tensors: Mapping[str, npt.NDArray[Any]], dtype: str) -> None:
    """By hand, so that bfloat16 and broken files need no library. ``dtype`` holds for float32
    arrays; others are written as they are."""
    header: dict[str, Any] = {}
    data = b""
    for name, tensor in tensors.items():
        kind = dtype if tensor.dtype == np.float32 else KINDS[tensor.dtype.name]
        raw = stored_bytes(tensor, kind)
        end = len(data) + len(raw)
        header[name] = {
            "dtype": kind, "shape": list(tensor.shape), "data_offsets": [len(data), end],
        }  # fmt: skip
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


KINDS = {"float64": "F64", "int8": "I8", "int64": "I64", "bool": "BOOL"}


def stored_bytes(tensor: npt.NDArray[Any], kind: str) -> bytes:
    if kind == "BF16":  # cut, not rounded: the tests compare with values that fit
        return (np.ascontiguousarray(tensor).view(np.uint32) >> 16).astype("<u2").tobytes()
    return tensor.astype("<f2").tobytes() if kind == "F16" else tensor.tobytes()


def representable(tensors: Tensors, dtype: str) -> Tensors:
    """The same tensors with values that ``dtype`` holds exactly."""
    if dtype == "F16":
        return {n: t.astype(np.float16).astype(np.float32) for n, t in tensors.items()}
    if dtype == "BF16":
        mask = np.uint32(0xFFFF0000)
        return {n: (t.view(np.uint32) & mask).view(np.float32) for n, t in tensors.items()}
    return tensors


def _random(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    noise = rng.standard_normal(shape, dtype=np.float32)
    offset, gain = 0.0, 4.0 if name == "lm_head.weight" or "embed_tokens" in name else 1.5
    if len(shape) == 1:
        offset, gain = float("norm" in name and name.endswith("weight")), 0.2
    tensor: npt.NDArray[np.float32] = offset + noise * (gain / math.sqrt(math.prod(shape[1:])))
    return tensor.astype(np.float32)
