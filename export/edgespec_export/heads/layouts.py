"""Opens published and own checkpoints of feature-level drafts, strictly and without torch.

Layouts: EAGLE-1/2, MSD, EagleVLM, ViSpec, SpecVLM, and EAGLE-3 as its authors, SpecForge and
speculators write it. Names and shapes decide, the config is cross-checked, and whatever is missing,
extra or contradictory is refused by name before anything is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgespec.errors import CheckpointError
from edgespec_export.checkpoint import Checkpoint, open_checkpoint
from edgespec_export.expected import Shapes, check_shapes
from edgespec_export.geometry import ModelGeometry, TextGeometry
from edgespec_export.heads.fit import check_fit
from edgespec_export.heads.geometry import HeadGeometry, captured_layers
from edgespec_export.heads.label import Label, check_variant, read_label
from edgespec_export.heads.recognise import Recognised, canonical_entries, recognise
from edgespec_export.heads.settings import Settings, defaults_taken, read_layer, read_settings
from edgespec_export.heads.shapes import UNUSED, head_shapes
from edgespec_export.heads.vocabulary import MAPS, draft_ids

EMBEDDING = "embed_tokens.weight"


class Target(Protocol):
    """What is asked of the target; ``exporter.Model`` is one."""

    @property
    def checkpoint(self) -> Checkpoint: ...
    @property
    def geometry(self) -> ModelGeometry: ...
    @property
    def text_fingerprint(self) -> str: ...


@dataclass(frozen=True)
class OpenedHead:
    """A head whose every tensor has been checked and read once."""

    checkpoint: Checkpoint
    """Entries by official name, and only those that the head computes with: ``embed_tokens.weight``
    where it differs from the target's, ``d2t`` where the vocabulary is trimmed, never ``t2d``."""
    geometry: HeadGeometry
    description: str
    """One line: variant, what told it, sizes, defaults that were taken."""
    label: Label
    draft_ids: npt.NDArray[np.int64] | None
    """Target token of each row of the head [V_d]; None: the target's vocabulary in order."""


def open_head(source: str, target: Target, variant: str | None = None) -> OpenedHead:
    """Opens the head in ``source`` (a directory or hub id) for ``target``.

    Raises CheckpointError for anything that is missing, extra, misshapen, not finite, contradictory
    or of another target; MissingDependencyError for pickled weights without torch.
    """
    if variant is not None:
        check_variant(variant)
    found = open_checkpoint(source, pickles=True)
    label = read_label(found.config, source)
    recognised = recognise(found, label.variant, variant)
    entries = canonical_entries(found, recognised.variant)
    checkpoint = replace(found, entries=entries)
    settings = read_settings(checkpoint.config, recognised.variant, source)
    _check_fingerprint(source, label, target)
    check_fit(checkpoint, recognised.variant, settings, target.geometry.text)
    geometry = _geometry(checkpoint, recognised.variant, label, settings, target.geometry.text)
    ids = _check_tensors(checkpoint, geometry)
    own = _own_embedding(checkpoint, target.checkpoint)
    geometry = replace(
        geometry, own_embedding=own, draft_vocab=0 if ids is None else geometry.draft_vocab
    )
    kept = {n: e for n, e in entries.items() if _is_kept(n, geometry)}
    checkpoint = replace(checkpoint, entries=kept)
    line = _describe(source, geometry, recognised, settings)
    return OpenedHead(checkpoint, geometry, line, label, ids)


def _check_fingerprint(source: str, label: Label, target: Target) -> None:
    wanted = label.target_fingerprint
    if wanted is not None and wanted != target.text_fingerprint:
        raise CheckpointError(
            f"head '{source}' was trained for another target ({wanted[:12]}...) than "
            f"'{target.checkpoint.source}' ({target.text_fingerprint[:12]}...)"
        )


def _geometry(
    checkpoint: Checkpoint, variant: str, label: Label, settings: Settings, target: TextGeometry
) -> HeadGeometry:
    """Derived from tensors, completed and cross-checked by the config."""
    shapes, source = dict(checkpoint.shapes), checkpoint.source
    text = read_layer(settings, shapes, source, target.vocab)
    # Rotary positions have no end of their own: the tables reach as far as the target goes.
    text = replace(text, max_positions=max(text.max_positions, target.max_positions))
    three = variant == "eagle3"
    if three != bool(label.feature_layers) and label.feature_layers:
        raise CheckpointError(f"{source}: feature_layers are EAGLE-3's; this head is '{variant}'")
    if (variant == "specvlm") != (label.compression is not None):
        has = "names a compressor" if label.compression else "names no compressor"
        raise CheckpointError(
            f"{source}: this head is '{variant}', but its config.json {has} (edgespec.compressor); "
            "SpecVLM heads have one, others have none"
        )
    return HeadGeometry(
        variant=variant,
        text=text,
        feature_size=3 * target.hidden if three else target.hidden,
        fc_bias="fc.bias" in shapes,
        draft_vocab=_draft_vocab(settings, shapes, source) if three else 0,
        queries=sum(shapes.get("imadpt.q", ())[:1]) if variant == "vispec" else 0,
        feature_layers=_features(label, settings, target.layers, source) if three else (),
        compression=label.compression,
        **settings.flags,
    )


def _features(label: Label, settings: Settings, layers: int, source: str) -> tuple[int, ...]:
    told = label.feature_layers or settings.feature_layers
    chosen = told or captured_layers(layers)
    if len(chosen) != 3 or not all(0 <= i <= layers for i in chosen):
        why = "says" if told else "says nothing of feature layers, and EAGLE-3's rule gives"
        raise CheckpointError(
            f"{source}: config.json {why} {list(chosen)}; three hidden states from 0 to {layers} "
            "are expected of this target (edgespec.feature_layers)"
        )
    return chosen


def _draft_vocab(settings: Settings, shapes: Shapes, source: str) -> int:
    rows = sum(shapes.get("lm_head.weight", ())[:1])
    if settings.draft_vocab not in (None, rows) and rows:
        raise CheckpointError(
            f"{source}: draft_vocab_size is {settings.draft_vocab} where lm_head.weight has {rows} "
            "rows"
        )
    return rows


def _check_tensors(checkpoint: Checkpoint, geometry: HeadGeometry) -> npt.NDArray[np.int64] | None:
    """Names, shapes, storage, and every value once, so that nothing is written before a NaN."""
    if geometry.variant == "vispec" and geometry.queries < 2:
        raise CheckpointError(
            f"{checkpoint.source}: imadpt.q has {geometry.queries} queries; one for the image and "
            "one for the global vector are the least"
        )
    if geometry.fc_norm and geometry.norm_before_fc:
        raise CheckpointError(f"{checkpoint.source}: fc_norm and norm_before_fc exclude each other")
    expected = head_shapes(geometry)
    if EMBEDDING in checkpoint.entries:
        rows = checkpoint.shapes[EMBEDDING][:1] or (geometry.text.vocab,)
        expected[EMBEDDING] = (rows[0], geometry.text.hidden)
    maps = MAPS if geometry.variant == "eagle3" else ()
    floats = {n: e for n, e in checkpoint.entries.items() if n not in maps}
    check_shapes(replace(checkpoint, entries=floats), expected, UNUSED)
    for name in expected:
        for _ in checkpoint.pieces(name):
            pass
    if geometry.variant != "eagle3":
        return None
    return draft_ids(checkpoint, geometry.draft_vocab, geometry.text.vocab)


def _own_embedding(checkpoint: Checkpoint, target: Checkpoint) -> bool:
    """Whether the head's table holds other numbers than the first rows of the target's."""
    if EMBEDDING not in checkpoint.entries:
        return False
    table = "text.embed_tokens.weight"
    rows, width = checkpoint.shapes[EMBEDDING]
    if target.shapes[table][1] != width:
        return True
    pairs = zip(_rows(checkpoint, EMBEDDING, rows), _rows(target, table, rows), strict=False)
    return not all(np.array_equal(ours, theirs) for ours, theirs in pairs)


def _rows(checkpoint: Checkpoint, name: str, rows: int) -> Iterator[npt.NDArray[np.float32]]:
    """The first ``rows`` of a table, as many at a time as ``pieces`` gives."""
    left = rows
    for piece in checkpoint.pieces(name):
        yield piece[:left]
        left -= len(piece)
        if left <= 0:
            return


def _is_kept(name: str, geometry: HeadGeometry) -> bool:
    if name == EMBEDDING:
        return geometry.own_embedding
    if name == "d2t":
        return geometry.draft_vocab > 0
    return name != "t2d" and not UNUSED.match(name)


def _describe(
    source: str, geometry: HeadGeometry, recognised: Recognised, settings: Settings
) -> str:
    text = geometry.text
    parts = [
        f"hidden {text.hidden}, intermediate {text.intermediate}, {text.heads} heads over "
        f"{text.kv_heads} of size {text.head_dim}",
    ]
    if geometry.draft_vocab:
        parts.append(f"{geometry.draft_vocab} of {text.vocab} tokens")
    else:
        parts.append(f"{text.vocab} tokens")
    parts.append("own embedding" if geometry.own_embedding else "the target's embedding")
    if geometry.queries:
        parts.append(f"{geometry.queries} queries")
    if geometry.compression:
        parts.append(f"compressor {geometry.compression}")
    if geometry.feature_layers:
        layers = ", ".join(map(str, geometry.feature_layers))
        parts.append(f"features of layers {layers}")
    parts += [flag for flag in settings.flags if settings.flags[flag]]
    if taken := defaults_taken(settings):
        parts.append(f"by default {', '.join(taken)}")
    return f"{source}: {recognised.variant} ({recognised.told_by}); {'; '.join(parts)}"
