"""Draft sessions without a graph: rows know their tokens, and the oracle knows the children.

They stand behind the engine's contract, so the runtime's own drafters grow, feed and commit over
them as they would over a model's: no rule of theirs is written twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgespec_runtime.engines.base import Array
from edgespec_runtime.kv import CacheShape, KVCache
from edgespec_runtime.simulate.clock import Meter
from edgespec_runtime.simulate.oracle import Children, Oracle

Floats = npt.NDArray[np.float32]
SHAPE = CacheShape(layers=1, kv_heads=1, head_dim=1)


@dataclass(frozen=True)
class Layout:
    """Where the answer lies among the draft's rows."""

    prompt_rows: int
    """Rows that ``prepare`` commits."""
    start: int
    """Position of the row that holds the answer's first token."""


class ReplaySession:
    """The step graph's stand-in; a row's embedding [1] is its token's id."""

    engine_s = 0.0

    def __init__(self, oracle: Oracle, meter: Meter, layout: Layout, cache: KVCache) -> None:
        self.cache = cache
        self._oracle = oracle
        self._meter = meter
        self._layout = layout

    def step(
        self,
        embeds: Floats,
        positions: Sequence[int] | npt.NDArray[np.int64],
        mask: npt.NDArray[np.bool_],
        last_only: bool = False,
        *,
        hidden: Floats | None = None,
        offset: Floats | None = None,
        noise: Floats | None = None,
    ) -> list[Array]:
        """See ``StepSession.step``."""
        cache = self.cache
        used, committed = cache.used, cache.length
        _append(cache, embeds[:, 0])
        if used < self._layout.prompt_rows:  # billed as a whole, by the drafter
            return _outputs([], self._oracle.width)
        if last_only:
            self._meter.first(len(embeds), committed)
            root = int(positions[-1]) - self._layout.start
            return _outputs([self._oracle.children(root, ())], self._oracle.width)
        self._meter.step(len(embeds), committed)
        pending = _tokens(cache)
        found = []
        for position, seen in zip(positions, mask[:, committed:], strict=True):
            path = tuple(pending[row] for row in np.flatnonzero(seen))
            root = int(position) - self._layout.start - len(path)
            found.append(self._oracle.children(root, path))
        return _outputs(found, self._oracle.width)

    def set_temperature(self, temperature: float) -> None:
        """What was recorded was ranked when it was recorded."""


class ReplayChain:
    """The chain graph's stand-in, on the step session's cache."""

    engine_s = 0.0

    def __init__(
        self, oracle: Oracle, meter: Meter, layout: Layout, cache: KVCache, steps: int
    ) -> None:
        self.cache = cache
        self._oracle = oracle
        self._meter = meter
        self._layout = layout
        self._steps = steps

    def step(
        self,
        embeds: Floats,
        positions: Sequence[int] | npt.NDArray[np.int64],
        mask: npt.NDArray[np.bool_],
        last_only: bool = False,
        *,
        hidden: Floats | None = None,
        offset: Floats | None = None,
        noise: Floats | None = None,
    ) -> list[Array]:
        """See ``StepSession.step``: one row of outputs per level."""
        cache = self.cache
        first = cache.pending == 0
        self._meter.chain(len(embeds), cache.length, first)
        _append(cache, embeds[:, 0])
        path = () if first else tuple(_tokens(cache))
        root = int(positions[-1]) - self._layout.start - len(path)
        found: list[Children] = []
        for _ in range(self._steps):
            found.append(self._oracle.children(root, path))
            path = (*path, found[-1].tokens[0])
        _append(cache, path[len(path) - self._steps : -1])
        logprobs, ids, feedback = _outputs(found, self._oracle.width)
        return [logprobs, ids, feedback[-1:]]

    def set_temperature(self, temperature: float) -> None:
        """What was recorded was ranked when it was recorded."""


def _append(cache: KVCache, tokens: Sequence[int] | Floats) -> None:
    """Writes the rows of ``tokens`` behind the used ones."""
    used = cache.used
    cache.rows[0, 0, 0, 0, used : used + len(tokens), 0] = tokens
    cache.pending += len(tokens)


def _tokens(cache: KVCache) -> list[int]:
    """Tokens of the pending rows."""
    rows = cache.rows[0, 0, 0, 0, cache.length : cache.used, 0]
    return [int(token) for token in rows.tolist()]


def _outputs(found: Sequence[Children], width: int) -> list[Array]:
    """Log-probabilities and ids [R, width]; feedback [R, 1], which tells nothing."""
    count = max(len(found), 1)
    logprobs, ids = np.zeros((count, width)), np.zeros((count, width), dtype=np.int64)
    for row, children in enumerate(found):
        logprobs[row], ids[row] = children.logprobs, children.tokens
    return [logprobs, ids, np.zeros((count, 1), dtype=np.float32)]
