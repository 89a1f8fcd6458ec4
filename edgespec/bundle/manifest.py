"""The manifest: what a bundle holds and where that came from; its schema, and how it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from edgespec.bundle.files import FileEntry
from edgespec.errors import BundleError
from edgespec.flavour import Flavour

MANIFEST = "edgespec.json"
FORMAT_VERSION = 4
STAND_ALONE = ("vlm", "text")
"""Variants of drafts that are models of their own; others feed on the target's features."""


@dataclass(frozen=True)
class TensorSpec:
    """One graph input or output; ``axes`` are sizes or axis names."""

    name: str
    dtype: str
    axes: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphSpec:
    """One graph: what it is for, how it was lowered, what goes in and out."""

    role: str
    """vision, projector, target, draft_vision, draft_projector, compressor, draft, draft_chain,
    draft_features, target_packed"""
    file: str
    lowering: str
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Facts of the role: hidden, layers, kv_heads, head_dim, max_positions, mask_span, ..."""

    @property
    def flavour(self) -> Flavour:
        return Flavour(self.lowering, self.precision)

    @property
    def stem(self) -> str:
        """The file's name without its ending: what the parity report calls the graph."""
        return self.file.removesuffix(".onnx")

    @property
    def scored(self) -> int:
        """Tokens that it gives logits of, fewer than the vocabulary where a head was trimmed; 0 for
        a graph without any."""
        return next((int(t.axes[-1]) for t in self.outputs if t.name == "logits"), 0)


@dataclass(frozen=True)
class ModelIdentity:
    """The checkpoint a model came from, so that a draft cannot meet the wrong target."""

    source: str
    architecture: str
    fingerprint: str
    vision_fingerprint: str


@dataclass(frozen=True)
class Manifest:
    """Everything the runtime needs to know before it opens a graph."""

    format_version: int
    created_by: str
    graphs: tuple[GraphSpec, ...]
    models: Mapping[str, ModelIdentity]
    """"target" and, where there is one, "draft"."""
    text: Mapping[str, Any]
    """Prompt side: image token and its id (neither, where the target sees no pictures), special
    tokens, vocabulary and context size."""
    generation: Mapping[str, Any]
    """Generation defaults of the checkpoint (sampling, end-of-sequence ids)."""
    compressor: Mapping[str, Any] | None
    parity: Mapping[str, Any]
    """Per graph's stem: the largest difference from the torch original, or "not checked"."""
    tools: Mapping[str, str]
    files: Mapping[str, FileEntry]

    @property
    def flavours(self) -> tuple[Flavour, ...]:
        """What the bundle holds, in the order of its export."""
        return tuple(dict.fromkeys(graph.flavour for graph in self.graphs))

    def graph(self, role: str) -> GraphSpec | None:
        """The graph of that role, if the bundle has one: the first flavour's (``Bundle.only``)."""
        return next((g for g in self.graphs if g.role == role), None)

    @property
    def variant(self) -> str | None:
        """What kind of draft the bundle holds ("vlm", "text", "vispec", ...), None without one."""
        draft = self.graph("draft")
        return str(draft.meta["variant"]) if draft else None

    @property
    def draft_compressor(self) -> str:
        """The compressor of the draft's visual tokens as ``--compressor`` spells it, or "none"."""
        return str((self.compressor or {}).get("name", "none"))


def read_manifest(path: Path) -> Manifest:
    """Raises BundleError for what is no manifest, or one of another version or shape."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version = data["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} is no manifest: {error!r}") from None
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{path}: the bundle has format version {version}, this edgespec reads "
            f"{FORMAT_VERSION}; export it again with this edgespec"
        )
    unknown = sorted(set(data) - {f.name for f in fields(Manifest)})
    if unknown:
        raise BundleError(f"{path} has unknown keys: {', '.join(unknown)}")
    try:
        data["graphs"] = tuple(_graph(g) for g in data["graphs"])
        data["models"] = {k: ModelIdentity(**v) for k, v in data["models"].items()}
        data["files"] = {k: FileEntry(**v) for k, v in data["files"].items()}
        for key in ("text", "generation", "parity", "tools"):
            data[key] = dict(data[key])
        return Manifest(**data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{path} does not have the manifest's shape: {error}") from None


def _graph(data: Mapping[str, Any]) -> GraphSpec:
    def tensors(rows: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(r["name"], r["dtype"], tuple(r["axes"])) for r in rows)

    known = dict(data)
    known["inputs"], known["outputs"] = tensors(data["inputs"]), tensors(data["outputs"])
    return GraphSpec(**known)
