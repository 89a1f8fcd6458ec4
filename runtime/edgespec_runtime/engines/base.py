"""The engine contract: load a graph of the bundle, run it, step a decoder over its KV cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgespec.bundle import GraphSpec
from edgespec.latency import EngineFacts
from edgespec_runtime.kv import Cache, KVCache

Array = npt.NDArray[Any]


class Graph(Protocol):
    """A graph without memory: vision tower, projector, compressor."""

    @property
    def inputs(self) -> frozenset[str]:
        """Names of its inputs."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Named inputs to named outputs."""


@dataclass(frozen=True)
class Ask:
    """New rows of one session: ``embeds`` [S, H], ``positions`` [S], ``mask`` [S, used + S]."""

    embeds: npt.NDArray[np.float32]
    positions: Sequence[int]
    mask: npt.NDArray[np.bool_]


class StepSession(Protocol):
    """One request's hold on a decoder: its own KV cache, written in place."""

    @property
    def cache(self) -> Cache:
        """The cache; a step appends pending rows, the caller commits them."""

    @property
    def engine_s(self) -> float:
        """Seconds spent inside the engine so far."""

    def step(
        self,
        embeds: npt.NDArray[np.float32],
        positions: Sequence[int] | npt.NDArray[np.int64],
        mask: npt.NDArray[np.bool_],
        last_only: bool = False,
        *,
        hidden: npt.NDArray[np.float32] | None = None,
        offset: npt.NDArray[np.float32] | None = None,
        noise: npt.NDArray[np.float32] | None = None,
    ) -> list[Array]:
        """Runs S new rows: ``embeds`` [S, H], ``positions`` [S], ``mask`` [S, used + S].

        A feature-level draft also takes ``hidden`` [S, H], and ViSpec's chain ``offset`` [H].
        A chain graph appends its own steps - 1 rows behind the S given ones and returns one row
        per step; its last step's best token, given as one more row, continues the chain
        (``hidden``: the output ``feedback`` [1, H]). ``last_only`` asks for outputs of the last
        row instead of all rows, where the output is one of picked rows (axis R; an output of axis
        S has all rows).

        ``noise`` couples a draft to the target's draws: its candidates are the best of
        log-softmax(logits / temperature + noise) (``set_temperature``). It is [R', V_d], of the
        tokens the draft may propose (``draft.ids.npy`` names them where they are fewer than the
        target's); R' is the number of picked rows, or 1 for a row that all of them share, or a
        chain's steps. It holds for this call.

        Returns arrays [R, ...] in the order the session was opened with, valid until the next
        call. Raises EngineError; for noise of another shape, or on a graph that takes none, too.
        """

    def set_temperature(self, temperature: float) -> None:
        """What a draft's logits are divided by before they are ranked; 1.0 at first. Raises
        EngineError where it is not above 0, or the graph is no draft's."""


class StepPool(Protocol):
    """Sessions of a server on one decoder, which an engine call may take together.

    Calls come one at a time, whichever of the sessions they are for: all share buffers.
    """

    @property
    def batch(self) -> int:
        """Sessions that one engine call takes; 1 where the engine steps them one after another."""

    @property
    def engine_s(self) -> float:
        """Seconds spent inside the engine so far."""

    def open(self, cache: KVCache, outputs: tuple[str, ...] = ("logits",)) -> StepSession:
        """A session on ``cache``, whose own ``step`` is for it alone, a prompt for instance."""

    def step(self, asks: Sequence[tuple[StepSession, Ask]]) -> list[list[Array]]:
        """Runs new rows of several sessions of the pool, each once: what their own steps would
        give, up to float32 rounding, in the order of ``asks``, valid until the next call.

        Raises EngineError, and then no cache has new pending rows; asks that fail together may
        succeed alone.
        """


class StepGraph(Protocol):
    """A decoder graph; weights are loaded once, every request opens a session on it."""

    @property
    def spec(self) -> GraphSpec:
        """The manifest's entry."""

    def open(
        self,
        capacity: int,
        outputs: tuple[str, ...] = ("logits",),
        cache: Cache | None = None,
    ) -> StepSession:
        """A session whose steps return ``outputs``: on a fresh cache of at least ``capacity`` rows,
        or on ``cache``, which another graph of the same model writes too."""

    def open_pool(self) -> StepPool:
        """A pool without sessions."""


class Engine(Protocol):
    """Loads graphs of a bundle."""

    @property
    def facts(self) -> EngineFacts:
        """What runs the graphs: a profile measured with it fits no other."""

    @property
    def held_mb(self) -> float:
        """Megabytes taken of an accelerator's memory since the engine was opened."""

    @property
    def notes(self) -> Sequence[str]:
        """What the user should know of the graphs loaded so far: what runs slower than it could."""

    def load(self, spec: GraphSpec, folder: Path) -> Graph:
        """A memoryless graph. Raises EngineError where the engine refuses it."""

    def load_step(
        self, spec: GraphSpec, folder: Path, packed: GraphSpec | None = None
    ) -> StepGraph:
        """A decoder graph; ``packed``: the same decoder over several sessions at once, for
        pools."""
