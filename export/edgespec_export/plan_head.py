"""The plan of a feature-level draft: EAGLE and its kin, fed with the target's features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from edgespec.bundle import ModelIdentity
from edgespec.errors import ConfigError
from edgespec_export.compression import Compression, check_fits
from edgespec_export.graphs.compressor import build_adaptor, build_compressor
from edgespec_export.graphs.decoder import FINAL
from edgespec_export.graphs.feature import (
    build_feature_chain,
    build_feature_encoder,
    build_feature_step,
    build_image_rows,
)
from edgespec_export.graphs.proposer import Proposer
from edgespec_export.heads.folded import Folded
from edgespec_export.heads.layouts import OpenedHead
from edgespec_export.lowerings import Lowering
from edgespec_export.plan import (
    CHAIN_STEPS,
    DRAFT_TOP_K,
    DraftPlan,
    Model,
    PlannedGraph,
    Table,
    chain_meta,
    describe_visual,
    step_meta,
)


def plan_head(
    head: OpenedHead,
    target: Model,
    compression: Compression | None,
    vocabulary: Sequence[int] | None,
) -> DraftPlan:
    """Composes the graphs of an opened head (which is already checked against the target).

    ``compression`` is what the user asked for; a head that was trained with one brings its own.
    Raises ConfigError for combinations that make no sense.
    """
    geometry = head.geometry
    visual = target.geometry.visual_tokens
    compression = _compression(head, compression, visual)
    if geometry.queries:
        name, tokens = f"adaptor:{geometry.queries - 1}", geometry.queries - 1
    else:
        name = str(compression or "none")
        tokens = compression.tokens(visual) if compression else visual
    folded = Folded(head.checkpoint, geometry, target.checkpoint)
    proposer = _proposer(head, target, vocabulary)
    checkpoint = head.checkpoint
    return DraftPlan(
        variant=geometry.variant,
        description=head.description,
        compose=lambda lowering: _graphs(folded, proposer, target, lowering, compression),
        identity=ModelIdentity(
            source=Path(checkpoint.source).name,
            architecture=geometry.variant,
            fingerprint=checkpoint.fingerprint(checkpoint.shapes),
            vision_fingerprint=target.vision_fingerprint,
        ),
        table=Table((folded.vocab, geometry.text.hidden), folded.table),
        proposer=proposer,
        visual=describe_visual(name, tokens, visual, geometry.position_rule, True),
        original=head,
        compression=compression,
        features=geometry.feature_layers or FINAL,
    )


def _compression(head: OpenedHead, asked: Compression | None, visual: int) -> Compression | None:
    geometry = head.geometry
    brought = geometry.compression
    if geometry.queries or brought is not None:
        own = f"adaptor:{geometry.queries - 1}" if geometry.queries else str(brought)
        if asked is not None and str(asked) != own:
            raise ConfigError(
                f"draft '{head.checkpoint.source}' was trained with its compressor '{own}'; "
                f"leave out --compressor {asked}"
            )
        asked = brought
    elif asked is not None and asked.trained:
        raise ConfigError(
            f"compressor '{asked}' has weights, and draft '{head.checkpoint.source}' does not "
            "bring them; use pool, prune, stride or text-only, or train one with edgespec distill"
        )
    if asked is not None:
        check_fits(asked, visual)
    return asked


def _proposer(head: OpenedHead, target: Model, vocabulary: Sequence[int] | None) -> Proposer:
    """The head's own output rows (EAGLE-3) or the target's, trimmed to ``vocabulary``."""
    own = head.geometry.variant == "eagle3"
    base = Proposer(head.checkpoint, "lm_head") if own else target.proposer
    ids = None if head.draft_ids is None else tuple(head.draft_ids.tolist())
    if vocabulary is None:
        return Proposer(base.checkpoint, base.name, None, ids)
    wanted = set(vocabulary)
    pairs = [(row, i) for row, i in enumerate(ids or range(base.size)) if i in wanted]
    if not pairs:
        raise ConfigError("--draft-vocab leaves the draft without a single token to propose")
    return Proposer(
        base.checkpoint, base.name, tuple(r for r, _ in pairs), tuple(i for _, i in pairs)
    )


def _graphs(
    folded: Folded,
    proposer: Proposer,
    target: Model,
    lowering: Lowering,
    compression: Compression | None,
) -> Iterator[PlannedGraph]:
    geometry, visual = folded.geometry, target.geometry.visual_tokens
    text = geometry.text
    if geometry.variant == "eagle3":
        yield PlannedGraph("draft_features", build_feature_encoder(folded, lowering))
    if not geometry.direct:
        yield PlannedGraph("draft_projector", build_image_rows(folded, lowering))
    if geometry.queries:
        yield PlannedGraph("compressor", build_adaptor(folded, visual, lowering))
    elif compression:
        graph = build_compressor(
            compression, visual, text.hidden, text.heads, lowering, folded.head
        )
        yield PlannedGraph("compressor", graph)
    top_k = min(DRAFT_TOP_K, proposer.size)
    step = build_feature_step(folded, proposer, lowering, name="draft", top_k=top_k)
    meta = step_meta(
        text,
        lowering,
        variant=geometry.variant,
        top_k=top_k,
        proposed=proposer.size,
        direct_images=geometry.direct,
    )
    yield PlannedGraph("draft", step, meta)
    chains = lowering.chains
    chain = build_feature_chain(
        folded, proposer, chains, name="draft_chain", top_k=top_k, steps=CHAIN_STEPS
    )
    yield PlannedGraph("draft_chain", chain, chain_meta(meta, chains))
