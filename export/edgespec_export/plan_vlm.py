"""The plan of a stand-alone draft: a small LLaVA (Spec-LLaVA's arrangement), or a small text model
for a target that sees no pictures either.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgespec.errors import CheckpointError, ConfigError
from edgespec.visual import CONTIGUOUS
from edgespec_export.assets import check_same_tokenizer, read_processor
from edgespec_export.checkpoint import Checkpoint
from edgespec_export.compression import Compression, check_fits
from edgespec_export.geometry import LlavaGeometry
from edgespec_export.graphs.chain import build_chain
from edgespec_export.graphs.compressor import build_compressor
from edgespec_export.graphs.decoder import build_decoder
from edgespec_export.graphs.proposer import Proposer, head_name
from edgespec_export.graphs.vision import build_projector, build_vision
from edgespec_export.lowerings import Lowering
from edgespec_export.plan import (
    CHAIN_STEPS,
    DRAFT_TOP_K,
    DraftPlan,
    Model,
    PlannedGraph,
    chain_meta,
    describe_visual,
    embedding_table,
    step_meta,
)


def plan_vlm(
    draft: Model,
    target: Model,
    compression: Compression | None,
    vocabulary: Sequence[int] | None,
) -> DraftPlan:
    """Checks that the pair fits, and composes the draft's graphs.

    ``vocabulary``: target ids that the draft may propose; None: all. Raises InputError.
    """
    _check_pair(target, draft)
    sees = isinstance(draft.geometry, LlavaGeometry)
    shared = draft.shares_vision(target)
    visual = draft.geometry.visual_tokens
    if compression is not None and not sees:
        raise ConfigError(
            f"compressor '{compression}' was asked for, but draft '{draft.checkpoint.source}' sees "
            "no pictures; leave --compressor out"
        )
    if compression is not None:
        if compression.trained:
            raise ConfigError(
                f"compressor '{compression}' has weights, which a stand-alone draft does not "
                "bring; use pool, prune, stride or text-only"
            )
        check_fits(compression, visual)
    tokens = compression.tokens(visual) if compression else visual
    rows = tuple(vocabulary) if vocabulary is not None else None
    proposer = Proposer(draft.checkpoint, head_name(draft.tensors.tied), rows, rows)
    tower = f"LLaVA, {'shared' if shared else 'own'} vision tower" if sees else "text model"
    return DraftPlan(
        variant=_variant(draft),
        description=f"stand-alone {tower}",
        compose=lambda lowering: _graphs(draft, lowering, compression, proposer, shared),
        identity=draft.identity,
        table=embedding_table(draft),
        proposer=proposer,
        visual=describe_visual(str(compression or "none"), tokens, visual, CONTIGUOUS, shared),
        original=draft,
        compression=compression,
        processor=read_processor(draft.checkpoint) if sees and not shared else None,
    )


def _graphs(
    draft: Model,
    lowering: Lowering,
    compression: Compression | None,
    proposer: Proposer,
    shared: bool,
) -> Iterator[PlannedGraph]:
    checkpoint, text = draft.checkpoint, draft.geometry.text
    if isinstance(draft.geometry, LlavaGeometry):
        yield from _seeing(draft.geometry, checkpoint, lowering, compression, shared)
    top_k = min(DRAFT_TOP_K, proposer.size)
    step = build_decoder(checkpoint, text, proposer, lowering, name="draft", top_k=top_k)
    meta = step_meta(text, lowering, variant=_variant(draft), top_k=top_k, proposed=proposer.size)
    yield PlannedGraph("draft", step, meta)
    chains = lowering.chains
    chain = build_chain(
        checkpoint, text, proposer, chains, name="draft_chain", top_k=top_k, steps=CHAIN_STEPS
    )
    yield PlannedGraph("draft_chain", chain, chain_meta(meta, chains))


def _seeing(
    geometry: LlavaGeometry,
    checkpoint: Checkpoint,
    lowering: Lowering,
    compression: Compression | None,
    shared: bool,
) -> Iterator[PlannedGraph]:
    """From pictures to the draft's visual tokens."""
    text = geometry.text
    if not shared:
        tower = build_vision(checkpoint, geometry, lowering, "draft_vision")
        yield PlannedGraph("draft_vision", tower)
    projector = build_projector(checkpoint, geometry, lowering, "draft_projector")
    yield PlannedGraph("draft_projector", projector)
    if compression:
        graph = build_compressor(
            compression, geometry.visual_tokens, text.hidden, text.heads, lowering
        )
        yield PlannedGraph("compressor", graph)


def _variant(draft: Model) -> str:
    return "vlm" if isinstance(draft.geometry, LlavaGeometry) else "text"


def _check_pair(target: Model, draft: Model) -> None:
    check_language(target, draft)
    wanted = draft.checkpoint.config.get("edgespec_target_fingerprint")
    if wanted is not None and wanted != target.text_fingerprint:
        raise CheckpointError(
            f"draft '{draft.checkpoint.source}' was trained for another target "
            f"({str(wanted)[:12]}...) than '{target.checkpoint.source}'"
        )


def check_language(target: Model, draft: Model) -> None:
    """Raises CheckpointError unless both mean the same by a token id."""
    if (target.geometry.image_token_id is None) != (draft.geometry.image_token_id is None):
        seeing, blind = "a LLaVA", "a text model"
        kinds = (seeing, blind) if target.geometry.image_token_id is not None else (blind, seeing)
        raise CheckpointError(
            f"target '{target.checkpoint.source}' is {kinds[0]} and draft "
            f"'{draft.checkpoint.source}' {kinds[1]}; a draft must be of its target's kind"
        )
    check_same_tokenizer(target.checkpoint, draft.checkpoint)
    for name, ours, theirs in (
        ("vocabulary size", target.geometry.text.vocab, draft.geometry.text.vocab),
        ("image token id", target.geometry.image_token_id, draft.geometry.image_token_id),
    ):
        if ours != theirs:
            raise CheckpointError(
                f"draft '{draft.checkpoint.source}' does not fit target "
                f"'{target.checkpoint.source}': {name} {theirs} against {ours}"
            )
