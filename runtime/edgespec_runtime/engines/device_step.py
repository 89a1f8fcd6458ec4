"""A decoder's steps on an accelerator, whichever engine enqueues them there.

Row counts are padded up to a few sizes, so that every size finds its buffers bound and its launch
recorded. Padding rows lie behind the given ones, see nothing but themselves, and are overwritten by
the next step.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from edgespec.bundle import GraphSpec
from edgespec.errors import EngineError
from edgespec_runtime.engines.base import Array, StepPool
from edgespec_runtime.engines.checks import (
    check_coupled,
    check_noise,
    check_rows,
    inverse,
    picked_rows,
)
from edgespec_runtime.engines.device_cache import DeviceCache
from edgespec_runtime.engines.device_call import DeviceCall, Form
from edgespec_runtime.engines.executor import Executor
from edgespec_runtime.engines.memory import Block, Memory, Shelf
from edgespec_runtime.engines.ort_step import CAPACITY, LAST
from edgespec_runtime.kv import BLOCK, Cache, CacheShape

ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Sizes that rows of trees are padded to; those of prompts are multiples of ``PROMPT_ROWS``."""
PROMPT_ROWS = 64
MOST_ROWS = 4096
"""Rows of a call at most, where the engine knows no other limit."""
FORMS = 48
"""Forms kept per cache; a prompt's last chunk may have any length."""


def padded_rows(rows: int) -> int:
    """The size that ``rows`` are padded to."""
    fit = next((size for size in ROWS if size >= rows), 0)
    return fit or -(-rows // PROMPT_ROWS) * PROMPT_ROWS


@dataclass(frozen=True)
class Limits:
    """Sizes that an engine takes."""

    capacity: Callable[[int], int]
    """Rows of a cache that has to hold so many; raises EngineError where it cannot."""
    prompt_rows: int
    """Most rows of a call of which the last one's outputs are wanted."""
    tree_rows: int
    """Most rows of any other call."""


class DeviceStepGraph:
    """A decoder graph; sessions share its weights."""

    def __init__(
        self,
        spec: GraphSpec,
        executor: Executor,
        memory: Memory,
        limits: Limits | None = None,
    ) -> None:
        """``limits``: what the engine was built for; None where it takes any size."""
        self.spec = spec
        self.executor = executor
        self.memory = memory
        self.limits = limits or Limits(self._roomy, MOST_ROWS, MOST_ROWS)
        self._shelf = Shelf(memory)
        self._calls: WeakKeyDictionary[Block, OrderedDict[Form, DeviceCall]]
        self._calls = WeakKeyDictionary()

    def open(
        self,
        capacity: int,
        outputs: tuple[str, ...] = ("logits",),
        cache: Cache | None = None,
    ) -> DeviceStepSession:
        if cache is None:
            shape, rows = CacheShape.of(self.spec), self.limits.capacity(capacity)
            cache = DeviceCache(self.memory, self._shelf, shape, rows)
        if not isinstance(cache, DeviceCache):
            raise EngineError(f"{self.spec.file}: its cache is not in the accelerator's memory")
        return DeviceStepSession(self, cache, outputs)

    def _roomy(self, wanted: int) -> int:
        """Room for padding behind the last rows; without, those would be forms of their own."""
        return wanted if self.spec.meta["mask_span"] == "total" else wanted + BLOCK

    def open_pool(self) -> StepPool:
        raise EngineError(
            "a server's sessions run on the CPU's engine so far; serve with it, or decode here"
        )

    def call(self, cache: DeviceCache, form: Form) -> DeviceCall:
        """The bound call of that form over that cache; kept as long as the cache's memory."""
        calls = self._calls.setdefault(cache.block, OrderedDict())
        if form not in calls:
            calls[form] = DeviceCall(self.memory, self.executor, self.spec, cache, form)
            if len(calls) > FORMS:
                calls.popitem(last=False)
        calls.move_to_end(form)
        return calls[form]


class DeviceStepSession:
    """See ``StepSession``."""

    def __init__(
        self, graph: DeviceStepGraph, cache: DeviceCache, outputs: tuple[str, ...]
    ) -> None:
        self.cache = cache
        self.engine_s = 0.0
        self._graph = graph
        self._outputs = outputs
        self._spec = graph.spec
        self._steps = int(self._spec.meta.get("steps", 1))  # > 1: it appends rows of its own
        self._given = {tensor.name for tensor in self._spec.inputs}
        self._offset = np.zeros(int(self._spec.meta["hidden"]), dtype=np.float32)
        self._inverse_temperature = 1.0

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
        rows, cache = len(embeds), self.cache
        new = rows + self._steps - 1
        check_rows(self._spec, cache, new, positions, mask)
        if rows > self._most(last_only):
            return self._in_parts(embeds, positions, mask, last_only, hidden, noise)
        form = self._form(rows, last_only, noise)
        with self._graph.memory.lock:
            call = self._graph.call(cache, form)
            call.fill("inputs_embeds", embeds)
            call.fill("position_ids", np.asarray(positions))
            for name, value in self._lengths(form.rows):
                call.put(name, value)
            call.mask(mask, cache.used)
            if "logit_index" in self._given:
                call.put("logit_index", rows - 1 if last_only else np.arange(form.rows))
            if hidden is not None:
                call.fill("hidden", hidden)
            if "offset" in self._given:
                self._offset = self._offset if offset is None else offset
                call.put("offset", self._offset)
            if "noise" in self._given:
                call.put("inv_temperature", self._inverse_temperature)
                call.fill("noise", np.zeros(form.noise) if noise is None else noise)
            started = perf_counter()
            found = call.run(cache, rows)
            self.engine_s += perf_counter() - started
        cache.pending += new
        return found

    def _in_parts(
        self,
        embeds: npt.NDArray[np.float32],
        positions: Sequence[int] | npt.NDArray[np.int64],
        mask: npt.NDArray[np.bool_],
        last_only: bool,
        hidden: npt.NDArray[np.float32] | None,
        noise: npt.NDArray[np.float32] | None,
    ) -> list[Array]:
        """More rows than one call takes: no row sees one behind it, so they go one part after
        another."""
        rows, most, before = len(embeds), self._most(last_only), self.cache.pending
        used = self.cache.used
        if self._steps > 1 or np.triu(mask[:, used:], 1).any():
            raise EngineError(
                f"{self._spec.file}: {rows} rows are more than the {most} that one call takes, and "
                "they cannot be parted; use a smaller tree"
            )
        each = noise is not None and len(noise) == rows
        parts: list[list[Array]] = []
        try:
            for start in range(0, rows, most):
                end = min(start + most, rows)
                outputs = self.step(
                    embeds[start:end],
                    positions[start:end],
                    mask[start:end, : used + end],
                    last_only,
                    hidden=None if hidden is None else hidden[start:end],
                    noise=noise[start:end] if noise is not None and each else noise,
                )
                parts.append([output.copy() for output in outputs])
        except EngineError:
            self.cache.pending = before
            raise
        axes = {tensor.name: tensor.axes[1] for tensor in self._spec.outputs}
        return [
            parts[-1][i] if last_only and axes[name] == "R" else np.concatenate(column)
            for i, (name, column) in enumerate(
                zip(self._outputs, zip(*parts, strict=True), strict=True)
            )
        ]

    def _most(self, last_only: bool) -> int:
        limits = self._graph.limits
        return limits.prompt_rows if last_only else limits.tree_rows

    def _lengths(self, rows: int) -> Iterator[tuple[str, int]]:
        """The inputs that say where ``rows`` new rows go, and their values."""
        used = self.cache.used
        told = {"past_length": used, LAST: used + rows - 1, CAPACITY: self.cache.capacity}
        return ((name, value) for name, value in told.items() if name in self._given)

    def set_temperature(self, temperature: float) -> None:
        check_coupled(self._spec)
        self._inverse_temperature = inverse(self._spec, temperature)

    def _form(self, rows: int, last_only: bool, noise: npt.NDArray[np.float32] | None) -> Form:
        padded = rows
        # A chain graph goes on from its last row, and a mask as long as the rows in use has another
        # shape at every step: nothing is won there by padding.
        if self._steps == 1 and self._spec.meta["mask_span"] != "total":
            fit = min(padded_rows(rows), self._most(last_only))
            padded = fit if self.cache.used + fit <= self.cache.capacity else rows
        shape = (self._steps, 1)
        if noise is not None:
            check_coupled(self._spec)
            check_noise(self._spec, noise, picked_rows(self._spec, rows, last_only))
            each = len(noise) > 1 and self._steps == 1
            shape = (padded if each else len(noise), noise.shape[1])
        return Form(padded, last_only, shape, self._outputs)
