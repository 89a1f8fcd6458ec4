"""The contract of a lowering: the few blocks whose best operators differ between engines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from edgespec_export.builder import GraphBuilder
from edgespec_export.geometry import TextGeometry

Cache = tuple[str, str]
"""Names of one layer's key and value cache."""


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
    lengths: tuple[str, ...]
    cos: str
    sin: str


CONTRACT = Given()


class Lowering(Protocol):
    """Builds norm, attention and gating blocks out of one engine's preferred operators."""

    name: str
    opset: int
    mask_span: str
    """What the last axis T of ``tree_mask`` covers: "total" (cached + new rows) or "capacity"."""

    chains: bool
    """Whether several draft steps can be put into one graph."""

    def step_inputs(
        self, b: GraphBuilder, cos: str, sin: str, given: Given = CONTRACT
    ) -> StepInputs:
        """Turns the mask, positions and past length ``given`` into what attention wants."""

    def rms_norm(self, b: GraphBuilder, x: str, scale: str, eps: float) -> str:
        """RMS norm of [B, S, H]."""

    def add_rms_norm(
        self, b: GraphBuilder, x: str, residual: str, scale: str, eps: float
    ) -> tuple[str, str]:
        """(normed, x + residual): the fused step between two blocks."""

    def chained(self, b: GraphBuilder, step: StepInputs, positions: str, ahead: int) -> StepInputs:
        """What attention wants for one more row, ``ahead`` rows behind those of ``step``, that
        sees everything before it. Only where ``chains`` is true."""

    def attention(
        self, b: GraphBuilder, qkv: str, past: Cache, text: TextGeometry, step: StepInputs
    ) -> tuple[str, Cache]:
        """Packed [B, S, (heads + 2 kv) D] -> [B, S, heads D] and the cache with the new rows in it;
        rotates, writes the cache, attends under the mask."""

    def gated_silu(self, b: GraphBuilder, gate_up: str) -> str:
        """[B, S, 2 I] (gate, up) -> silu(gate) * up."""

    def full_attention(self, b: GraphBuilder, q: str, k: str, v: str, heads: int) -> str:
        """Unmasked attention of a vision tower, [N, P, H] each."""
