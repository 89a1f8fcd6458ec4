"""A Hugging Face-format checkpoint on disk: config, tensors by canonical name, fingerprints.

Knows files, key spellings and bytes; knows nothing of what the tensors mean. Three spellings of the
same LLaVA keys are in circulation (classic hub files, transformers 4.52 and 5); all map to
``vision.*``, ``projector.*``, ``text.*`` and ``lm_head.weight``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.errors import CheckpointError, MissingDependencyError

PREFIXES = (  # first match wins
    ("model.vision_tower.vision_model.", "vision."),
    ("vision_tower.vision_model.", "vision."),
    ("model.vision_tower.", "vision."),
    ("vision_tower.", "vision."),
    ("model.multi_modal_projector.", "projector."),
    ("multi_modal_projector.", "projector."),
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "text."),
    ("model.language_model.", "text."),
)
HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model")


def canonical_name(key: str) -> str:
    """``language_model.model.norm.weight`` -> ``text.norm.weight``; others stay as they are."""
    for prefix, short in PREFIXES:
        if key.startswith(prefix):
            return short + key[len(prefix) :]
    return key


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint; tensors are read one at a time, straight from the files."""

    path: Path
    source: str
    """What the user asked for: a directory or a hub id."""
    config: Mapping[str, Any]
    _files: Mapping[str, tuple[Path, str]]
    """Canonical name -> (file, key in the file)."""
    shapes: Mapping[str, tuple[int, ...]]

    def tensor(self, name: str) -> npt.NDArray[Any]:
        """One tensor in its stored precision; bfloat16 comes as float32 (exactly)."""
        from safetensors import safe_open

        file, key = self._files[name]
        with safe_open(file, framework="numpy") as handle:
            array: npt.NDArray[Any] = handle.get_tensor(key)
        return array.astype(np.float32) if array.dtype.name == "bfloat16" else array

    def names(self, part: str) -> list[str]:
        """Canonical names below ``part`` ("vision", "projector", "text"), sorted."""
        return sorted(n for n in self.shapes if n.startswith(part + "."))

    def fingerprint(self, names: Iterable[str]) -> str:
        """sha256 over names, shapes and float values: equal for equal weights in any precision
        that holds the same numbers, however the keys are spelled or the files are split."""
        digest = hashlib.sha256()
        for name in sorted(names):
            array = np.ascontiguousarray(self.tensor(name), dtype=np.float32)
            digest.update(f"{name}{array.shape}".encode())
            digest.update(array.data)
        return digest.hexdigest()

    def json_file(self, name: str) -> dict[str, Any] | None:
        """An optional JSON file of the checkpoint, parsed; None where it is absent."""
        path = self.path / name
        return read_json(path) if path.is_file() else None


def open_checkpoint(source: str | Path) -> Checkpoint:
    """Opens a directory or downloads a hub id. Raises CheckpointError naming what is wrong."""
    path = _resolve(str(source))
    config_file = path / "config.json"
    if not config_file.is_file():
        raise CheckpointError(f"{path} holds no config.json, so it is no Hugging Face checkpoint")
    files: dict[str, tuple[Path, str]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for file in _shards(path):
        for key, shape in _header(file):
            name = canonical_name(key)
            if name in files:
                raise CheckpointError(
                    f"{path}: tensor '{key}' is there twice ('{files[name][1]}' in "
                    f"{files[name][0].name}); remove one"
                )
            files[name], shapes[name] = (file, key), shape
    return Checkpoint(path, str(source), read_json(config_file), files, shapes)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises CheckpointError where it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__} where an object is expected")
    return value


def _resolve(source: str) -> Path:
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists() or source.count("/") != 1 or source.startswith((".", "/", "~")):
        found = "is a file" if path.exists() else "does not exist"
        raise CheckpointError(
            f"checkpoint '{source}' {found}; give a directory with config.json and safetensors "
            "files, or a hub id such as 'llava-hf/llava-1.5-7b-hf'"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MissingDependencyError("huggingface_hub", f"'{source}'", "export") from None
    try:
        return Path(snapshot_download(source, allow_patterns=list(HUB_FILES)))
    except Exception as error:  # the hub client raises many unrelated types; all mean "not fetched"
        raise CheckpointError(
            f"'{source}' is no directory here, and it could not be fetched from the hub: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        ) from None


def _shards(path: Path) -> list[Path]:
    index_file = path / "model.safetensors.index.json"
    if index_file.is_file():
        weight_map = read_json(index_file).get("weight_map", {})
        shards = [path / name for name in sorted(set(weight_map.values()))]
        missing = [s.name for s in shards if not s.is_file()]
        if missing:
            raise CheckpointError(f"{path} lacks shards that its index names: {', '.join(missing)}")
        return shards
    single = path / "model.safetensors"
    if single.is_file():
        return [single]
    pickles = [p.name for p in path.glob("*.bin")]
    hint = (
        f"; it has {', '.join(sorted(pickles)[:3])}, pickled weights, which edgespec does not "
        "open: save them again as safetensors"
        if pickles
        else ""
    )
    raise CheckpointError(f"{path} holds no model.safetensors{hint}")


def _header(file: Path) -> list[tuple[str, tuple[int, ...]]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as handle:
            return [(key, tuple(handle.get_slice(key).get_shape())) for key in handle.keys()]
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is no intact safetensors file: {error}") from None
