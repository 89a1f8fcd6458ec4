"""Several sessions through a decoder at once, for servers: a step graph with many caches.

The rows of all sessions lie one behind the other, so that every linear layer reads its weights once
for all of them; attention is one node per session, over that session's own cache and length. Rows
are not padded: a session may bring any number, at least one. ONNX Runtime's GroupQueryAttention
takes a batch only of single rows, so this is also the one way to batch trees over it.

====================  =======================  ====================================================
``inputs_embeds``     [1, N, H] float32        the rows of session 0, then those of session 1, ...
``position_ids``      [1, N] int64             committed length + depth in the tree, of each row
``rows``              [sessions] int64         how many of the N rows each session has; their sum N
``past_length``       [sessions] int64         rows already in each session's cache
``tree_mask.s``       [1, 1, S, T] bool        as in the step graph, of session s
``past_key.i.s``      [1, KV, C, D] float32    cache of layer i of session s, and ``past_value.i.s``
====================  =======================  ====================================================

Outputs: ``logits`` [1, N, V]; where the step graph has it ``hidden`` [1, N, F]; the caches.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgespec_export.builder import GraphBuilder
from edgespec_export.checkpoint import Checkpoint
from edgespec_export.geometry import TextGeometry
from edgespec_export.graphs.decoder import begin_cache, publish_cache, rotary
from edgespec_export.graphs.layers import layers
from edgespec_export.graphs.proposer import Proposer
from edgespec_export.lowerings import Lowering
from edgespec_export.lowerings.base import Cache, Given, StepInputs


def build_packed(
    checkpoint: Checkpoint,
    text: TextGeometry,
    proposer: Proposer,
    lowering: Lowering,
    *,
    name: str,
    sessions: int,
    features: Sequence[int] = (),
) -> GraphBuilder:
    """The step graph of ``sessions`` sessions at once; ``features`` as in ``build_decoder``."""
    b = lowering.graph(name)
    x = b.given("inputs_embeds", [1, "N", text.hidden])
    rows = b.input("rows", "int64", [sessions])
    steps = _steps(b, text, lowering, rows, sessions)

    def attend(layer: int, qkv: str) -> tuple[str, list[Cache]]:
        parts = b.nodes("Split", qkv, rows, outputs=sessions, axis=1)
        mixed, caches = zip(
            *(
                lowering.attention(
                    b, part, begin_cache(b, text, f"{layer}.{session}", 1), text, step
                )
                for session, (part, step) in enumerate(zip(parts, steps, strict=True))
            ),
            strict=True,
        )
        return b.node("Concat", *mixed, axis=1), list(caches)

    normed, entering, written = layers(b, checkpoint, text, lowering, x, attend)
    b.give(proposer.logits(b, normed), "logits", [1, "N", proposer.size])
    if features:
        states = [*entering, normed]
        joined = b.node("Concat", *(states[k] for k in features), axis=-1)
        b.give(joined, "hidden", [1, "N", text.hidden * len(features)])
    for layer, caches in enumerate(written):
        for session, cache in enumerate(caches):
            label = f"{layer}.{session}"
            publish_cache(b, text, lowering, cache, label, 1, f"S.{session}")
    return b


def _steps(
    b: GraphBuilder, text: TextGeometry, lowering: Lowering, rows: str, sessions: int
) -> list[StepInputs]:
    """What attention wants, of every session."""
    b.input("position_ids", "int64", [1, "N"])
    b.input("past_length", "int64", [sessions])
    positions = b.nodes("Split", "position_ids", rows, outputs=sessions, axis=1)
    ones = b.constant([1] * sessions)
    pasts = b.nodes("Split", "past_length", ones, outputs=sessions, axis=0)
    masks = [b.input(f"tree_mask.{s}", "bool", [1, 1, f"S.{s}", f"T.{s}"]) for s in range(sessions)]
    tables = rotary(b, text)
    return [
        lowering.step_inputs(b, text, *tables, Given(mask, position, past))
        for mask, position, past in zip(masks, positions, pasts, strict=True)
    ]
