"""Feeding a prompt into a step session, in chunks that bound the attention's memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from edgespec_runtime.engines.base import Array, StepSession

CHUNK = 256
"""Rows of one call: scores of [heads, CHUNK, T] stay small, and on a CPU a row takes 5 to 7 % less
than in calls of 512, where more of the scores are masked (docs/performance.md)."""


def causal_mask(cached: int, new: int) -> npt.NDArray[np.bool_]:
    """[new, cached + new]: every new row sees the cache and the new rows up to itself."""
    return np.tri(new, cached + new, k=cached, dtype=np.bool_)


def prefill(
    session: StepSession,
    embeds: npt.NDArray[np.float32],
    positions: Sequence[int] | None = None,
    hidden: npt.NDArray[np.float32] | None = None,
    *,
    features: bool = False,
) -> tuple[list[Array], Array | None]:
    """Commits ``embeds`` [L, H] at ``positions`` (0..L-1 by default), with ``hidden`` [L, H] where
    the graph takes it.

    Returns the outputs of the last call, which are the last row's (logits [1, V]), and, where asked
    for, the last output of every row: the target's features [L, F].
    """
    outputs: list[Array] = []
    seen: list[Array] = []
    where = range(len(embeds)) if positions is None else positions
    for start, end in _chunks(where):
        chunk = embeds[start:end]
        outputs = session.step(
            chunk,
            where[start:end],
            causal_mask(session.cache.length, len(chunk)),
            last_only=True,
            hidden=None if hidden is None else hidden[start:end],
        )
        if features:
            seen.append(outputs[-1].copy())
        session.cache.commit(range(len(chunk)))
    return outputs, np.concatenate(seen) if features else None


def _chunks(positions: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Slices of at most CHUNK rows. The first ends where positions first leave a gap: ONNX
    Runtime's GroupQueryAttention counts on from the first position while the cache is empty."""
    steps = (i for i in range(1, len(positions)) if positions[i] != positions[i - 1] + 1)
    first = min(next(steps, len(positions)), CHUNK)
    if first:
        yield 0, first
    for start in range(first, len(positions), CHUNK):
        yield start, min(start + CHUNK, len(positions))
