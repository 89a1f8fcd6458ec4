"""EAGLE-3's trimmed vocabulary: which of the target's tokens a draft head proposes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from edgespec.errors import CheckpointError
from edgespec_export.checkpoint import Checkpoint, Entry

MAPS = ("d2t", "t2d")
"""Offsets (target id = row + d2t[row]) and which target tokens have a row; either may lack."""


def draft_ids(checkpoint: Checkpoint, rows: int, vocab: int) -> npt.NDArray[np.int64] | None:
    """Target ids of the head's rows [V_d]; None where it has one for every token in order.

    Raises CheckpointError where the maps are absent, of another size, or contradict each other.
    """
    found: Mapping[str, Entry] = {n: checkpoint.entries[n] for n in MAPS if n in checkpoint.entries}
    sizes = {"d2t": rows, "t2d": vocab}
    for name, entry in found.items():
        if entry.shape != (sizes[name],):
            raise CheckpointError(
                f"{checkpoint.source}: {name} has shape {list(entry.shape)} where [{sizes[name]}] "
                "was expected"
            )
    if "d2t" not in found:
        if rows == vocab:
            return None
        raise CheckpointError(
            f"{checkpoint.source}: its head has {rows} rows for {vocab} tokens, but there is no "
            "tensor d2t that says which"
        )
    ids = np.arange(rows) + checkpoint.integers("d2t")
    check_ids(checkpoint.source, ids, vocab)
    if "t2d" in found:
        kept = np.flatnonzero(checkpoint.integers("t2d"))
        if not np.array_equal(kept, np.sort(ids)):
            raise CheckpointError(
                f"{checkpoint.source}: t2d keeps {len(kept)} tokens that are not those of d2t's "
                f"{rows} rows"
            )
    return None if rows == vocab and np.array_equal(ids, np.arange(vocab)) else ids


def check_ids(source: str, ids: npt.NDArray[np.int64], vocab: int) -> None:
    """Raises CheckpointError unless ``ids`` are different tokens of ``vocab``."""
    outside = ids[(ids < 0) | (ids >= vocab)]
    if outside.size:
        raise CheckpointError(
            f"{source}: d2t leads to token {outside[0]}, outside of the target's {vocab}"
        )
    values, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise CheckpointError(
            f"{source}: d2t leads to token {values[counts > 1][0]} from more than one row"
        )
