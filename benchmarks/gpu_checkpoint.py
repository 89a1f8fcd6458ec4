"""Random checkpoints of a published geometry, in Hugging Face's format: what a card is measured
with where trained weights are not at hand. Times are as with those; no text means anything.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec_export.configuration import read_geometry
from edgespec_export.expected import projector_shapes, text_shapes, vision_shapes
from tests.support.checkpoints import CHAT_TEMPLATE
from tests.support.tiny import spelled, tiny_processor

Shapes = dict[str, tuple[int, ...]]
SPREAD = 1.28
"""Standard deviation of weights times the square root of the hidden size: 0.02 at 4096."""
SHARDS = 4
TILED = "tiled"
"""In place of a device: every matrix repeats numbers of its own; takes neither GPU nor torch."""
TILE = (1 << 20) + 7
"""So many numbers; odd, so that rows differ."""
SPECIAL = ("<unk>", "<s>", "</s>")


@dataclass(frozen=True)
class Geometry:
    """Sizes of a target, its stand-alone draft, and the tower that both share."""

    name: str
    vision: Mapping[str, Any]
    text: Mapping[str, Any]
    draft: Mapping[str, Any]
    """What the draft's text model has otherwise."""
    image_token: int
    compressor: str
    contexts: tuple[int, ...]
    """Cached rows at which calls are clocked."""

    @property
    def visual_tokens(self) -> int:
        return (int(self.vision["image_size"]) // int(self.vision["patch_size"])) ** 2


_7B = Geometry(
    name="llava-1.5-7b",  # llava-hf/llava-1.5-7b-hf and JackFram/llama-160m, by their config.json
    vision={
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768,
    },
    text={
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32064,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    },
    draft={
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "num_key_value_heads": 12, "max_position_embeddings": 2048,
    },
    image_token=32000,
    compressor="pool:4",
    contexts=(700, 1900),
)  # fmt: skip
_TINY = Geometry(
    name="tiny",
    vision={
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 32, "patch_size": 8, "projection_dim": 32,
    },
    text={
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 512,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
    },
    draft={
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 512,
    },
    image_token=500,
    compressor="pool:4",
    contexts=(60, 200),
)  # fmt: skip
GEOMETRIES: Mapping[str, Geometry] = {each.name: each for each in (_7B, _TINY)}


def write_pair(folder: Path, geometry: Geometry, device: str) -> tuple[Path, Path]:
    """A target and a draft with the same tower and tokenizer; numbers are made on ``device``."""
    target, draft = folder / "target", folder / "draft"
    write_checkpoint(target, geometry, geometry.text, 0, device)
    write_checkpoint(draft, geometry, {**geometry.text, **geometry.draft}, 1, device)
    return target, draft


def write_checkpoint(
    folder: Path, geometry: Geometry, text: Mapping[str, Any], seed: int, device: str
) -> None:
    """One checkpoint in float16 shards. Towers of all seeds are equal; no text ends by itself."""
    folder.mkdir(parents=True)
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "vision_config": {"model_type": "clip_vision_model", **geometry.vision},
        "text_config": {"model_type": "llama", **text, "dtype": "float16"},
        "image_token_index": geometry.image_token,
        "image_seq_length": geometry.visual_tokens,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
        "dtype": "float16",
    }
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": None})
    _write_json(folder / "tokenizer.json", _tokenizer(int(text["vocab_size"]), geometry))
    _write_json(folder / "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>"})
    _write_json(folder / "preprocessor_config.json", tiny_processor(config))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    _write_weights(folder, _shapes(config), seed, device)


def _shapes(config: Mapping[str, Any]) -> Shapes:
    geometry = read_geometry(config)
    head = {"lm_head.weight": (geometry.text.vocab, geometry.text.hidden)}
    width = (geometry.vision.hidden,)
    unused = {f"vision.post_layernorm.{kind}": width for kind in ("weight", "bias")}
    return {
        **vision_shapes(geometry.vision),
        **unused,
        **text_shapes(geometry.text),
        **projector_shapes(geometry),
        **head,
    }


def _write_weights(folder: Path, shapes: Shapes, seed: int, device: str) -> None:
    hidden = shapes["text.norm.weight"][0]
    names = sorted(shapes)
    parts = [names[shard::SHARDS] for shard in range(SHARDS)]
    files = [f"model-{n:05}-of-{SHARDS:05}.safetensors" for n in range(1, SHARDS + 1)]
    write = partial(_write_shard, shapes=shapes, hidden=hidden, seed=seed, device=device)
    with ThreadPoolExecutor(SHARDS) as pool:
        list(pool.map(write, [folder / file for file in files], parts))
    index = {spelled(n, "5"): file for file, part in zip(files, parts, strict=True) for n in part}
    total = 2 * sum(prod(shape) for shape in shapes.values())
    index_file = folder / "model.safetensors.index.json"
    _write_json(index_file, {"metadata": {"total_size": total}, "weight_map": index})


def _write_shard(
    path: Path, names: Sequence[str], shapes: Shapes, hidden: int, seed: int, device: str
) -> None:
    """The numbers go straight into the mapped file: there may not be room for them twice."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in names:
        end = at + 2 * prod(shapes[name])
        header[spelled(name, "5")] = {
            "dtype": "F16", "shape": list(shapes[name]), "data_offsets": [at, end],
        }  # fmt: skip
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + at)
    data = np.memmap(path, np.float16, "r+", offset=8 + len(text))
    start = 0
    for name in names:
        count = prod(shapes[name])
        into = np.asarray(data[start : start + count])
        if len(shapes[name]) == 1:
            into[:] = "norm" in name and name.endswith("weight")
        elif device == TILED:
            _tile(into, *_drawn(name, shapes[name], hidden, seed))
        else:
            _draw(into, *_drawn(name, shapes[name], hidden, seed), device)
        start += count


def _drawn(name: str, shape: tuple[int, ...], hidden: int, seed: int) -> tuple[int, float]:
    """Seed and standard deviation of a matrix."""
    tower = name.startswith("vision.")
    width = prod(shape[1:]) if tower else hidden
    return zlib.crc32(f"{0 if tower else seed} {name}".encode()), SPREAD / width**0.5


def _draw(into: npt.NDArray[np.float16], seed: int, spread: float, device: str) -> None:
    import torch

    generator = torch.Generator(device).manual_seed(seed)
    numbers = torch.randn(len(into), generator=generator, device=device).mul_(spread)
    torch.from_numpy(into).copy_(numbers)


def _tile(into: npt.NDArray[np.float16], seed: int, spread: float) -> None:
    drawn = np.random.default_rng(seed).standard_normal(min(len(into), TILE), np.float32)
    block = (drawn * np.float32(spread)).astype(np.float16)
    for start in range(0, len(into), TILE):
        into[start : start + TILE] = block[: len(into) - start]


def _tokenizer(vocab: int, geometry: Geometry) -> dict[str, Any]:
    """One word per id, "w7" is 7."""
    words = {f"w{n}": n for n in range(vocab)}
    special = {**dict(zip(SPECIAL, range(3), strict=True)), "<image>": geometry.image_token}
    for content, n in special.items():
        del words[f"w{n}"]
        words[content] = n
    as_is = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": n, "content": content, "special": True, **as_is}
            for content, n in sorted(special.items(), key=lambda item: item[1])
        ],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"},
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
