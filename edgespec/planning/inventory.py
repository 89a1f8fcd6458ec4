"""What there is to hold: graphs with their weights, decoders, towers and token tables; of a bundle
(``exported``) or of models known by their sizes alone (``by_sizes``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from edgespec.bundle import STAND_ALONE
from edgespec.flavour import DRAFTS
from edgespec.planning.weights import ON_GPU, Weights, float_bytes

CACHED = ("target", "draft")
"""Roles of the decoders that have KV caches."""


@dataclass(frozen=True)
class Step:
    """A decoder with a KV cache, as its calls see it."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    widest: int
    """Columns of its widest matrix but the head."""
    logits: int
    """Tokens that it gives logits of."""
    max_positions: int

    def cache_row(self, size: int) -> int:
        """Bytes of one token's keys and values, ``size`` bytes a number."""
        return 2 * self.layers * self.kv_heads * self.head_dim * size


@dataclass(frozen=True)
class Encoder:
    """A vision tower over one picture."""

    rows: int
    """Patches, and a class token."""
    hidden: int
    widest: int


@dataclass(frozen=True)
class Held:
    """One graph. Weights that two graphs share are one in the files, and two in an engine."""

    role: str
    weights: Weights
    """All that the graph computes with;"""
    own: Weights
    """and what no graph before it stores."""
    loaded: Mapping[str, int] = field(default_factory=dict)
    """Bytes of ``weights`` in the precisions that it was exported in;"""
    stored: Mapping[str, int] = field(default_factory=dict)
    """and of ``own``."""
    shape: Step | Encoder | None = None
    copies_scores: bool = False
    """Whether attention is decomposed, so that scores exist twice."""

    def loaded_bytes(self, precision: str, lowering: str = ON_GPU) -> int:
        """Of its weights in memory: counted where it was exported so, else as ``lowering`` would
        have them."""
        computed = self.weights.nbytes(self._held_in(precision), lowering)
        return self.loaded.get(precision, computed)

    def stored_bytes(self, precision: str, lowering: str = ON_GPU) -> int:
        """What it adds to the files."""
        return self.stored.get(precision, self.own.nbytes(self._held_in(precision), lowering))

    def largest_bytes(self, precision: str, lowering: str = ON_GPU) -> int:
        """See ``Weights.largest_bytes``."""
        return self.weights.largest_bytes(self._held_in(precision), lowering)

    @property
    def drafts(self) -> bool:
        """Whether it is the draft's side."""
        return self.role.startswith("draft") or self.role == "compressor"

    def _held_in(self, precision: str) -> str:
        """The precision of its weights in a bundle of ``precision``."""
        return DRAFTS.get(precision, precision) if self.drafts else precision


@dataclass(frozen=True)
class Inventory:
    """Everything that a plan counts."""

    name: str
    title: str
    graphs: tuple[Held, ...]
    tables: Mapping[str, tuple[int, int]]
    """Token tables by side, "target" and "draft": tokens and bytes of a row; mapped from files."""
    visual_tokens: int
    draft_visual_tokens: int
    max_positions: int
    cache_bytes: Mapping[str, int] = field(default_factory=dict)
    """Bytes of a number in the KV cache, per precision that was exported."""
    variant: str = "vlm"

    @property
    def exported(self) -> tuple[str, ...]:
        """Precisions whose weights lie in files and were not computed."""
        return tuple(self.cache_bytes)

    def graph(self, role: str) -> Held | None:
        return next((graph for graph in self.graphs if graph.role == role), None)

    def cached_number(self, precision: str, lowering: str = ON_GPU) -> int:
        """Bytes of a number in the KV cache."""
        return self.cache_bytes.get(precision, float_bytes(precision, lowering))

    def without_draft(self) -> Inventory:
        """The target alone."""
        kept = tuple(graph for graph in self.graphs if not graph.drafts)
        return replace(self, graphs=kept, tables=_only(self.tables, "target"))

    def device_part(self) -> Inventory:
        """What a device holds whose target is a server's (``edgespec export --part device``)."""
        wanted = set()
        if self.variant not in STAND_ALONE:  # it starts from the target's visual tokens
            wanted = {"vision", "projector"}
        elif self.graph("draft_vision") is None:
            wanted = {"vision"}
        kept = tuple(graph for graph in self.graphs if graph.drafts or graph.role in wanted)
        return replace(self, graphs=kept, tables=_only(self.tables, "draft"))


def _only(tables: Mapping[str, tuple[int, int]], side: str) -> dict[str, tuple[int, int]]:
    return {name: shape for name, shape in tables.items() if name == side}
