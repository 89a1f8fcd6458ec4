"""A distilled small LLaVA as a checkpoint like the one it began from, for its one target."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from edgespec.errors import CheckpointError, ConfigError
from edgespec_export.checkpoint import Checkpoint, read_json

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
STORED = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt")
FINGERPRINT = "edgespec_target_fingerprint"


def stored_dtype(checkpoint: Checkpoint) -> str:
    """The precision of a checkpoint's embedding."""
    return STORED[checkpoint.entries["text.embed_tokens.weight"].dtype]


def check_tower(model: Any, dtype: str) -> None:
    """Raises ConfigError where ``dtype`` would change the frozen tower, which a draft may share
    with its target bit for bit."""
    for name, value in model.named_parameters():
        rounded = value.detach().to(DTYPES[dtype]).float()
        if "vision_tower" in name and not torch.equal(rounded, value.detach()):
            raise ConfigError(
                f"--dtype {dtype} would change the draft's vision tower ({name}), which its target "
                "may share; leave --dtype out to keep the draft's own"
            )


def write_vlm(model: Any, source: Path, folder: Path, fingerprint: str, dtype: str) -> Path:
    """Writes ``folder``, whole or not at all: the weights, and every small file of ``source``.

    Raises CheckpointError where a weight does not fit into ``dtype``.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    rounded = copy.deepcopy(model).cpu().to(DTYPES[dtype])
    for name, value in rounded.named_parameters():
        if not value.isfinite().all():
            raise CheckpointError(f"'{name}' does not fit into {dtype}; write --dtype float32")
    rounded.save_pretrained(partial)
    index = read_json(p) if (p := partial / "model.safetensors.index.json").is_file() else None
    for pattern in SMALL_FILES:
        for file in source.glob(pattern):
            shutil.copyfile(file, partial / file.name)
    (partial / "model.safetensors.index.json").unlink(missing_ok=True)  # the source's
    if index is not None:
        _write_json(partial / "model.safetensors.index.json", index)
    config = read_json(source / "config.json")
    kind = {key: dtype for key in ("dtype", "torch_dtype") if key in config}
    _write_json(partial / "config.json", {**config, **kind, FINGERPRINT: fingerprint})
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
