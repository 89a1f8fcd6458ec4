"""ONNX Runtime behind the engine contract: IO binding, KV in place, buffers reused over rounds."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgespec.bundle import GraphSpec
from edgespec.errors import EngineError, MissingDependencyError
from edgespec.latency import EngineFacts
from edgespec_runtime.engines.base import Array, StepSession
from edgespec_runtime.engines.coupling import Coupling
from edgespec_runtime.kv import CacheShape, KVCache

if TYPE_CHECKING:
    import onnxruntime

CPU = "CPUExecutionProvider"


class OrtEngine:
    """Opens sessions on one execution provider and checks that it is the one that runs."""

    def __init__(self, threads: int = 0, provider: str = CPU) -> None:
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

    @property
    def facts(self) -> EngineFacts:
        return EngineFacts("ort", self._ort.__version__, self._provider, self._threads)

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
        self.inputs = frozenset(value.name for value in session.get_inputs())

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        results = self._session.run(self._outputs, dict(feeds))
        return dict(zip(self._outputs, results, strict=True))


class OrtStepGraph:
    """A decoder graph; sessions share its weights."""

    def __init__(self, ort: Any, session: onnxruntime.InferenceSession, spec: GraphSpec) -> None:
        self.spec = spec
        self._ort = ort
        self._session = session

    def open(
        self,
        capacity: int,
        outputs: tuple[str, ...] = ("logits",),
        cache: KVCache | None = None,
    ) -> StepSession:
        meta = self.spec.meta
        shape = CacheShape(int(meta["layers"]), int(meta["kv_heads"]), int(meta["head_dim"]))
        cache = cache or KVCache(shape, capacity)
        return OrtStepSession(self._ort, self._session, self.spec, cache, outputs)


class OrtStepSession:
    """One request: a cache bound to the same buffers as input and output of the graph."""

    def __init__(
        self, ort: Any, session: Any, spec: GraphSpec, cache: KVCache, outputs: tuple[str, ...]
    ) -> None:
        meta = spec.meta
        self.cache = cache
        self.engine_s = 0.0
        self._file = spec.file
        self._outputs = outputs
        self._session = session
        self._wrap = ort.OrtValue.ortvalue_from_numpy  # shares memory on the CPU
        self._hidden = int(meta["hidden"])
        self._whole = meta["mask_span"] == "capacity"
        self._counts_on = spec.lowering == "ort"
        self._steps = int(meta.get("steps", 1))  # > 1: a chain graph, which appends its own rows
        self._given = {tensor.name for tensor in spec.inputs}
        self._produced = {t.name: t for t in spec.outputs}
        self._past = np.zeros(1, dtype=np.int64)
        self._inputs: dict[int, _Inputs] = {}
        self._results: dict[tuple[str, int], tuple[Array, Any]] = {}
        self._bound_for: tuple[int, bool] | None = None
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input("past_length", self._wrap(self._past))
        self._offset = np.zeros((1, 1, self._hidden), dtype=np.float32)
        if "offset" in self._given:
            self._binding.bind_ortvalue_input("offset", self._wrap(self._offset))
        coupled = "noise" in self._given
        self._coupling = Coupling(spec, self._binding, self._wrap) if coupled else None
        buffers = {
            f"{kind}.{layer}": self._wrap(rows)
            for layer, pair in enumerate(self.cache.rows)
            for kind, rows in zip(("key", "value"), pair, strict=True)
        }
        for name, value in buffers.items():
            self._binding.bind_ortvalue_input(f"past_{name}", value)
        for tensor in spec.outputs:  # a chain graph has one present per step, all in one buffer
            if tensor.name.startswith("present_"):
                kind, layer = tensor.name.removeprefix("present_").split(".")[:2]
                self._binding.bind_ortvalue_output(tensor.name, buffers[f"{kind}.{layer}"])

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
        if cache.used + new > cache.capacity:
            raise EngineError(
                f"{self._file}: {cache.used} rows in use and {new} new ones exceed the cache of "
                f"{cache.capacity} rows"
            )
        if self._counts_on and not cache.used and list(positions) != _run(positions):
            raise EngineError(
                f"{self._file}: GroupQueryAttention takes the positions of an empty cache for a "
                "run; feed the rows up to the first gap alone"
            )
        if self._bound_for != (rows, last_only):
            self._bind(rows, last_only)
        self._bound.embeds[0] = embeds
        self._bound.positions[0] = positions
        if hidden is not None:
            self._bound.hidden[0] = hidden
        if offset is not None:
            self._offset[0, 0] = offset
        if noise is not None:
            picked = self._steps if self._steps > 1 else 1 if last_only else rows
            self._coupled().bind(noise, picked)
        elif self._coupling and self._coupling.noisy:
            self._coupling.clear()
        self._past[0] = cache.used
        self._binding.bind_ortvalue_input("tree_mask", self._wrap(self._spread(mask)))
        started = perf_counter()
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            raise EngineError(f"onnxruntime failed in {self._file}: {_short(error)}") from error
        self.engine_s += perf_counter() - started
        cache.pending += new
        return self._returned

    def set_temperature(self, temperature: float) -> None:
        self._coupled().set_temperature(temperature)

    def _coupled(self) -> Coupling:
        if self._coupling is None:
            raise EngineError(f"{self._file} takes no noise: only a draft's graphs are coupled")
        return self._coupling

    def _bind(self, rows: int, last_only: bool) -> None:
        """Binds the buffers of this row count; a step of the same size finds them bound."""
        inputs = self._inputs.get(rows)
        if inputs is None:
            fed = self._hidden if "hidden" in self._given else 0
            inputs = self._inputs[rows] = _Inputs(rows, self._hidden, fed, self._wrap)
        bind = self._binding.bind_ortvalue_input
        bind("inputs_embeds", inputs.bound_embeds)
        bind("position_ids", inputs.bound_positions)
        if "hidden" in self._given:
            bind("hidden", inputs.bound_hidden)
        if "logit_index" in self._given:
            bind("logit_index", inputs.last_row if last_only else inputs.all_rows)
        sizes = {"S": rows, "R": 1 if last_only else rows}  # a chain's outputs say theirs
        self._returned = [self._result(name, sizes) for name in self._outputs]
        self._bound, self._bound_for = inputs, (rows, last_only)

    def _spread(self, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """[S, used + S] as the graph wants it: [1, 1, S, T], T = used + S or the capacity."""
        if self._whole:
            rows, span = mask.shape
            full = np.zeros((rows, self.cache.capacity), dtype=np.bool_)
            full[:, :span] = mask
            mask = full
        return mask[None, None]

    def _result(self, name: str, sizes: Mapping[str, int]) -> Array:
        """A reused output buffer [rows, width], bound for the coming run; ``sizes`` are those of
        axes that have a name."""
        tensor = self._produced[name]
        _, axis, width = tensor.axes
        rows = axis if isinstance(axis, int) else sizes[axis]
        found = self._results.get((name, rows))
        if found is None:
            array = np.zeros((1, rows, int(width)), dtype=tensor.dtype)
            found = self._results[name, rows] = (array[0], self._wrap(array))
        self._binding.bind_ortvalue_output(name, found[1])
        return found[0]


class _Inputs:
    """Input buffers of one row count, bound once."""

    def __init__(self, rows: int, hidden: int, fed: int, wrap: Any) -> None:
        """``fed``: width of a feature-level draft's hidden states, 0 for other graphs."""
        self.embeds = np.zeros((1, rows, hidden), dtype=np.float32)
        self.positions = np.zeros((1, rows), dtype=np.int64)
        self.hidden = np.zeros((1, rows, fed), dtype=np.float32)
        self.bound_embeds, self.bound_positions = wrap(self.embeds), wrap(self.positions)
        self.bound_hidden = wrap(self.hidden) if fed else None
        self.all_rows = wrap(np.arange(rows, dtype=np.int64))
        self.last_row = wrap(np.array([rows - 1], dtype=np.int64))


def _run(positions: Sequence[int] | npt.NDArray[np.int64]) -> list[int]:
    return list(range(int(positions[0]), int(positions[0]) + len(positions)))


def _short(error: Exception) -> str:
    return str(error).strip().splitlines()[-1][:300] if str(error).strip() else repr(error)
