"""ONNX Runtime behind the engine contract: what loads graphs, and the graphs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgespec.bundle import GraphSpec
from edgespec.errors import EngineError, MissingDependencyError
from edgespec.latency import EngineFacts
from edgespec_runtime.engines.base import Array, StepPool, StepSession
from edgespec_runtime.engines.buffers import Buffers
from edgespec_runtime.engines.huge_pages import huge_pages
from edgespec_runtime.engines.ort_pool import OrtPool, PackedStep
from edgespec_runtime.engines.ort_step import OrtStepSession, short
from edgespec_runtime.kv import Cache, CacheShape, KVCache

if TYPE_CHECKING:
    import onnxruntime

CPU = "CPUExecutionProvider"


class OrtEngine:
    """Opens sessions on one execution provider and checks that it is the one that runs."""

    notes: tuple[str, ...] = ()
    held_mb = 0.0

    def __init__(self, threads: int = 0, provider: str = CPU, huge_pages: bool = False) -> None:
        """``huge_pages``: for the weights of what is loaded."""
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
        self._huge_pages = huge_pages
        self._threads = threads or len(os.sched_getaffinity(0))

    @property
    def facts(self) -> EngineFacts:
        return EngineFacts("ort", self._ort.__version__, self._provider, self._threads)

    def load(self, spec: GraphSpec, folder: Path) -> OrtGraph:
        return OrtGraph(self._session(spec, folder))

    def load_step(
        self, spec: GraphSpec, folder: Path, packed: GraphSpec | None = None
    ) -> OrtStepGraph:
        together = (self._session(packed, folder), packed) if packed else None
        return OrtStepGraph(self._ort, self._session(spec, folder), spec, together)

    def _session(self, spec: GraphSpec, folder: Path) -> onnxruntime.InferenceSession:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 3
        # Every step has other shapes: a plan of its memory is made anew and used once (2 to 4 % of
        # a plain step of 135 million parameters, docs/performance.md).
        options.enable_mem_pattern = False
        # Two sessions in one process: an idle pool that keeps spinning doubles the other's times.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            with huge_pages() if self._huge_pages else nullcontext():
                session = self._ort.InferenceSession(
                    str(folder / spec.file), options, providers=[self._provider]
                )
        except Exception as error:  # onnxruntime's own types share no base class but Exception
            raise EngineError(f"onnxruntime cannot load {spec.file}: {short(error)}") from error
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

    def __init__(
        self,
        ort: Any,
        session: onnxruntime.InferenceSession,
        spec: GraphSpec,
        packed: tuple[onnxruntime.InferenceSession, GraphSpec] | None = None,
    ) -> None:
        self.spec = spec
        self._packed = packed
        self._ort = ort
        self._session = session

    def open(
        self,
        capacity: int,
        outputs: tuple[str, ...] = ("logits",),
        cache: Cache | None = None,
    ) -> StepSession:
        cache = cache or KVCache(CacheShape.of(self.spec), capacity)
        if not isinstance(cache, KVCache):
            raise EngineError(f"{self.spec.file}: its cache is not in host memory")
        return OrtStepSession(self._ort, self._session, self.spec, cache, outputs)

    def open_pool(self) -> StepPool:
        wrap = self._ort.OrtValue.ortvalue_from_numpy
        buffers = Buffers(wrap)

        def alone(cache: KVCache, outputs: tuple[str, ...]) -> OrtStepSession:
            return OrtStepSession(self._ort, self._session, self.spec, cache, outputs, buffers)

        return OrtPool(alone, self._packed and PackedStep(*self._packed, wrap))
