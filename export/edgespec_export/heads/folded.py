"""The linear parts of a feature-level draft, multiplied out once at export.

EAGLE's layer input is fc([e; h]) = We e + Wh h + b. We e + b depends on the token alone, so the
draft's embedding table holds it ready (half of fc never runs on the device). ViSpec's
h' = img_fc([h; g]) folds likewise: Wh h' = (Wh Ih) h + (Wh Ig) g + Wh bi, of which the last is
constant and the middle one a vector per image. EAGLE-3 norms the embedding: its table holds that.
Products are taken in double precision and rounded once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from edgespec_export.checkpoint import Checkpoint
from edgespec_export.heads.geometry import HeadGeometry

OWN_TABLE, TARGET_TABLE = "embed_tokens.weight", "text.embed_tokens.weight"
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Folded:
    """``head`` under official names, fed with embeddings of its own or of ``target``."""

    head: Checkpoint
    geometry: HeadGeometry
    target: Checkpoint

    @property
    def vocab(self) -> int:
        return self.target.shapes[TARGET_TABLE][0]

    @cached_property
    def _fc(self) -> tuple[Doubles, Doubles]:
        width = self.geometry.text.hidden
        whole = self.head.tensor("fc.weight").astype(np.float64)
        return whole[:, :width], whole[:, width:]

    @cached_property
    def _img_fc(self) -> tuple[Doubles, Doubles]:
        width = self.geometry.text.hidden
        whole = self.head.tensor("img_fc.weight").astype(np.float64)
        return whole[:, :width], whole[:, width:]

    def _bias(self, name: str) -> Doubles:
        if f"{name}.bias" in self.head.shapes:
            return self.head.tensor(f"{name}.bias").astype(np.float64)
        return np.zeros(self.geometry.text.hidden)

    @cached_property
    def constant(self) -> Floats:
        """[H]: what every text row carries, whatever its token and feature."""
        constant = self._bias("fc")
        if self.geometry.variant == "vispec":
            constant = constant + self._fc[1] @ self._bias("img_fc")
        return constant.astype(np.float32)

    @cached_property
    def token_map(self) -> Floats:
        """[H, H]: x @ it is the embedding's part of a row."""
        return np.ascontiguousarray(self._fc[0].T, dtype=np.float32)

    def hidden_map(self) -> Floats:
        """[H, H]: hidden @ it is the feature's part of a row."""
        matrix = self._fc[1]
        if self.geometry.variant == "vispec":
            matrix = matrix @ self._img_fc[0]
        return np.ascontiguousarray(matrix.T, dtype=np.float32)

    def offset_map(self) -> Floats:
        """[H, H]: ViSpec's global vector @ it is what the rows behind an image carry."""
        return np.ascontiguousarray((self._fc[1] @ self._img_fc[1]).T, dtype=np.float32)

    def table(self) -> Iterator[Floats]:
        """The draft's embedding table [V, H], some rows at a time."""
        norm = None
        if self.geometry.variant == "eagle3":
            norm = self.head.tensor("midlayer.input_layernorm.weight")
        for piece in self._embedding():
            yield self._normed(piece, norm) if norm is not None else self._fused(piece)

    def _embedding(self) -> Iterator[Floats]:
        """[V, H] in pieces; a table of the head's own may lack last rows (MSD's 32,000 words
        against 32,064 rows), which are the target's then."""
        own = 0
        if self.geometry.own_embedding:
            own = self.head.shapes[OWN_TABLE][0]
            yield from self.head.pieces(OWN_TABLE)
        start = 0
        for piece in self.target.pieces(TARGET_TABLE):
            if start + len(piece) > own:
                yield piece[max(own - start, 0) :]
            start += len(piece)

    def table_array(self) -> Floats:
        """The whole table, filled piece by piece: it is large, and must not be there twice."""
        whole = np.empty((self.vocab, self.geometry.text.hidden), dtype=np.float32)
        start = 0
        for piece in self.table():
            whole[start : start + len(piece)] = piece
            start += len(piece)
        return whole

    def _fused(self, piece: Floats) -> Floats:
        fused: Floats = (piece @ self.token_map + self.constant).astype(np.float32)
        return fused

    def _normed(self, piece: Floats, weight: Floats) -> Floats:
        square = np.square(piece, dtype=np.float64).mean(-1, keepdims=True)
        scale = 1.0 / np.sqrt(square + self.geometry.text.eps)
        normed: Floats = (piece * scale * weight).astype(np.float32)
        return normed
