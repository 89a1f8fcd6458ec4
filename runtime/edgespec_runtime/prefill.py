"""Feeding a prompt into a step session, in chunks that bound the attention's memory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgespec_runtime.engines.base import Array, StepSession

CHUNK = 512  # rows per call: scores of [heads, CHUNK, T] stay small on a device


def causal_mask(cached: int, new: int) -> npt.NDArray[np.bool_]:
    """[new, cached + new]: every new row sees the cache and the new rows up to itself."""
    return np.tri(new, cached + new, k=cached, dtype=np.bool_)


def prefill(
    session: StepSession, embeds: npt.NDArray[np.float32], *, features: bool = False
) -> tuple[Array, Array | None]:
    """Commits ``embeds`` [L, H] at positions 0..L-1.

    Returns the last row's first output (logits [V]) and, where asked for, every row's second one:
    the target's features [L, F].
    """
    last: Array = np.empty(0)
    seen: list[Array] = []
    for start in range(0, len(embeds), CHUNK):
        chunk = embeds[start : start + CHUNK]
        positions = np.arange(start, start + len(chunk), dtype=np.int64)
        mask = causal_mask(start, len(chunk))
        outputs = session.step(chunk, positions, mask, last_only=True)
        last = outputs[0][0]
        if features:
            seen.append(outputs[1].copy())
        session.cache.commit(range(len(chunk)))
    return last, np.concatenate(seen) if features else None
