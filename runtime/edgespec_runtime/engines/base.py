"""The engine contract: load a graph of the bundle, run it, and step a decoder with its cache."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgespec.bundle import GraphSpec
from edgespec_runtime.kv import KVCache

Array = npt.NDArray[Any]


class Graph(Protocol):
    """A graph without memory: vision tower, projector, compressor."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Named inputs to named outputs."""


class StepGraph(Protocol):
    """A decoder graph and the KV cache it writes in place."""

    spec: GraphSpec
    cache: KVCache

    def start(self, capacity: int) -> None:
        """Begins a request: a fresh cache of at least ``capacity`` rows."""

    def buffers(self, rows: int) -> StepBuffers:
        """Input buffers of a call with ``rows`` new rows, bound once and reused."""

    def step(self, buffers: StepBuffers, outputs: tuple[str, ...], last_only: bool) -> list[Array]:
        """Runs the graph on filled buffers; the new KV rows lie behind ``cache.length``.

        ``last_only`` asks for logits of the last row instead of all rows. Returns arrays [R, ...]
        in the order of ``outputs``; they are valid until the next call.
        """


class StepBuffers(Protocol):
    """What the caller fills before a step of S rows (batch 1)."""

    embeds: npt.NDArray[np.float32]
    """[S, H]"""
    positions: npt.NDArray[np.int64]
    """[S]"""

    def mask(self, cached: int) -> npt.NDArray[np.bool_]:
        """[S, T] to fill: the first ``cached`` columns are cached rows, then the S new rows."""


class Engine(Protocol):
    """Loads graphs of a bundle."""

    name: str

    def load(self, spec: GraphSpec, folder: Path) -> Graph:
        """A memoryless graph. Raises EngineError where the engine refuses it."""

    def load_step(self, spec: GraphSpec, folder: Path) -> StepGraph:
        """A decoder graph."""
