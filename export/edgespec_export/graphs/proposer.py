"""Where logits come from: an output head, whole or trimmed, and its best tokens.

A draft need not be able to say every word of the target: its head may keep only the rows of
frequent tokens (FR-Spec, arXiv 2502.14856; EAGLE-3's draft vocabulary). The target verifies with
its whole vocabulary, so the text stays the target's.

A draft may rank its tokens with the noise of the target's own draws (coupled drafting; Gumbel noise
shared by both sides, arXiv 2408.07978): what it ranks highest is what the target draws wherever the
two distributions are close. The noise only chooses candidates, so it cannot change the text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgespec_export.blocks import linear
from edgespec_export.builder import FLOATS, Array, Axis, GraphBuilder, Weight
from edgespec_export.checkpoint import Checkpoint


@dataclass(frozen=True)
class Coupling:
    """Names of the values that couple a draft's ranking to the target's draws."""

    noise: str
    """[B, 1 or R, 1 or V_d] float32, of the proposer's own rows; zeros: not coupled."""
    inv_temperature: str
    """[1] float32: logits are multiplied with it before the noise is added."""


def coupling_inputs(b: GraphBuilder, rows: Axis) -> Coupling:
    """Declares both as graph inputs; ``rows`` is the second axis of ``noise``."""
    noise = b.input("noise", "float32", ["B", rows, "W"])
    return Coupling(noise, b.input("inv_temperature", "float32", [1]))


@dataclass(frozen=True)
class Proposer:
    """Where a draft's logits come from: a head [rows, H] of some checkpoint, and the target ids of
    its rows where it has fewer of them than the target (EAGLE-3's d2t, FR-Spec's trimming)."""

    checkpoint: Checkpoint
    name: str
    rows: tuple[int, ...] | None = None
    """Rows of ``name`` to keep, ascending; None keeps all."""
    ids: tuple[int, ...] | None = None
    """Target id of every kept row; None: row i is token i."""

    @property
    def size(self) -> int:
        return len(self.rows) if self.rows else self.checkpoint.shapes[f"{self.name}.weight"][0]

    def logits(self, b: GraphBuilder, x: str) -> str:
        """[B, R, H] -> [B, R, size]."""
        if self.rows is None:
            return linear(b, x, self.checkpoint, [self.name], "head")
        hidden = self.checkpoint.shapes[f"{self.name}.weight"][1]
        kept = list(self.rows)

        def load() -> Array:
            whole = self.checkpoint.tensor(f"{self.name}.weight")
            return np.ascontiguousarray(whole[kept].T)

        weight = Weight((hidden, len(kept)), FLOATS, load)
        return b.node("MatMul", x, b.matrix("head.trimmed.weight", weight))

    def best(self, b: GraphBuilder, logits: str, k: int, coupling: Coupling) -> tuple[str, str]:
        """The ``k`` best (scores, target ids) of float32 [B, R, size] logits, where scores are
        log-softmax(logits * inv_temperature + noise)."""
        scaled = b.node("Mul", logits, coupling.inv_temperature)
        logprobs, found = best(b, b.node("Add", scaled, coupling.noise), k)
        if self.ids is None:
            return logprobs, found
        ids = np.array(self.ids, dtype=np.int64)
        names = b.weight("head.ids", Weight(ids.shape, "int64", lambda: ids))
        return logprobs, b.node("Gather", names, found, axis=0)


def head_name(tied: bool) -> str:
    """The checkpoint's name of the output head."""
    return "text.embed_tokens" if tied else "lm_head"


def best(b: GraphBuilder, logits: str, k: int) -> tuple[str, str]:
    """Float32 log-softmax of [B, R, V] and its k best tokens, best first: (logprobs, ids)."""
    logprobs = b.node("LogSoftmax", logits, axis=-1)
    values, ids = b.nodes(
        "TopK", logprobs, b.constant([k]), outputs=2, axis=-1, largest=1, sorted=1
    )
    return values, ids
