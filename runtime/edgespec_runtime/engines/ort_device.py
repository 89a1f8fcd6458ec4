"""ONNX Runtime on an accelerator: device pointers bound to the graph, one stream for everything."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from edgespec.bundle import GraphSpec
from edgespec.errors import EngineError, MissingDependencyError
from edgespec.latency import EngineFacts
from edgespec_runtime.engines.device_graph import DeviceGraph
from edgespec_runtime.engines.device_step import DeviceStepGraph
from edgespec_runtime.engines.executor import Tensor
from edgespec_runtime.engines.memory import Memory
from edgespec_runtime.engines.ort_plugin import PACKAGES, TENSORRT_RTX, plugin_devices
from edgespec_runtime.engines.ort_step import CAPACITY, short

CUDA = "CUDAExecutionProvider"
PROVIDERS = {"ort-cuda": CUDA, "ort-tensorrt-rtx": TENSORRT_RTX}
"""Execution providers, by the name of the engine."""
ON_HOST = frozenset(
    "Add And Cast Concat ConstantOfShape Div Equal Expand Gather Greater Less Max Min Mul Not Or "
    "Range Reshape Shape Size Slice Squeeze Sub Unsqueeze Where".split()
)
"""Operators of which shapes and positions are made: ONNX Runtime runs those few on the CPU itself,
to spare the way there and back."""
TYPES = {"bfloat16": 16}
"""ONNX's number of a type that numpy has no name for."""


class OrtDeviceEngine:
    """Opens sessions on one execution provider and checks that it is the one that runs."""

    def __init__(
        self, name: str, provider: str, memory: Callable[[], Memory], threads: int = 0
    ) -> None:
        self._ort = import_ort()
        available = self._ort.get_available_providers()
        self._plugin: list[Any] = []
        if provider in PACKAGES and provider not in available:
            self._plugin = plugin_devices(self._ort, provider)
        elif provider not in available:
            raise EngineError(
                f"engine {name} was asked for, and this onnxruntime {self._ort.__version__} has no "
                f"{provider}, only {', '.join(available)}; install onnxruntime-gpu in place of "
                "onnxruntime"
            )
        self._name, self._provider, self._memory = name, provider, memory()
        self._threads = threads or len(os.sched_getaffinity(0))
        self.notes: list[str] = []
        """What the user should know of graphs loaded so far."""

    @property
    def facts(self) -> EngineFacts:
        where = f"{self._provider} on {self._memory.card}"
        return EngineFacts(self._name, self._ort.__version__, where, self._threads)

    @property
    def held_mb(self) -> float:
        return self._memory.held() / 2**20

    def load(self, spec: GraphSpec, folder: Path) -> DeviceGraph:
        session = self._session(spec, folder, recorded=False)
        executor = OrtExecutor(self._ort, session, spec, self._memory.device, recorded=False)
        return DeviceGraph(spec, executor, self._memory)

    def load_step(
        self, spec: GraphSpec, folder: Path, packed: GraphSpec | None = None
    ) -> DeviceStepGraph:
        # Where the mask is as long as the rows in use, shapes are new at every step.
        recorded = spec.meta["mask_span"] != "total" and self._provider == CUDA
        try:
            session = self._session(spec, folder, recorded)
        except EngineError as error:
            if not recorded:
                raise
            recorded = False
            session = self._session(spec, folder, recorded)
            self.notes.append(f"{spec.file}: launches are not recorded, which is slower ({error})")
        executor = OrtExecutor(self._ort, session, spec, self._memory.device, recorded)
        return DeviceStepGraph(spec, executor, self._memory)

    def _session(self, spec: GraphSpec, folder: Path, recorded: bool) -> Any:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        settings = self._settings(recorded)
        chosen: dict[str, Any] = {"providers": [(self._provider, settings)]}
        if self._plugin:
            options.add_provider_for_devices(self._plugin[:1], settings)
            chosen = {}
        try:
            session = self._ort.InferenceSession(str(folder / spec.file), options, **chosen)
        except Exception as error:  # onnxruntime's own types share no base class but Exception
            raise EngineError(f"onnxruntime cannot load {spec.file}: {short(error)}") from error
        self._check(session, spec)
        return session

    def _settings(self, recorded: bool) -> dict[str, str]:
        """The provider's options."""
        if self._memory.device != "cuda":
            return {}
        stream = {"user_compute_stream": str(self._memory.stream)}
        if self._provider != CUDA:
            return {**stream, "has_user_compute_stream": "1"}
        # TF32 off: float32 means float32.
        return {**stream, "use_tf32": "0", "enable_cuda_graph": str(int(recorded))}

    def _check(self, session: Any, spec: GraphSpec) -> None:
        """Raises EngineError where the provider, or a part of the graph, fell back to the CPU."""
        first = session.get_providers()[0]
        if first != self._provider:
            raise EngineError(f"{spec.file}: {self._provider} was asked for, {first} runs")
        elsewhere = Counter(
            node.op_type
            for part in placement(session)
            if part.ep_name != self._provider
            for node in part.get_nodes()
            if node.op_type not in ON_HOST
        )
        if elsewhere:
            listed = ", ".join(f"{n} {kind}" for kind, n in elsewhere.most_common())
            raise EngineError(
                f"{spec.file}: {self._provider} was asked for and does not take {listed}; export "
                "another flavour (--lowering), or run it with --engine ort"
            )


def import_ort() -> Any:
    """onnxruntime, with the CUDA libraries of nvidia's packages where those are installed. Raises
    MissingDependencyError."""
    try:
        import onnxruntime
    except ImportError:
        raise MissingDependencyError("onnxruntime-gpu", "an ort engine", "ort-gpu") from None
    if hasattr(onnxruntime, "preload_dlls") and CUDA in onnxruntime.get_available_providers():
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # it prints what it lacks
            onnxruntime.preload_dlls()
    return onnxruntime


def placement(session: Any) -> Sequence[Any]:
    """Which provider runs which nodes; nothing where this onnxruntime does not tell."""
    try:
        found: Sequence[Any] = session.get_provider_graph_assignment_info()
    except (AttributeError, RuntimeError):
        return ()
    return found


class OrtExecutor:
    """See ``Executor``."""

    def __init__(
        self, ort: Any, session: Any, spec: GraphSpec, device: str, recorded: bool
    ) -> None:
        self.session = session
        self.file = spec.file
        self.device = device
        self.host_inputs = frozenset(_on_host(session)) if device != "cpu" else frozenset()
        # What the CPU computes of its inputs' values would be recorded as it was the first time;
        # the cache's capacity stays what it is.
        self.recorded = recorded and self.host_inputs <= {CAPACITY}
        self._choosing = recorded
        self._ort = ort
        self._ids = count(1)

    def prepare(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], steady: bool) -> OrtCall:
        record = next(self._ids) if steady and self.recorded else 0
        return OrtCall(self, inputs, outputs, record)

    def options(self, record: int) -> Any:
        """Of runs that do not wait for their end; ``record``: number of the recorded launch, -1
        for none."""
        options = self._ort.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        if self._choosing:
            options.add_run_config_entry("gpu_graph_id", str(record))
        return options


class OrtCall:
    """See ``Call``. It runs once as it is and is recorded at its second run, so that what runs only
    once is not recorded."""

    def __init__(
        self,
        executor: OrtExecutor,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        record: int,
    ) -> None:
        self._executor = executor
        self._binding = executor.session.io_binding()
        self._keep = (*inputs, *outputs)
        for tensor in inputs:
            self._bind(tensor)
        for tensor in outputs:
            kind = element(tensor.dtype)
            place = (executor.device, 0, kind, tensor.shape, tensor.pointer)
            self._binding.bind_output(tensor.name, *place)
        self._record = record
        self._options = executor.options(-1)

    def run(self, moved: Sequence[Tensor] = ()) -> None:
        executor = self._executor
        for tensor in moved:
            self._bind(tensor)
        try:
            executor.session.run_with_iobinding(self._binding, self._options)
        except Exception as error:
            message = f"onnxruntime failed in {executor.file}: {short(error)}"
            raise EngineError(message) from error
        if self._record:
            self._options, self._record = executor.options(self._record), 0

    def _bind(self, tensor: Tensor) -> None:
        place, pointer = self._executor.device, tensor.pointer
        if tensor.name in self._executor.host_inputs:
            assert tensor.host is not None
            place, pointer = "cpu", tensor.host.ctypes.data
        kind = element(tensor.dtype)
        self._binding.bind_input(tensor.name, place, 0, kind, tensor.shape, pointer)


def element(dtype: str) -> Any:
    """The type as IO binding takes it."""
    return TYPES[dtype] if dtype in TYPES else np.dtype(dtype).type


def _on_host(session: Any) -> list[str]:
    """Inputs that are read in host memory: bound on the device they would be copied once, when they
    are bound, and later values would not be seen."""
    names = [value.name for value in session.get_inputs()]
    if not hasattr(session, "get_input_memory_infos"):
        return []
    infos = session.get_input_memory_infos()
    return [
        name for name, info in zip(names, infos, strict=True) if info.name.lower().startswith("cpu")
    ]
