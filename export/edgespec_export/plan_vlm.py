"""The plan of a stand-alone small LLaVA as draft (Spec-LLaVA's arrangement)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgespec.errors import CheckpointError, ConfigError
from edgespec.visual import CONTIGUOUS
from edgespec_export.assets import check_same_tokenizer, read_processor
from edgespec_export.compression import Compression, check_fits
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
    shared = draft.shares_vision(target)
    visual = draft.geometry.visual_tokens
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
    return DraftPlan(
        variant="vlm",
        description=f"stand-alone LLaVA, {'shared' if shared else 'own'} vision tower",
        compose=lambda lowering: _graphs(draft, lowering, compression, proposer, shared),
        identity=draft.identity,
        table=embedding_table(draft),
        proposer=proposer,
        visual=describe_visual(str(compression or "none"), tokens, visual, CONTIGUOUS, shared),
        original=draft,
        compression=compression,
        processor=None if shared else read_processor(draft.checkpoint),
    )


def _graphs(
    draft: Model,
    lowering: Lowering,
    compression: Compression | None,
    proposer: Proposer,
    shared: bool,
) -> Iterator[PlannedGraph]:
    checkpoint, geometry = draft.checkpoint, draft.geometry
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
    top_k = min(DRAFT_TOP_K, proposer.size)
    step = build_decoder(checkpoint, text, proposer, lowering, name="draft", top_k=top_k)
    meta = step_meta(text, lowering, variant="vlm", top_k=top_k, proposed=proposer.size)
    yield PlannedGraph("draft", step, meta)
    chains = lowering.chains
    chain = build_chain(
        checkpoint, text, proposer, chains, name="draft_chain", top_k=top_k, steps=CHAIN_STEPS
    )
    yield PlannedGraph("draft_chain", chain, chain_meta(meta, chains))


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
