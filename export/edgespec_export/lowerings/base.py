"""The contract of a lowering: the few blocks whose best operators differ between engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from edgespec_export.builder import GraphBuilder
from edgespec_export.geometry import TextGeometry

Cache = tuple[str, ...]
"""Names of one layer's keys and values; where new rows are kept apart, theirs behind them."""


@dataclass(frozen=True)
class Given:
    """Names of what a caller gives for one session's rows; the contract's own by default."""

    mask: str = "tree_mask"
    positions: str = "position_ids"
    past: str = "past_length"


@dataclass(frozen=True)
class StepInputs:
    """Names of the per-call values every attention layer of a step graph shares.

    What they hold is the lowering's own business; a decoder only passes them on.
    """

    mask: str
    positions: str
    cos: str
    sin: str
    own: tuple[str, ...] = ()


CONTRACT = Given()

Length = tuple[str, str, list[int | str]]
"""An input that says where new rows go: name, type, axes."""
PAST_LENGTH: tuple[Length, ...] = (("past_length", "int64", ["B"]),)


class Lowering(Protocol):
    """Builds norm, attention and gating blocks out of one engine's preferred operators."""

    name: str
    mask_span: str
    """What the last axis T of ``tree_mask`` covers: "total" (cached and new rows), "capacity" (the
    cache, new rows in it), or "behind" (the whole cache, then the new rows)."""

    in_place: bool
    """Whether graphs write new rows into the cache they are given, rather than hand them out."""

    lengths: tuple[Length, ...]
    """Inputs of a step graph that say where new rows go."""

    names_best: bool
    """Whether a target's step graph names the best token of every row."""

    def graph(self, name: str) -> GraphBuilder:
        """An empty graph for this lowering and its precision."""

    def step_inputs(
        self, b: GraphBuilder, text: TextGeometry, cos: str, sin: str, given: Given = CONTRACT
    ) -> StepInputs:
        """Turns the mask, positions and past length ``given`` into what attention wants."""

    def rms_norm(self, b: GraphBuilder, x: str, scale: str, eps: float) -> str:
        """RMS norm of [B, S, H]."""

    def add_rms_norm(
        self, b: GraphBuilder, x: str, residual: str, scale: str, eps: float
    ) -> tuple[str, str]:
        """(normed, x + residual): the fused step between two blocks."""

    @property
    def chains(self) -> ChainLowering:
        """The lowering of graphs that take several draft steps in one call."""

    def attention(
        self, b: GraphBuilder, qkv: str, past: Cache, text: TextGeometry, step: StepInputs
    ) -> tuple[str, Cache]:
        """Packed [B, S, (heads + 2 kv) D] -> [B, S, heads D] and the cache with the new rows in it
        or behind it; rotates, attends under the mask."""

    def gated_silu(self, b: GraphBuilder, gate_up: str) -> str:
        """[B, S, 2 I] (gate, up) -> silu(gate) * up."""

    def full_attention(
        self, b: GraphBuilder, q: str, k: str, v: str, heads: int, width: int
    ) -> str:
        """Unmasked attention of a vision tower, [N, P, ``width``] each."""


class ChainLowering(Lowering, Protocol):
    """A lowering whose steps can follow each other inside a graph."""

    def chained(
        self, b: GraphBuilder, text: TextGeometry, step: StepInputs, positions: str, ahead: int
    ) -> StepInputs:
        """What attention wants for one more row, ``ahead`` rows behind those of ``step``, that
        sees everything before it, as the last row of ``step`` does."""

    def following(self, past: Sequence[Cache], written: Sequence[Cache]) -> list[Cache]:
        """The caches that the next step of a chain reads, after one that read ``past``."""
