"""ONNX Runtime behind the engine contract: IO binding, KV in place, no allocation per step."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgespec.bundle import GraphSpec
from edgespec.errors import EngineError, MissingDependencyError
from edgespec_runtime.engines.base import Array
from edgespec_runtime.kv import CacheShape, KVCache

if TYPE_CHECKING:
    import onnxruntime

PROVIDER = "CPUExecutionProvider"


class OrtEngine:
    """Opens sessions on one execution provider and checks that it is the one that runs."""

    name = "ort"

    def __init__(self, threads: int = 0, provider: str = PROVIDER) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise MissingDependencyError("onnxruntime", "running a bundle", "ort") from None
        available = onnxruntime.get_available_providers()
        if provider not in available:
            raise EngineError(
                f"execution provider {provider} was asked for; this onnxruntime "
                f"{onnxruntime.__version__} has {', '.join(available)}"
            )
        self._ort = onnxruntime
        self._provider = provider
        self._threads = threads or len(os.sched_getaffinity(0))

    def load(self, spec: GraphSpec, folder: Path) -> OrtGraph:
        return OrtGraph(self._session(spec, folder))

    def load_step(self, spec: GraphSpec, folder: Path) -> OrtStepGraph:
        return OrtStepGraph(self._ort, self._session(spec, folder), spec)

    def _session(self, spec: GraphSpec, folder: Path) -> onnxruntime.InferenceSession:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 3
        # Two sessions in one process: an idle pool that keeps spinning doubles the other's times.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            session = self._ort.InferenceSession(
                str(folder / spec.file), options, providers=[self._provider]
            )
        except Exception as error:  # onnxruntime's own types share no base class but Exception
            raise EngineError(f"onnxruntime cannot load {spec.file}: {_short(error)}") from error
        if session.get_providers()[0] != self._provider:
            raise EngineError(
                f"{spec.file}: {self._provider} was asked for, {session.get_providers()[0]} runs"
            )
        return session


class OrtGraph:
    """A memoryless graph."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._outputs = [output.name for output in session.get_outputs()]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        results = self._session.run(self._outputs, dict(feeds))
        return dict(zip(self._outputs, results, strict=True))


class OrtStepBuffers:
    """Preallocated inputs of one row count; the mask is cut from one flat array per call."""

    def __init__(self, ort: Any, rows: int, hidden: int, capacity: int, whole: bool) -> None:
        self.rows = rows
        self._ort = ort
        self._whole = whole  # the mask spans the capacity instead of the rows in use
        self._flat = np.zeros(rows * capacity, dtype=np.bool_)
        self._capacity = capacity
        embeds = np.zeros((1, rows, hidden), dtype=np.float32)
        positions = np.zeros((1, rows), dtype=np.int64)
        self.past = np.zeros(1, dtype=np.int64)
        self.embeds, self.positions = embeds[0], positions[0]
        wrap = ort.OrtValue.ortvalue_from_numpy  # shares memory on the CPU
        self.fixed = {
            "inputs_embeds": wrap(embeds),
            "position_ids": wrap(positions),
            "past_length": wrap(self.past),
        }
        self.all_rows = wrap(np.arange(rows))
        self.last_row = wrap(np.array([rows - 1]))
        self.mask_value: Any = None
        self._results: dict[tuple[str, int], tuple[Array, Any]] = {}

    def mask(self, cached: int) -> Array:
        span = cached + self.rows
        width = self._capacity if self._whole else span
        mask = self._flat[: self.rows * width].reshape(1, 1, self.rows, width)
        if self._whole:
            mask[..., span:] = False
        self.mask_value = self._ort.OrtValue.ortvalue_from_numpy(mask)
        cut: Array = mask[0, 0, :, :span]
        return cut

    def result(self, name: str, width: int, rows: int, dtype: str) -> tuple[Array, Any]:
        """A reusable output buffer [1, rows, width] and its bound value."""
        key = (name, rows)
        if key not in self._results:
            array = np.zeros((1, rows, width), dtype=dtype)
            self._results[key] = (array[0], self._ort.OrtValue.ortvalue_from_numpy(array))
        return self._results[key]


class OrtStepGraph:
    """A decoder graph with its cache bound to the same buffers as input and output."""

    def __init__(self, ort: Any, session: onnxruntime.InferenceSession, spec: GraphSpec) -> None:
        self.spec = spec
        self._ort = ort
        self._session = session
        meta = spec.meta
        self._hidden = int(meta["hidden"])
        self._shape = CacheShape(int(meta["layers"]), int(meta["kv_heads"]), int(meta["head_dim"]))
        self._whole = meta["mask_span"] == "capacity"
        self._widths = {t.name: (int(t.axes[-1]), t.dtype) for t in spec.outputs}
        self.start(1)

    def start(self, capacity: int) -> None:
        self.cache = KVCache(self._shape, capacity)
        self._buffers: dict[int, OrtStepBuffers] = {}
        self._binding = self._session.io_binding()
        wrap = self._ort.OrtValue.ortvalue_from_numpy
        for layer, pair in enumerate(self.cache.rows):
            for kind, rows in zip(("key", "value"), pair, strict=True):
                value = wrap(rows)
                self._binding.bind_ortvalue_input(f"past_{kind}.{layer}", value)
                self._binding.bind_ortvalue_output(f"present_{kind}.{layer}", value)
        self._bound_outputs: tuple[str, ...] = ()

    def buffers(self, rows: int) -> OrtStepBuffers:
        found = self._buffers.get(rows)
        if found is None:
            found = OrtStepBuffers(self._ort, rows, self._hidden, self.cache.capacity, self._whole)
            self._buffers[rows] = found
        return found

    def step(
        self, buffers: OrtStepBuffers, outputs: tuple[str, ...], last_only: bool
    ) -> list[Array]:
        cached = self.cache.length
        if cached + buffers.rows > self.cache.capacity:
            raise EngineError(
                f"{self.spec.file}: {cached} cached + {buffers.rows} new rows exceed the cache of "
                f"{self.cache.capacity} rows"
            )
        buffers.past[0] = cached
        bind = self._binding.bind_ortvalue_input
        for name, value in buffers.fixed.items():
            bind(name, value)
        bind("tree_mask", buffers.mask_value)
        bind("logit_index", buffers.last_row if last_only else buffers.all_rows)
        rows = 1 if last_only else buffers.rows
        results = []
        for name in outputs:
            width, dtype = self._widths[name]
            array, value = buffers.result(name, width, rows, dtype)
            self._binding.bind_ortvalue_output(name, value)
            results.append(array)
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            raise EngineError(f"onnxruntime failed in {self.spec.file}: {_short(error)}") from error
        return results


def _short(error: Exception) -> str:
    return str(error).strip().splitlines()[-1][:300] if str(error).strip() else repr(error)
