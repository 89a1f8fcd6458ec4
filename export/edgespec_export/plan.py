"""What an export will write, decided and checked before anything is written.

A plan is the target's graphs and, where one was asked for, a draft's: a stand-alone small model of
the target's kind (``plan_vlm``) or a feature-level draft (``plan_head``). Both look alike from here
on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from edgespec.bundle import ModelIdentity
from edgespec.errors import ConfigError
from edgespec.flavour import Flavour
from edgespec_export.assets import check_image_size, check_vocabulary
from edgespec_export.builder import Array, GraphBuilder
from edgespec_export.checkpoint import Checkpoint, open_checkpoint
from edgespec_export.compression import Compression
from edgespec_export.configuration import read_model
from edgespec_export.expected import Tensors, check_tensors
from edgespec_export.geometry import LlavaGeometry, ModelGeometry, TextGeometry
from edgespec_export.graphs.decoder import TREE_ROWS, build_decoder
from edgespec_export.graphs.packed import build_packed
from edgespec_export.graphs.proposer import Proposer, head_name
from edgespec_export.graphs.vision import build_projector, build_vision
from edgespec_export.lowerings import Lowering
from edgespec_runtime.vision import ImageProcessor

CHAIN_STEPS = 6
"""Draft steps of one call of the chain graph. A longer chain is continued by another call, with the
last token proposed as its one new row; a shorter segment can stop early."""

DRAFT_TOP_K = 16
"""Candidates per node that a draft graph hands out; policies may use fewer."""


@dataclass(frozen=True)
class Model:
    """One opened and checked checkpoint, of a LLaVA or of a text model."""

    checkpoint: Checkpoint
    geometry: ModelGeometry
    tensors: Tensors
    processor: ImageProcessor | None
    """None where the model sees no pictures."""

    @cached_property
    def text_fingerprint(self) -> str:
        return self.checkpoint.fingerprint(self.tensors.text)

    @cached_property
    def vision_fingerprint(self) -> str:
        """Empty where the model sees no pictures."""
        if not self.tensors.vision:
            return ""
        return self.checkpoint.fingerprint(self.tensors.vision)

    @property
    def proposer(self) -> Proposer:
        """The model's own output head, whole."""
        return Proposer(self.checkpoint, head_name(self.tensors.tied))

    @property
    def architecture(self) -> str:
        """As transformers names the model's class."""
        if isinstance(self.geometry, LlavaGeometry):
            return "LlavaForConditionalGeneration"
        return f"{str(self.checkpoint.config['model_type']).capitalize()}ForCausalLM"

    @property
    def identity(self) -> ModelIdentity:
        return ModelIdentity(
            source=Path(self.checkpoint.source).name,
            architecture=self.architecture,
            fingerprint=self.text_fingerprint,
            vision_fingerprint=self.vision_fingerprint,
        )

    def shares_vision(self, other: Model) -> bool:
        """Whether the image features of one can serve the other."""

        def rule(model: Model) -> tuple[Any, ...] | None:
            geometry = model.geometry
            if not isinstance(geometry, LlavaGeometry):
                return None
            layers = (geometry.feature_layers, geometry.drop_class_token)
            return geometry.vision, layers, model.processor

        return rule(self) == rule(other) and self.vision_fingerprint == other.vision_fingerprint


@dataclass(frozen=True)
class PlannedGraph:
    """A graph ready to be written."""

    role: str
    builder: GraphBuilder
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """An embedding table [V, H] that is written piece by piece."""

    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[Array]]


@dataclass(frozen=True)
class DraftPlan:
    """A draft of either kind, as the writer sees it."""

    variant: str
    description: str
    compose: Callable[[Lowering], Iterator[PlannedGraph]]
    """Its graphs in any lowering."""
    identity: ModelIdentity
    table: Table
    proposer: Proposer
    visual: Mapping[str, Any]
    """How it sees images: name and ratio of the compressor, tokens, position rule."""
    original: Any
    """The opened checkpoint (``Model`` or ``OpenedHead``), for parity."""
    compression: Compression | None = None
    features: tuple[int, ...] = ()
    """Hidden states of the target that it feeds on (see ``graphs.decoder.FINAL``)."""
    processor: Mapping[str, Any] | None = None
    """Image processor settings, where its tower is not the target's."""


@dataclass(frozen=True)
class Plan:
    """Everything that will be written, after every check has passed."""

    target: Model
    draft: DraftPlan | None
    graphs: Mapping[Flavour, tuple[PlannedGraph, ...]]
    """In the order they were asked for; the same roles in each."""

    @property
    def weight_bytes(self) -> int:
        return sum(g.builder.weight_bytes for graphs in self.graphs.values() for g in graphs)


def open_model(source: str) -> Model:
    """Opens a checkpoint and checks its parts against each other; weights are checked for NaN when
    they are read."""
    checkpoint = open_checkpoint(source)
    geometry = read_model(checkpoint.config)
    tensors = check_tensors(checkpoint, geometry)
    check_vocabulary(checkpoint, geometry)
    processor = None
    if isinstance(geometry, LlavaGeometry):
        processor = check_image_size(checkpoint, geometry)
    return Model(checkpoint, geometry, tensors, processor)


def target_graphs(
    target: Model,
    lowering: Lowering,
    seeing: Lowering,
    features: tuple[int, ...],
    sessions: int,
) -> Iterator[PlannedGraph]:
    """Tower and projector, if it has them, built by ``seeing``, and step graph of the target; the
    latter for ``sessions`` at once, too."""
    checkpoint, geometry = target.checkpoint, target.geometry
    if isinstance(geometry, LlavaGeometry):
        tower = build_vision(checkpoint, geometry, seeing)
        yield PlannedGraph("vision", tower)
        projector = build_projector(checkpoint, geometry, seeing, "projector")
        yield PlannedGraph("projector", projector)
    builder = build_decoder(
        checkpoint, geometry.text, target.proposer, lowering, name="target", features=features
    )
    yield PlannedGraph("target", builder, step_meta(geometry.text, lowering))
    if sessions and lowering.name == "cuda":
        raise ConfigError(
            "--sessions is not built for lowering 'cuda'; leave it out, or use --lowering ort"
        )
    if sessions:
        packed = build_packed(
            checkpoint, geometry.text, target.proposer, lowering,
            name="target_packed", sessions=sessions, features=features,
        )  # fmt: skip
        meta = step_meta(geometry.text, lowering, sessions=sessions)
        yield PlannedGraph("target_packed", packed, meta)


def embedding_table(model: Model) -> Table:
    """The model's own embedding."""
    name, checkpoint = "text.embed_tokens.weight", model.checkpoint
    return Table(checkpoint.shapes[name], lambda: checkpoint.pieces(name))


def step_meta(text: TextGeometry, lowering: Lowering, **more: Any) -> dict[str, Any]:
    """What the runtime must know of a step graph."""
    if lowering.name in ("ort", "cuda") and text.head_dim % 16:
        raise ConfigError(
            f"lowering '{lowering.name}' needs a head size that is a multiple of 16, this model "
            f"has {text.head_dim}; use --lowering native"
        )
    return {
        "hidden": text.hidden,
        "layers": text.layers,
        "kv_heads": text.kv_heads,
        "head_dim": text.head_dim,
        "vocab": text.vocab,
        "max_positions": text.max_positions,
        "mask_span": lowering.mask_span,
        "tree_rows": TREE_ROWS,
        "row_invariant": lowering.precision.row_invariance,
        "stored": lowering.precision.stored,
        **more,
    }


def chain_meta(step: Mapping[str, Any], lowering: Lowering) -> dict[str, Any]:
    """What the runtime must know of a draft's chain graph, by what it knows of the step graph."""
    return {**step, "mask_span": lowering.mask_span, "steps": CHAIN_STEPS}


def describe_visual(
    compression: str, tokens: int, visual: int, positions: str, shared_vision: bool
) -> dict[str, Any]:
    """The manifest's entry of the draft's visual tokens."""
    return {
        "name": compression,
        "ratio": round(visual / tokens, 2) if tokens else None,
        "visual_tokens": visual,
        "draft_visual_tokens": tokens,
        "positions": positions,
        "shared_vision": shared_vision,
    }
