"""A server's sessions on ONNX Runtime: prompts one by one, verifications several to a call.

The packed graph has a fixed number of seats (``edgespec_export.graphs.packed``). A slot keeps its
seat from call to call, as binding a cache anew takes as long as a small layer; seats left over run
one row of nobody's over a scratch cache.
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
from edgespec_runtime.engines.ort_step import cache_values, check_rows, mask_span, short, spread
from edgespec_runtime.kv import CacheShape, KVCache

IDLE = -1  # the slot of a seat that nobody has


class OrtPool:
    """See ``StepPool``."""

    def __init__(
        self,
        caches: Sequence[KVCache],
        alone: Callable[[KVCache, Buffers], StepSession],
        together: PackedStep | None,
        buffers: Buffers,
    ) -> None:
        self._caches = caches
        self._alone = alone
        self._together = together
        self._buffers = buffers
        self._sessions: dict[int, StepSession] = {}

    @property
    def batch(self) -> int:
        return self._together.seats if self._together else 1

    @property
    def engine_s(self) -> float:
        packed = self._together.engine_s if self._together else 0.0
        return packed + sum(session.engine_s for session in self._sessions.values())

    def session(self, slot: int) -> StepSession:
        if slot not in self._sessions:
            self._sessions[slot] = self._alone(self._caches[slot], self._buffers)
        return self._sessions[slot]

    def step(self, asks: Sequence[tuple[int, Ask]]) -> list[list[Array]]:
        slots = [slot for slot, _ in asks]
        if len(set(slots)) != len(slots):
            raise EngineError(f"a pool steps a slot once in a call; it was asked for {slots}")
        pending = [self._caches[slot].pending for slot in slots]
        calls = [asks[i : i + self.batch] for i in range(0, len(asks), self.batch)]
        try:
            answers = [answer for call in calls for answer in self._call(call, len(calls) > 1)]
        except EngineError:
            for slot, before in zip(slots, pending, strict=True):
                self._caches[slot].pending = before
            raise
        return answers

    def _call(self, asks: Sequence[tuple[int, Ask]], keep: bool) -> list[list[Array]]:
        """One engine call; ``keep``: another one will use the buffers, so answers are copied."""
        if self._together and len(asks) > 1:
            answers = self._together.step(asks)
        else:
            ((slot, ask),) = asks
            answers = [self.session(slot).step(ask.embeds, ask.positions, ask.mask)]
        return [[array.copy() for array in answer] for answer in answers] if keep else answers


class PackedStep:
    """The packed graph over the caches of a pool."""

    def __init__(
        self,
        session: Any,
        spec: GraphSpec,
        caches: Sequence[KVCache],
        outputs: tuple[str, ...],
        wrap: Callable[[Array], Any],
    ) -> None:
        meta = spec.meta
        self.seats = int(meta["sessions"])
        self.engine_s = 0.0
        self._spec = spec
        self._session = session
        self._wrap = wrap
        self._outputs = [
            tensor for name in outputs for tensor in spec.outputs if tensor.name == name
        ]
        self._hidden = int(meta["hidden"])
        shape = CacheShape(int(meta["layers"]), int(meta["kv_heads"]), int(meta["head_dim"]))
        self._caches = {IDLE: KVCache(shape, 1), **dict(enumerate(caches))}
        nothing = np.zeros((1, self._hidden), dtype=np.float32)
        self._idle = Ask(nothing, [0], np.ones((1, 1), dtype=np.bool_))  # operators want a row
        self._values: dict[int, dict[str, Any]] = {}
        self._buffers = Buffers(wrap)
        self._binding = session.io_binding()
        self._past, self._rows = (np.zeros(self.seats, dtype=np.int64) for _ in range(2))
        self._binding.bind_ortvalue_input("past_length", wrap(self._past))
        self._binding.bind_ortvalue_input("rows", wrap(self._rows))
        self._seated = [IDLE] * self.seats
        for seat in range(self.seats):
            self._seat(seat, IDLE)

    def step(self, asks: Sequence[tuple[int, Ask]]) -> list[list[Array]]:
        """At most ``seats`` asks in one call of the engine. Raises EngineError."""
        for slot, ask in asks:
            check_rows(self._spec, self._caches[slot], len(ask.embeds), ask.positions, ask.mask)
        given = dict(asks)
        self._place(list(given))
        self._feed([given.get(slot, self._idle) for slot in self._seated])
        total = int(self._rows.sum())
        found = [self._result(tensor, total) for tensor in self._outputs]
        started = perf_counter()
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            raise EngineError(f"onnxruntime failed in {self._spec.file}: {short(error)}") from error
        self.engine_s += perf_counter() - started
        ends = np.cumsum(self._rows)
        answers = []
        for slot, ask in asks:
            end = int(ends[self._seated.index(slot)])
            answers.append([array[end - len(ask.embeds) : end] for array in found])
            self._caches[slot].pending += len(ask.embeds)
        return answers

    def _place(self, slots: list[int]) -> None:
        """Gives every slot a seat, the one it had where it had one."""
        staying = set(slots)
        free = [seat for seat, slot in enumerate(self._seated) if slot not in staying]
        coming = iter([slot for slot in slots if slot not in self._seated])
        for seat in free:
            slot = next(coming, IDLE)
            if slot != self._seated[seat]:
                self._seat(seat, slot)

    def _seat(self, seat: int, slot: int) -> None:
        """Binds the slot's cache as that of the seat."""
        if slot not in self._values:
            self._values[slot] = cache_values(self._caches[slot], self._wrap)
        for name, value in self._values[slot].items():
            self._binding.bind_ortvalue_input(f"past_{name}.{seat}", value)
            self._binding.bind_ortvalue_output(f"present_{name}.{seat}", value)
        self._seated[seat] = slot

    def _feed(self, asks: Sequence[Ask]) -> None:
        """Binds what the rows of all seats are, one behind the other."""
        self._rows[:] = [len(ask.embeds) for ask in asks]
        total = int(self._rows.sum())
        embeds = self._take("inputs_embeds", total, self._hidden, np.float32)
        np.concatenate([ask.embeds for ask in asks], out=embeds)
        self._take("position_ids", total, 0, np.int64)[:] = [
            p for ask in asks for p in ask.positions
        ]
        self._masks = []  # what is bound is kept here
        for seat, ask in enumerate(asks):
            cache = self._caches[self._seated[seat]]
            self._past[seat] = cache.used
            mask = spread(ask.mask, mask_span(self._spec, cache))
            self._masks.append(mask)
            self._binding.bind_ortvalue_input(f"tree_mask.{seat}", self._wrap(mask))

    def _take(self, name: str, rows: int, width: int, dtype: Any) -> Array:
        array, value = self._buffers.take(f"given {name}", rows, width, dtype)
        self._binding.bind_ortvalue_input(name, value)
        return array

    def _result(self, tensor: TensorSpec, rows: int) -> Array:
        array, value = self._buffers.take(tensor.name, rows, int(tensor.axes[-1]), tensor.dtype)
        self._binding.bind_ortvalue_output(tensor.name, value)
        return array
