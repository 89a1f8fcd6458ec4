"""A decoder's steps on ONNX Runtime: IO binding, KV in place, buffers reused over rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.bundle import GraphSpec
from edgespec.errors import EngineError
from edgespec_runtime.engines.base import Array
from edgespec_runtime.engines.buffers import Buffers
from edgespec_runtime.engines.checks import check_coupled, check_rows, picked_rows
from edgespec_runtime.engines.coupling import Coupling
from edgespec_runtime.engines.masks import BEHIND, MaskInput
from edgespec_runtime.kv import KVCache

LAST, CAPACITY = "last_row", "capacity"
"""Inputs of graphs that are told where the last new row goes, and how many rows the cache has."""


class OrtStepSession:
    """One request: a cache bound to the same buffers as input and output of the graph."""

    def __init__(
        self,
        ort: Any,
        session: Any,
        spec: GraphSpec,
        cache: KVCache,
        outputs: tuple[str, ...],
        buffers: Buffers | None = None,
    ) -> None:
        meta = spec.meta
        self.cache = cache
        self.engine_s = 0.0
        self._spec = spec
        self._file = spec.file
        self.outputs = outputs
        self._session = session
        self._wrap = ort.OrtValue.ortvalue_from_numpy  # shares memory on the CPU
        self._hidden = int(meta["hidden"])
        self._behind = spec.meta["mask_span"] == BEHIND
        self._steps = int(meta.get("steps", 1))  # > 1: a chain graph, which appends its own rows
        self._given = {tensor.name for tensor in spec.inputs}
        self._produced = {t.name: t for t in spec.outputs}
        self._past = np.zeros(1, dtype=np.int64)
        self._buffers = buffers or Buffers(self._wrap)
        self._bound_for: tuple[int, bool] | None = None
        self._binding = session.io_binding()
        self._mask = MaskInput(self._binding, "tree_mask", spec)
        if "past_length" in self._given:
            self._binding.bind_ortvalue_input("past_length", self._wrap(self._past))
        self._last = np.zeros(1, dtype=np.int32)
        if LAST in self._given:
            self._binding.bind_ortvalue_input(LAST, self._wrap(self._last))
        self._capacity = np.array(cache.capacity, dtype=np.int32)
        if CAPACITY in self._given:
            self._binding.bind_ortvalue_input(CAPACITY, self._wrap(self._capacity))
        self._offset = np.zeros((1, 1, self._hidden), dtype=np.float32)
        if "offset" in self._given:
            self._binding.bind_ortvalue_input("offset", self._wrap(self._offset))
        coupled = "noise" in self._given
        self._coupling = Coupling(spec, self._binding, self._wrap) if coupled else None
        self.layers = cache_values(cache, self._wrap)
        for name, value in self.layers.items():
            self._binding.bind_ortvalue_input(f"past_{name}", value)
        for tensor in spec.outputs:  # a chain graph has one present per step, all in one buffer
            if tensor.name.startswith("present_"):
                kind, layer = tensor.name.removeprefix("present_").split(".")[:2]
                self._binding.bind_ortvalue_output(tensor.name, self.layers[f"{kind}.{layer}"])
        self._fresh: Array | None = None  # the new rows, where the graph does not write the cache

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
        if self._bound_for != (rows, last_only):
            self._bind(rows, last_only)
        self._embeds[:] = embeds
        self._positions[:] = positions
        if hidden is not None:
            self._fed[:] = hidden
        if offset is not None:
            self._offset[0, 0] = offset
        if noise is not None:
            self._coupled().bind(noise, picked_rows(self._spec, rows, last_only))
        elif self._coupling and self._coupling.noisy:
            self._coupling.clear()
        self._past[0], self._last[0] = cache.used, cache.used + rows - 1
        self._mask.fill(mask, cache)
        started = perf_counter()
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            raise EngineError(f"onnxruntime failed in {self._file}: {short(error)}") from error
        self.engine_s += perf_counter() - started
        if self._fresh is not None:
            append(cache, self._fresh)
        cache.pending += new
        return self._returned

    def set_temperature(self, temperature: float) -> None:
        self._coupled().set_temperature(temperature)

    def _coupled(self) -> Coupling:
        check_coupled(self._spec)
        assert self._coupling is not None
        return self._coupling

    def _bind(self, rows: int, last_only: bool) -> None:
        """Binds the buffers of this row count; a step of the same size finds them bound."""
        self._embeds = self._take("inputs_embeds", rows, self._hidden, np.float32)
        self._positions = self._take("position_ids", rows, 0, np.int64)
        if "hidden" in self._given:
            self._fed = self._take("hidden", rows, self._hidden, np.float32)
        if "logit_index" in self._given:
            first = rows - 1 if last_only else 0
            self._picked = np.arange(first, rows, dtype=np.int64)  # bound, so kept
            self._binding.bind_ortvalue_input("logit_index", self._wrap(self._picked))
        sizes = {"S": rows, "R": 1 if last_only else rows}  # a chain's outputs say theirs
        self._returned = [self._result(name, sizes) for name in self.outputs]
        if self._behind:
            self._fresh = new_rows(self.cache, rows + self._steps - 1)
            for name, value in layer_values(self._fresh, self._wrap).items():
                self._binding.bind_ortvalue_output(f"new_{name}", value)
        self._bound_for = (rows, last_only)

    def _take(self, name: str, rows: int, width: int, dtype: Any) -> Array:
        """The input buffer [rows, width] of that name, bound for the coming run."""
        array, value = self._buffers.take(f"given {name}", rows, width, dtype)
        self._binding.bind_ortvalue_input(name, value)
        return array

    def _result(self, name: str, sizes: Mapping[str, int]) -> Array:
        """A reused output buffer [rows, width] or [rows], bound for the coming run; ``sizes`` are
        those of axes that have a name."""
        tensor = self._produced[name]
        _, axis, *width = tensor.axes
        rows = axis if isinstance(axis, int) else sizes[axis]
        array, value = self._buffers.take(name, rows, int(width[0]) if width else 0, tensor.dtype)
        self._binding.bind_ortvalue_output(name, value)
        return array


def cache_values(cache: KVCache, wrap: Callable[[Array], Any]) -> dict[str, Any]:
    """The engine's values of a cache: "key.i" and "value.i" of layer i."""
    return layer_values(cache.rows, wrap)


def layer_values(rows: Array, wrap: Callable[[Array], Any]) -> dict[str, Any]:
    """The engine's values of [layers, 2, B, KV, rows, D]: "key.i" and "value.i" of layer i."""
    return {
        f"{kind}.{layer}": wrap(part)
        for layer, pair in enumerate(rows)
        for kind, part in zip(("key", "value"), pair, strict=True)
    }


def new_rows(cache: KVCache, rows: int) -> Array:
    """Room for ``rows`` rows that a graph hands out: [layers, 2, B, KV, rows, D]."""
    return np.zeros((*cache.rows.shape[:4], rows, cache.rows.shape[5]), dtype=cache.rows.dtype)


def append(cache: KVCache, rows: Array) -> None:
    """Writes ``rows`` behind those in use; the caller counts them."""
    cache.rows[..., cache.used : cache.used + rows.shape[4], :] = rows


def short(error: Exception) -> str:
    """The last line of what onnxruntime says."""
    return str(error).strip().splitlines()[-1][:300] if str(error).strip() else repr(error)
