"""How many engine threads a bundle's steps are fastest with: clocked, because more are not always
faster (cores that share one's units, slow cores beside fast ones, memory that one core saturates).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import geometric_mean, median
from time import perf_counter

import numpy as np

from edgespec.bundle import Bundle
from edgespec.errors import ConfigError
from edgespec_runtime.engines import open_engine
from edgespec_runtime.engines.base import StepGraph
from edgespec_runtime.engines.choice import Choice
from edgespec_runtime.prefill import causal_mask

ROWS = (1, 9)
"""A plain step, and one that verifies a small tree."""
CACHED = 128
CLOCKED = 9
"""Steps of each size, after two to warm up."""
CLOSE = 1.02
"""Of the fastest time: fewer threads that are as close are taken, and leave cores to others."""


@dataclass(frozen=True)
class ThreadChoice:
    """A number of threads, and the times it was chosen by."""

    threads: int
    times: Mapping[int, tuple[float, ...]]
    """Threads -> ms of steps of ``ROWS`` rows, medians."""

    def __str__(self) -> str:
        told = ", ".join(
            f"{count}: {' and '.join(f'{ms:.2f}' for ms in times)} ms"
            for count, times in self.times.items()
        )
        rows = " and ".join(map(str, ROWS))
        return f"{self.threads} threads chosen; steps of {rows} rows by threads: {told}"


def choose_threads(
    bundle: Bundle, choice: Choice, listener: Callable[[float], None] = lambda done: None
) -> ThreadChoice:
    """Clocks the target's steps (the draft's in a bundle without a target) with 1, 2, 4, ...
    threads and with one for every core, one engine loaded at a time. Raises ConfigError for an
    engine that does not run on the CPU."""
    if choice.engine != "ort":
        raise ConfigError(
            f"--threads auto is for ONNX Runtime on the CPU; the engine here is {choice.engine}"
        )
    spec = bundle.manifest.graph("target") or bundle.manifest.graph("draft")
    assert spec is not None, "a bundle without a decoder has nothing to clock"
    cores = len(os.sched_getaffinity(0))
    counts = sorted({*(1 << n for n in range(cores.bit_length()) if 1 << n <= cores), cores})
    times: dict[int, tuple[float, ...]] = {}
    for done, count in enumerate(counts, start=1):
        engine = open_engine(choice.engine, threads=count, bundle=bundle, huge_pages=True)
        graph = engine.load_step(spec, bundle.path)
        times[count] = tuple(_clocked(graph, rows) for rows in ROWS)
        listener(done / len(counts))
    return ThreadChoice(fewest_of_the_fastest(times), times)


def fewest_of_the_fastest(times: Mapping[int, tuple[float, ...]]) -> int:
    """By the geometric mean over the sizes of step."""
    means = {count: geometric_mean(each) for count, each in times.items()}
    return min(count for count, mean in means.items() if mean <= CLOSE * min(means.values()))


def _clocked(graph: StepGraph, rows: int) -> float:
    """Median ms of a step of that many rows."""
    meta = graph.spec.meta
    session = graph.open(CACHED + rows)
    rng = np.random.default_rng(0)
    embeds = rng.standard_normal((CACHED + rows, int(meta["hidden"])), dtype=np.float32)
    session.step(embeds[:CACHED], range(CACHED), causal_mask(0, CACHED), last_only=True)
    session.cache.commit(range(CACHED))
    where, mask, clocked = range(CACHED, CACHED + rows), causal_mask(CACHED, rows), []
    for _ in range(2 + CLOCKED):
        started = perf_counter()
        session.step(embeds[CACHED:], where, mask)
        clocked.append((perf_counter() - started) * 1e3)
        session.cache.commit(())
    return median(clocked[2:])
