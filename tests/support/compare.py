"""Comparing token sequences: equal, or parted by a tie that float32 cannot keep apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.sampling import gumbel_noise, process
from edgespec_runtime import Model
from edgespec_runtime.kv import Cache, KVCache

TIE = 1e-4
"""Largest difference of two tokens' scores that may fall either way."""


def host_rows(cache: Cache) -> npt.NDArray[np.float32]:
    """All rows [layers, 2, B, KV, capacity, D] of a cache that a CPU engine writes."""
    assert isinstance(cache, KVCache)
    return cache.rows


def first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """Index of the first difference, None where the sequences are equal."""
    pairs = zip(ours, theirs, strict=False)
    found = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if found is None and len(ours) != len(theirs):
        return min(len(ours), len(theirs))
    return found


def assert_same_tokens(
    model: Model,
    images: Sequence[Any],
    prompt: str,
    settings: dict[str, Any],
    plain: Sequence[int],
    other: Sequence[int],
    tie: float = TIE,
) -> float | None:
    """``other`` equals ``plain``; a difference must be a ``tie`` of the processed, noisy scores.
    Returns how far these are from each other, None where there is none."""
    at = first_difference(plain, other)
    if at is None:
        return None
    assert at < min(len(plain), len(other)), f"one text ends early: {plain} against {other}"
    scores = _scores(model, images, prompt, settings, plain[:at])
    gap = abs(float(scores[plain[at]] - scores[other[at]]))
    assert gap < tie, (
        f"token {at} is {other[at]} where plain decoding says {plain[at]} (score gap {gap:.3g}; "
        f"settings {settings}): {list(other)} against {list(plain)}"
    )
    return gap


def _scores(
    model: Model, images: Sequence[Any], prompt: str, settings: dict[str, Any], given: Sequence[int]
) -> Any:
    """What the sampler maximises after ``given``, by plain decoding that is led along it."""
    settings = {**settings, "draft": "none", "stop": (), "max_new_tokens": len(given) + 1}
    request = model.stream(images, prompt, **settings)
    sampler = request._verifier._sampler  # type: ignore[attr-defined]
    seen: list[Any] = []

    def led(logits: Any, position: int, path: Sequence[int]) -> int:
        params = sampler.params
        penalised = params.repetition_penalty != 1.0
        logits = sampler._penalised(logits, path) if penalised else logits
        if params.greedy:
            seen.append(np.array(logits, dtype=np.float64))
        else:
            noise = gumbel_noise(params.seed, position, logits.shape[0])
            seen.append(process(logits, params) + noise)
        return int(given[len(seen) - 1]) if len(seen) <= len(given) else 0

    sampler.pick = led
    for _ in request._rounds:
        if len(seen) > len(given):
            break
    return seen[len(given)]
