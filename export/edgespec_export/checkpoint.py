"""A Hugging Face-format checkpoint on disk: config, tensors by canonical name, fingerprints.

Knows files, key spellings and bytes; knows nothing of what the tensors mean. Three spellings of the
same LLaVA keys are in circulation (classic hub files, transformers 4.52 and 5), and one of text
models' keys; all map to ``vision.*``, ``projector.*``, ``text.*`` and ``lm_head.weight``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.errors import CheckpointError
from edgespec_export.hub import resolve
from edgespec_export.pickled import PICKLE, as_safetensors

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
    ("model.embed_tokens.", "text.embed_tokens."),  # of a text model
    ("model.layers.", "text.layers."),
    ("model.norm.", "text.norm."),
)
STORED = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""Precisions that are read, and how numpy reads them (bfloat16 by its bits)."""
INTEGERS = {"I64": "<i8", "I32": "<i4", "U8": "u1", "BOOL": "u1"}
"""Kinds of whole numbers that are read: a trimmed vocabulary's maps."""
PIECE_BYTES = 1 << 23  # of float32: what reading needs beside the tensor it fills


def canonical_name(key: str) -> str:
    """``language_model.model.norm.weight`` -> ``text.norm.weight``; others stay as they are."""
    for prefix, short in PREFIXES:
        if key.startswith(prefix):
            return short + key[len(prefix) :]
    return key


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies."""

    file: Path
    key: str
    """Its name in the file."""
    dtype: str
    """As safetensors writes it: F32, BF16, ..."""
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint; tensors are read one at a time, straight from the files."""

    path: Path
    source: str
    """What the user asked for: a directory or a hub id."""
    config: Mapping[str, Any]
    entries: Mapping[str, Entry]
    """By canonical name."""

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self.entries.items()}

    def tensor(self, name: str) -> npt.NDArray[np.float32]:
        """One tensor in float32, which holds every stored value exactly."""
        pieces = self.pieces(name)
        first = next(pieces)
        shape = self.entries[name].shape
        if first.shape == shape:
            return first
        whole = np.empty(shape, dtype=np.float32)
        start = 0
        for piece in chain([first], pieces):
            whole[start : start + len(piece)] = piece
            start += len(piece)
        return whole

    def pieces(self, name: str) -> Iterator[npt.NDArray[np.float32]]:
        """The same, some rows at a time. Raises CheckpointError at the first NaN or infinity.

        Read rather than mapped: the pages of a mapping would count as this process's memory.
        """
        entry = self.entries[name]
        rows, width = (entry.shape or (1,))[0], math.prod(entry.shape[1:])
        step = max(1, PIECE_BYTES // (4 * max(width, 1)))
        try:
            with entry.file.open("rb") as file:
                file.seek(entry.offset)
                for start in range(0, max(rows, 1), step):
                    count = min(step, rows - start) * width
                    raw = np.fromfile(file, dtype=STORED[entry.dtype], count=count)
                    if raw.size != count:
                        raise CheckpointError(f"{entry.file} ends inside tensor '{entry.key}'")
                    values = _float32(raw, entry.dtype)
                    if not np.isfinite(values).all():
                        raise CheckpointError(
                            f"{entry.file}: tensor '{entry.key}' holds NaN or infinity; the "
                            "checkpoint is broken (a diverged training, or an overflow of float16)"
                        )
                    yield values.reshape(-1, *entry.shape[1:]) if entry.shape else values[0]
        except OSError as error:
            raise CheckpointError(f"{entry.file} cannot be read: {error.strerror}") from None

    def integers(self, name: str) -> npt.NDArray[np.int64]:
        """One tensor of whole numbers or truth values. Raises CheckpointError for any other."""
        entry = self.entries[name]
        if entry.dtype not in INTEGERS:
            raise CheckpointError(
                f"{entry.file}: tensor '{entry.key}' is stored as {entry.dtype} where one of "
                f"{', '.join(INTEGERS)} was expected"
            )
        count = math.prod(entry.shape)
        try:
            raw = np.fromfile(
                entry.file, dtype=INTEGERS[entry.dtype], count=count, offset=entry.offset
            )
        except OSError as error:
            raise CheckpointError(f"{entry.file} cannot be read: {error.strerror}") from None
        if raw.size != count:
            raise CheckpointError(f"{entry.file} ends inside tensor '{entry.key}'")
        return raw.astype(np.int64).reshape(entry.shape)

    def names(self, part: str) -> list[str]:
        """Canonical names below ``part`` ("vision", "projector", "text"), sorted."""
        return sorted(n for n in self.shapes if n.startswith(part + "."))

    def fingerprint(self, names: Iterable[str]) -> str:
        """sha256 over names, shapes and float values: equal for equal weights in any precision
        that holds the same numbers, however the keys are spelled or the files are split."""
        digest = hashlib.sha256()
        for name in sorted(names):
            digest.update(f"{name}{self.entries[name].shape}".encode())
            whole = self.entries[name].dtype in INTEGERS
            for piece in [self.integers(name)] if whole else self.pieces(name):
                digest.update(piece.data)
        return digest.hexdigest()

    def json_file(self, name: str) -> dict[str, Any] | None:
        """An optional JSON file of the checkpoint, parsed; None where it is absent."""
        path = self.path / name
        return read_json(path) if path.is_file() else None


def open_checkpoint(source: str | Path, *, pickles: bool = False) -> Checkpoint:
    """Opens a directory or downloads a hub id. Raises CheckpointError naming what is wrong.

    ``pickles`` also opens pickled weights, where there are no safetensors (see ``pickled``).
    """
    path = resolve(str(source), pickles=pickles)
    config_file = path / "config.json"
    if not config_file.is_file():
        raise CheckpointError(f"{path} holds no config.json, so it is no Hugging Face checkpoint")
    entries: dict[str, Entry] = {}
    for file in _shards(path, pickles):
        for entry in _header(file):
            name = canonical_name(entry.key)
            if name in entries:
                raise CheckpointError(
                    f"{path}: tensor '{entry.key}' is there twice ('{entries[name].key}' in "
                    f"{entries[name].file.name}); remove one"
                )
            entries[name] = entry
    return Checkpoint(path, str(source), read_json(config_file), entries)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises CheckpointError where it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__} where an object is expected")
    return value


def _shards(path: Path, pickles: bool) -> list[Path]:
    """As transformers chooses: model.safetensors, else the shards that the index names."""
    single = path / "model.safetensors"
    if single.is_file():
        return [single]
    index_file = path / "model.safetensors.index.json"
    if index_file.is_file():
        return _indexed(path, index_file)
    found = sorted(p.name for p in path.glob("*.bin"))
    if pickles and PICKLE in found:
        return [as_safetensors(path / PICKLE)]
    hint = (
        f"; it has {', '.join(found[:3])}, pickled weights, which edgespec does not "
        "open: save them again as safetensors"
        if found
        else ""
    )
    raise CheckpointError(f"{path} holds no model.safetensors{hint}")


def _indexed(path: Path, index_file: Path) -> list[Path]:
    weight_map = read_json(index_file).get("weight_map")
    names = set(weight_map.values()) if isinstance(weight_map, dict) else set()
    if not names or any(not isinstance(n, str) or Path(n).name != n for n in names):
        raise CheckpointError(
            f"{index_file} has no weight_map from tensors to file names beside it"
        )
    missing = sorted(name for name in names if not (path / name).is_file())
    if missing:
        raise CheckpointError(f"{path} lacks shards that its index names: {', '.join(missing)}")
    return [path / name for name in sorted(names)]


def _header(file: Path) -> list[Entry]:
    """Every tensor of a file, which safetensors has found intact."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):
            pass
        with file.open("rb") as handle:
            size = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(size))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{file} is no intact safetensors file: {error}") from None
    header.pop("__metadata__", None)
    return [
        Entry(file, key, row["dtype"], tuple(row["shape"]), 8 + size + row["data_offsets"][0])
        for key, row in header.items()
    ]


def _float32(raw: npt.NDArray[Any], dtype: str) -> npt.NDArray[np.float32]:
    if dtype == "BF16":  # the upper half of a float32
        return (raw.astype("<u4") << 16).view(np.float32)
    return raw.astype(np.float32, copy=False)
