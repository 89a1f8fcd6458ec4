"""Whether several verifications in one engine call take less time than one after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter

import numpy as np

from edgespec_runtime.engines.base import Ask, StepPool, StepSession
from edgespec_runtime.prefill import causal_mask
from edgespec_runtime.server.slots import Slot

ROWS = 8
"""Of every verification clocked."""
CONTEXT = 64
REPEATS = 3
BUDGET_S = 1.0
"""After which no further repeat begins."""


def measured_width(
    pool: StepPool,
    slots: Sequence[Slot],
    hidden: int,
    most: int,
    clock: Callable[[], float] = perf_counter,
) -> int:
    """Verifications that one call should take: as many as ``most`` and the pool allow, or 1 where
    a full call is not faster than as many single ones. ``slots`` are empty, and are so afterwards;
    ``hidden`` is the width of an embedding."""
    seats = min(most, pool.batch, len(slots))
    length = min(CONTEXT, min(slot.cache.capacity for slot in slots) - ROWS)
    if seats < 2 or length < 1:
        return 1
    caches = [slot.cache for slot in slots[:seats]]
    positions = list(range(length, length + ROWS))
    ask = Ask(np.zeros((ROWS, hidden), np.float32), positions, causal_mask(length, ROWS))
    asks: list[tuple[StepSession, Ask]] = [(pool.open(cache), ask) for cache in caches]

    def timed(calls: Sequence[Sequence[tuple[StepSession, Ask]]]) -> float:
        for cache in caches:
            cache.length, cache.pending = length, 0
        started = clock()
        for call in calls:
            pool.step(call)
        return clock() - started

    ways = ([asks], [[one] for one in asks])
    found: tuple[list[float], list[float]] = ([], [])
    began = clock()
    try:
        for calls in ways:  # the first call binds buffers
            timed(calls)
        while len(found[0]) < REPEATS and (not found[0] or clock() - began < BUDGET_S):
            for times, calls in zip(found, ways, strict=True):
                times.append(timed(calls))
    finally:
        for cache in caches:
            cache.length = cache.pending = 0
    together, queued = map(median, found)
    return seats if together < queued else 1
