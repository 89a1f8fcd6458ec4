"""Heads in torch, written to and read from the published layout of their variant."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from edgespec.errors import ConfigError, InputError
from edgespec_export.checkpoint import read_json
from edgespec_export.geometry import Rope
from edgespec_export.heads.geometry import HeadGeometry
from edgespec_export.heads.label import KEY, Label
from edgespec_export.heads.layouts import EMBEDDING, OpenedHead
from edgespec_export.heads.modules import Head, build_head
from edgespec_export.heads.settings import FLAGS
from edgespec_export.heads.vocabulary import check_ids

DTYPES: Mapping[str, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}


def write_head(
    folder: Path,
    head: Head,
    *,
    target_fingerprint: str,
    dtype: str = "float16",
    extra: Mapping[str, Any] | None = None,
    embedding: bool = False,
    overwrite: bool = False,
) -> Path:
    """Writes config.json and model.safetensors to ``folder``, whole or not at all.

    ``extra`` is kept as notes in the config. ``embedding`` also writes a table that is the target's
    (loaders take an absent one as the target's). ``overwrite`` replaces a head, nothing else.
    Raises InputError where numbers do not fit ``dtype``, something is in the way, or it fails.
    """
    from safetensors import SafetensorError

    if dtype not in DTYPES:
        raise ConfigError(f"dtype '{dtype}' is not written; there are: {', '.join(DTYPES)}")
    _check_free(folder, overwrite)
    tensors = _tensors(head, dtype, embedding or head.geometry.own_embedding)
    config = head_config(head.geometry, target_fingerprint, dtype, extra or {})
    try:
        _publish(folder, config, tensors)
    except (OSError, SafetensorError) as error:
        raise InputError(f"writing '{folder}' failed: {error}") from None
    return folder


def _publish(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Into a temporary sibling that is renamed; a head of that name goes with the sibling."""
    from safetensors.torch import save_file

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.partial-", dir=folder.parent) as name:
        partial = Path(name) / "new"
        partial.mkdir()
        text = json.dumps(config, indent=2) + "\n"
        (partial / "config.json").write_text(text, encoding="utf-8")
        save_file(dict(tensors), partial / "model.safetensors", metadata={"format": "pt"})
        if folder.exists():
            folder.rename(Path(name) / "old")
        partial.rename(folder)


def load_head(opened: OpenedHead, embedding: torch.Tensor, head: torch.Tensor) -> Head:
    """The module of an opened head over the target's tables ``embedding`` and ``head`` [V, H].

    Parameters are float32. A table of its own takes its missing last rows from the target's.
    """
    geometry, checkpoint = opened.geometry, opened.checkpoint
    state = {
        name: torch.from_numpy(
            checkpoint.integers(name) if name == "d2t" else checkpoint.tensor(name)
        )
        for name in checkpoint.entries
    }
    table = embedding
    if geometry.own_embedding:
        own = state[EMBEDDING].to(embedding)
        table = torch.cat([own, embedding[len(own) :]]) if len(own) < len(embedding) else own
    module = build_head(geometry, table, head)
    module.load_state_dict({**state, EMBEDDING: table}, strict=True)
    return module


def head_config(
    geometry: HeadGeometry, target_fingerprint: str, dtype: str, notes: Mapping[str, Any]
) -> dict[str, Any]:
    """The config.json of a head: Llama's keys, the family's, and the ``edgespec`` key."""
    text, three = geometry.text, geometry.variant == "eagle3"
    label = Label(
        variant=geometry.variant,
        target_fingerprint=target_fingerprint,
        compression=geometry.compression,
        feature_layers=geometry.feature_layers,
        notes=notes,
    )
    config = {
        "architectures": ["LlamaForCausalLMEagle3" if three else "LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": text.hidden,
        "intermediate_size": text.intermediate,
        "num_hidden_layers": 1,
        "num_attention_heads": text.heads,
        "num_key_value_heads": text.kv_heads,
        "head_dim": text.head_dim,
        "vocab_size": text.vocab,
        "max_position_embeddings": text.max_positions,
        "rms_norm_eps": text.eps,
        **_rope_keys(text.rope),
        "bias": geometry.fc_bias,
        "qkv_bias": text.qkv_bias,
        "attention_bias": text.o_bias,
        "mlp_bias": text.mlp_bias,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
    }
    if three:
        config |= {flag: getattr(geometry, flag) for flag in FLAGS}
        config |= {
            "draft_vocab_size": geometry.draft_vocab or text.vocab,
            "target_hidden_size": geometry.feature_size // 3,
        }
    return {**config, KEY: label.as_json()}


def _rope_keys(rope: Rope) -> dict[str, Any]:
    scaling: dict[str, Any] | None = None
    if rope.kind == "linear":
        scaling = {"type": "linear", "factor": rope.factor}
    elif rope.kind == "llama3":
        scaling = {
            "rope_type": "llama3",
            "factor": rope.factor,
            "low_freq_factor": rope.low_freq_factor,
            "high_freq_factor": rope.high_freq_factor,
            "original_max_position_embeddings": rope.original_max_position,
        }
    return {"rope_theta": rope.theta, "rope_scaling": scaling}


def _tensors(head: Head, dtype: str, embedding: bool) -> dict[str, torch.Tensor]:
    """State under published names; every value still finite in ``dtype``."""
    geometry = head.geometry
    tensors = {}
    for name, value in head.state_dict().items():
        if name == EMBEDDING and not embedding:
            continue
        if not value.is_floating_point():
            tensors[name] = value.detach().cpu().clone()
            continue
        stored = value.detach().to("cpu", DTYPES[dtype], copy=True).contiguous()
        if not torch.isfinite(stored).all():
            cause = f"does not fit {dtype}" if torch.isfinite(value).all() else "has diverged"
            raise ConfigError(f"{name} {cause}: it would hold NaN or infinity; nothing was written")
        tensors[name] = stored
    if geometry.draft_vocab:
        ids = torch.arange(geometry.draft_vocab) + tensors["d2t"]
        check_ids("the head to be written", ids.numpy(), geometry.text.vocab)
        tensors["t2d"] = torch.zeros(geometry.text.vocab, dtype=torch.bool)
        tensors["t2d"][ids] = True
    return tensors


def _check_free(folder: Path, overwrite: bool) -> None:
    if not folder.exists():
        return
    if not overwrite:
        raise ConfigError(f"'{folder}' already exists; give another place, or overwrite it")
    config = folder / "config.json"
    if not config.is_file() or KEY not in read_json(config):
        raise ConfigError(f"'{folder}' exists and is no head, so it is not overwritten")
