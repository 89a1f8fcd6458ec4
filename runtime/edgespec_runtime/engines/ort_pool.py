"""A server's sessions on ONNX Runtime: prompts one by one, verifications several to a call.

The packed graph has a fixed number of seats (``edgespec_export.graphs.packed``). A session keeps
its seat from call to call, as binding a cache anew takes as long as a small layer; seats left over
run one row of nobody's over a scratch cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import numpy as np

from edgespec.bundle import GraphSpec, TensorSpec
from edgespec.errors import EngineError
from edgespec_runtime.engines.base import Array, Ask, StepSession
from edgespec_runtime.engines.buffers import Buffers
from edgespec_runtime.engines.checks import check_rows
from edgespec_runtime.engines.masks import BEHIND, MaskInput
from edgespec_runtime.engines.ort_step import (
    OrtStepSession,
    append,
    cache_values,
    layer_values,
    new_rows,
    short,
)
from edgespec_runtime.kv import CacheShape, KVCache

Asked = tuple[OrtStepSession, Ask]
Open = Callable[[KVCache, tuple[str, ...]], OrtStepSession]


class OrtPool:
    """See ``StepPool``."""

    def __init__(self, alone: Open, together: PackedStep | None) -> None:
        """``alone``: opens a session on a cache; ``together``: the packed graph, where one is."""
        self._alone = alone
        self._together = together

    @property
    def batch(self) -> int:
        return self._together.seats if self._together else 1

    @property
    def engine_s(self) -> float:
        return self._together.engine_s if self._together else 0.0

    def open(self, cache: KVCache, outputs: tuple[str, ...] = ("logits",)) -> StepSession:
        return self._alone(cache, outputs)

    def step(self, asks: Sequence[tuple[StepSession, Ask]]) -> list[list[Array]]:
        own = [(session, ask) for session, ask in asks if isinstance(session, OrtStepSession)]
        if len({id(session.cache) for session, _ in own}) != len(asks):
            raise EngineError("a pool steps each of its sessions once in a call")
        pending = [session.cache.pending for session, _ in own]
        calls = [own[i : i + self.batch] for i in range(0, len(own), self.batch)]
        try:
            return [answer for call in calls for answer in self._call(call, len(calls) > 1)]
        except EngineError:
            for (session, _), before in zip(own, pending, strict=True):
                session.cache.pending = before
            raise

    def _call(self, asks: Sequence[Asked], keep: bool) -> list[list[Array]]:
        """One engine call; ``keep``: another one will use the buffers, so answers are copied."""
        if self._together and len(asks) > 1:
            answers = self._together.step(asks)
        else:
            ((session, ask),) = asks
            answers = [session.step(ask.embeds, ask.positions, ask.mask)]
        return [[array.copy() for array in answer] for answer in answers] if keep else answers


class PackedStep:
    """The packed graph over any sessions of a pool."""

    def __init__(self, session: Any, spec: GraphSpec, wrap: Callable[[Array], Any]) -> None:
        meta = spec.meta
        self.seats = int(meta["sessions"])
        self.engine_s = 0.0
        self._spec = spec
        self._session = session
        self._wrap = wrap
        self._outputs = [tensor for tensor in spec.outputs if not _is_cache(tensor)]
        self._hidden = int(meta["hidden"])
        self._buffers = Buffers(wrap)
        self._binding = session.io_binding()
        self._past, self._rows = (np.zeros(self.seats, dtype=np.int64) for _ in range(2))
        self._binding.bind_ortvalue_input("past_length", wrap(self._past))
        self._binding.bind_ortvalue_input("rows", wrap(self._rows))
        self._behind = meta["mask_span"] == BEHIND
        self._fresh: list[Array] = []  # new rows of every seat, where the graph hands them out
        self._masks = [
            MaskInput(self._binding, f"tree_mask.{seat}", spec) for seat in range(self.seats)
        ]
        self._scratch = KVCache(CacheShape.of(spec), 1)
        self._scratch_layers = cache_values(self._scratch, wrap)
        nothing = np.zeros((1, self._hidden), dtype=np.float32)
        self._idle = Ask(nothing, [0], np.ones((1, 1), dtype=np.bool_))  # operators want a row
        self._seated: list[OrtStepSession | None] = [None] * self.seats
        for seat in range(self.seats):
            self._seat(seat, None)

    def step(self, asks: Sequence[Asked]) -> list[list[Array]]:
        """At most ``seats`` asks in one call of the engine. Raises EngineError."""
        for session, ask in asks:
            new = len(ask.embeds)
            check_rows(self._spec, session.cache, new, ask.positions, ask.mask)
        self._place([session for session, _ in asks])
        given = {id(session): ask for session, ask in asks}
        self._feed([given.get(id(seated), self._idle) for seated in self._seated])
        total = int(self._rows.sum())
        found = {tensor.name: self._result(tensor, total) for tensor in self._outputs}
        started = perf_counter()
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            raise EngineError(f"onnxruntime failed in {self._spec.file}: {short(error)}") from error
        self.engine_s += perf_counter() - started
        ends = np.cumsum(self._rows)
        answers = []
        for session, ask in asks:
            end = int(ends[self._seated.index(session)])
            start = end - len(ask.embeds)
            answers.append([found[name][start:end] for name in session.outputs])
            if self._behind:
                append(session.cache, self._fresh[self._seated.index(session)])
            session.cache.pending += len(ask.embeds)
        return answers

    def _place(self, sessions: Sequence[OrtStepSession]) -> None:
        """Gives every session a seat, the one it had where it had one."""
        free = [seat for seat, held in enumerate(self._seated) if held not in sessions]
        coming = iter([session for session in sessions if session not in self._seated])
        for seat in free:
            session = next(coming, None)
            if session is not self._seated[seat]:
                self._seat(seat, session)

    def _seat(self, seat: int, session: OrtStepSession | None) -> None:
        """Binds the session's cache as that of the seat; None: the scratch cache."""
        layers = session.layers if session else self._scratch_layers
        for name, value in layers.items():
            self._binding.bind_ortvalue_input(f"past_{name}.{seat}", value)
            if not self._behind:
                self._binding.bind_ortvalue_output(f"present_{name}.{seat}", value)
        self._seated[seat] = session

    def _feed(self, asks: Sequence[Ask]) -> None:
        """Binds what the rows of all seats are, one behind the other."""
        self._rows[:] = [len(ask.embeds) for ask in asks]
        total = int(self._rows.sum())
        embeds = self._take("inputs_embeds", total, self._hidden, np.float32)
        np.concatenate([ask.embeds for ask in asks], out=embeds)
        positions = self._take("position_ids", total, 0, np.int64)
        positions[:] = [position for ask in asks for position in ask.positions]
        self._fresh = []
        for seat, (session, ask) in enumerate(zip(self._seated, asks, strict=True)):
            cache = session.cache if session else self._scratch
            self._past[seat] = cache.used
            self._masks[seat].fill(ask.mask, cache)
            if self._behind:
                self._fresh.append(new_rows(cache, len(ask.embeds)))
                for name, value in layer_values(self._fresh[-1], self._wrap).items():
                    self._binding.bind_ortvalue_output(f"new_{name}.{seat}", value)

    def _take(self, name: str, rows: int, width: int, dtype: Any) -> Array:
        array, value = self._buffers.take(f"given {name}", rows, width, dtype)
        self._binding.bind_ortvalue_input(name, value)
        return array

    def _result(self, tensor: TensorSpec, rows: int) -> Array:
        array, value = self._buffers.take(tensor.name, rows, int(tensor.axes[-1]), tensor.dtype)
        self._binding.bind_ortvalue_output(tensor.name, value)
        return array


def _is_cache(tensor: TensorSpec) -> bool:
    return tensor.name.startswith(("present_", "new_"))
