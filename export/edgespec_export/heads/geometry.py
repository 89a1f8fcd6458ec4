"""What a feature-level draft is made of: sizes, and which of the family's rules it follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgespec.visual import SPREAD, TAIL
from edgespec_export.compression import Compression
from edgespec_export.geometry import TextGeometry

VARIANTS: Mapping[str, str] = {
    "eagle": "EAGLE-1/2: fc([embedding; feature]), one layer without input norm",
    "eaglevlm": "EagleVLM (SpecVLM's baseline): EAGLE with the layer's input norm restored",
    "msd": "MSD: EAGLE whose image positions carry the visual tokens themselves",
    "vispec": "ViSpec: EAGLE with an image adaptor and a global image vector",
    "specvlm": "SpecVLM: EagleVLM with a trained compressor of its visual tokens",
    "eagle3": "EAGLE-3: three features, attention over [embedding; feature], own head",
}

DIRECT = frozenset({"msd", "vispec", "specvlm"})
"""Variants whose image rows are the (compressed) visual tokens themselves, without features."""


@dataclass(frozen=True)
class HeadGeometry:
    """One feature-level draft. ``text`` is its single decoder layer (``vocab``: embedding rows)."""

    variant: str
    text: TextGeometry
    feature_size: int
    """Width of the target's features as they arrive: H, or 3 H_target for EAGLE-3."""
    fc_bias: bool = True
    draft_vocab: int = 0
    """Rows of the head that proposes; 0: the target's whole vocabulary, in its order."""
    own_embedding: bool = False
    queries: int = 0
    """ViSpec: learned queries of the adaptor; the last one gives the global vector."""
    feature_layers: tuple[int, ...] = ()
    """EAGLE-3: the target's hidden states that make up a feature (0 = embeddings)."""
    norm_before_residual: bool = False
    norm_before_fc: bool = False
    fc_norm: bool = False
    norm_output: bool = False
    compression: Compression | None = None
    """What the checkpoint carries trained weights for (SpecVLM)."""

    @property
    def input_norm(self) -> bool:
        """Whether the layer norms its input (EagleVLM's change against overflow)."""
        return self.variant in ("eaglevlm", "specvlm")

    @property
    def direct(self) -> bool:
        """Whether image rows enter the layer as they are, instead of through ``fc``."""
        return self.variant in DIRECT

    @property
    def position_rule(self) -> str:
        """Where compressed visual tokens sit."""
        return TAIL if self.variant == "vispec" else SPREAD


def captured_layers(target_layers: int) -> tuple[int, int, int]:
    """EAGLE-3's three hidden states: what enters layers 2, L // 2 and L - 3 of the target."""
    return (2, target_layers // 2, target_layers - 3)
