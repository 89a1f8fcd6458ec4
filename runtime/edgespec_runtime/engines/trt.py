"""TensorRT and TensorRT-RTX behind the engine contract: what `edgespec build` made, on one stream.

Both libraries have one API; what differs between their versions is looked up.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgespec.bundle import Bundle, GraphSpec
from edgespec.engines import BuiltEngines
from edgespec.errors import EngineError
from edgespec.latency import EngineFacts
from edgespec.nvidia import TensorRT
from edgespec_runtime.engines.device_graph import DeviceGraph
from edgespec_runtime.engines.device_step import DeviceStepGraph, Limits
from edgespec_runtime.engines.memory import Memory
from edgespec_runtime.engines.trt_executor import TensorRTExecutor
from edgespec_runtime.engines.trt_log import listener


class TensorRTEngine:
    """Loads the plans of one ``BuiltEngines``, which were checked to run here."""

    def __init__(
        self, name: str, tensorrt: TensorRT, built: BuiltEngines, bundle: Bundle, memory: Memory
    ) -> None:
        self._name = name
        self._tensorrt = tensorrt
        self._built = built
        self._bundle = bundle
        self._memory = memory
        module = tensorrt.module
        self._log = listener(module)
        self._runtime = module.Runtime(self._log)
        if "version-compatible" in built.flags:
            self._runtime.engine_host_code_allowed = True
        self.notes: list[str] = []

    @property
    def facts(self) -> EngineFacts:
        where = f"{self._built.tag} on {self._memory.card}"
        return EngineFacts(self._name, self._tensorrt.version, where, 1)

    @property
    def held_mb(self) -> float:
        return self._memory.held() / 2**20

    def load(self, spec: GraphSpec, folder: Path) -> DeviceGraph:
        return DeviceGraph(spec, self._executor(spec), self._memory)

    def load_step(
        self, spec: GraphSpec, folder: Path, packed: GraphSpec | None = None
    ) -> DeviceStepGraph:
        built = self._built
        limits = Limits(self._capacity, built.prefill_rows, built.max_rows)
        return DeviceStepGraph(spec, self._executor(spec), self._memory, limits)

    def _capacity(self, wanted: int) -> int:
        """Rows of a cache that has to hold ``wanted``: what the engines were built for. Raises
        EngineError where that is less."""
        capacity = self._built.capacity
        if wanted > capacity:
            raise EngineError(
                f"the request needs a cache of {wanted} rows, and engines '{self._built.tag}' were "
                f"built for {capacity}; ask for fewer tokens or a smaller tree, or build them with "
                f"a larger --context: {self._built.rebuild_command()}"
            )
        return capacity

    def _executor(self, spec: GraphSpec) -> TensorRTExecutor:
        built = self._built
        path, plan = built.path(spec.role), built.plan(spec.role)
        assert plan is not None
        said: list[str] = []
        engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        said += self._log.taken()
        if engine is None:
            raise EngineError(
                f"{self._tensorrt.library} {self._tensorrt.version} cannot load {path}"
                f"{': ' + said[-1] if said else ''}; run: {built.rebuild_command()}"
            )
        if plan.decomposed:
            self.notes.append(f"{plan.file}: no fused attention kernel, which is slower")
        if "strip" in built.flags:
            self._refit(engine, spec, path)
        if "weight-streaming" in built.flags:
            engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()
        return TensorRTExecutor(self._tensorrt.module, engine, plan, built, self._memory, self._log)

    def _refit(self, engine: Any, spec: GraphSpec, path: Path) -> None:
        """Puts the weights of the bundle's graph into an engine that was built without."""
        module = self._tensorrt.module
        refitter = module.Refitter(engine, self._log)
        parser = module.OnnxParserRefitter(refitter, self._log)
        source = str(self._bundle.file(spec.file))
        if not parser.refit_from_file(source) or not refitter.refit_cuda_engine():
            said = self._log.taken()
            raise EngineError(
                f"the weights of {source} do not fit {path}{': ' + said[-1] if said else ''}; "
                f"run: {self._built.rebuild_command()}"
            )
