"""Checkpoints of full width without weights: all zeros, in a file that takes no disk.

What an engine build looks at is shapes and operators; a decoder layer of LLaVA-1.5-7B is 400 MB of
random numbers otherwise.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgespec_export.configuration import read_geometry
from edgespec_export.expected import projector_shapes, text_shapes, vision_shapes
from tests.support.tiny import Config, spelled, tiny_config, write_tiny


def llava_config(text_layers: int = 1, vision_layers: int = 2) -> Config:
    """LLaVA-1.5-7B in every width (CLIP ViT-L/14-336, Vicuna-7B), with few layers and words. The
    tower's last layer is not used."""
    vision = {
        "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
        "num_hidden_layers": vision_layers, "image_size": 336, "patch_size": 14,
    }  # fmt: skip
    text = {
        "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
        "num_key_value_heads": 32, "num_hidden_layers": text_layers,
        "max_position_embeddings": 4096,
    }  # fmt: skip
    return tiny_config(vision_extra=vision, text_extra=text)


def draft_config() -> Config:
    """A draft of 68 million parameters' width behind the same tower: heads of 64."""
    config = llava_config()
    text = {
        "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
        "num_key_value_heads": 12, "num_hidden_layers": 2,
    }  # fmt: skip
    return {**config, "text_config": {**config["text_config"], **text}}


def write_hollow(folder: Path, config: Config) -> Path:
    """A whole checkpoint of that geometry, its tensors zeros in half precision."""
    geometry = read_geometry(config)
    shapes: dict[str, tuple[int, ...]] = {
        **vision_shapes(geometry.vision),
        **text_shapes(geometry.text),
        **projector_shapes(geometry),
        "lm_head.weight": (geometry.text.vocab, geometry.text.hidden),
    }
    write_tiny(folder, config, {})
    _write_zeros(folder / "model.safetensors", shapes)
    return folder


def _write_zeros(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[spelled(name, "classic")] = {
            "dtype": "F16", "shape": list(shape), "data_offsets": [start, end],
        }  # fmt: skip
    text = json.dumps(header).encode()
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(out.tell() + end)
