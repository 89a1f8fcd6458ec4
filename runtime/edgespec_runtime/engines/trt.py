"""TensorRT and TensorRT-RTX behind the engine contract: what `edgespec build` made, on one stream.

Both libraries have one API; what differs between their versions is looked up. Shapes and addresses
are set before a launch where another call used the profile's context in between, and not at all
where the launch was recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgespec.bundle import Bundle, GraphSpec
from edgespec.engines import BuiltEngines, Plan, Profile
from edgespec.errors import EngineError
from edgespec.latency import EngineFacts
from edgespec.nvidia import TensorRT
from edgespec_runtime.engines.device_graph import DeviceGraph
from edgespec_runtime.engines.device_step import DeviceStepGraph, Limits
from edgespec_runtime.engines.executor import Tensor
from edgespec_runtime.engines.memory import Block, Memory
from edgespec_runtime.engines.staging import bytes_of


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


class TensorRTExecutor:
    """See ``Executor``. One context per profile, made when it is first needed."""

    def __init__(
        self, module: Any, engine: Any, plan: Plan, built: BuiltEngines, memory: Memory, log: Any
    ) -> None:
        self.memory = memory
        self.plan = plan
        self.log = log
        self._engine = engine
        self._module = module
        self._built = built
        self._contexts: dict[int, Context] = {}
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        modes = {name: engine.get_tensor_mode(name) for name in names}
        self._inputs = {n for n, mode in modes.items() if mode == module.TensorIOMode.INPUT}
        self._outputs = [name for name in names if name not in self._inputs]
        # Values that shapes are computed from are read on the host when a launch is enqueued.
        self.host_inputs = frozenset(n for n in self._inputs if engine.is_shape_inference_io(n))
        self._scratch: dict[str, list[Block]] = {}

    def prepare(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], steady: bool
    ) -> TensorRTCall:
        inputs = [tensor for tensor in inputs if tensor.name in self._inputs]
        missing = self._inputs - {tensor.name for tensor in inputs}
        if missing:
            raise EngineError(f"{self.plan.file} wants inputs {', '.join(sorted(missing))}")
        context = self._context(self._profile(inputs))
        context.set_shapes(inputs)
        asked = {tensor.name for tensor in outputs}
        nobody = [self._unread(name, context) for name in self._outputs if name not in asked]
        record = steady and not self.host_inputs
        return TensorRTCall(self, context, inputs, [*outputs, *nobody], record)

    def _profile(self, inputs: Sequence[Tensor]) -> int:
        """The profile for these shapes whose kernels were made for the fewest rows. Raises
        EngineError where none takes them."""
        fit = [
            (sum(sum(span.most) for span in profile.inputs.values()), index)
            for index, profile in enumerate(self.plan.profiles)
            if all(_takes(profile, tensor) for tensor in inputs)
        ]
        if fit:
            return min(fit)[1]
        worst = next(
            (t for t in inputs if not any(_takes(p, t) for p in self.plan.profiles)), inputs[0]
        )
        limits = "; ".join(
            f"{profile.name} {list(profile.inputs[worst.name].least)} to "
            f"{list(profile.inputs[worst.name].most)}"
            for profile in self.plan.profiles
            if worst.name in profile.inputs
        )
        raise EngineError(
            f"{self.plan.file}: no profile takes '{worst.name}' {list(worst.shape)} ({limits}); "
            f"build with larger --context, --prefill-rows or --max-rows: "
            f"{self._built.rebuild_command()}"
        )

    def _context(self, profile: int) -> Context:
        if profile not in self._contexts:
            strategies = getattr(self._module, "ExecutionContextAllocationStrategy", None)
            own = getattr(strategies, "ON_PROFILE_CHANGE", None)  # else room for all profiles
            made = self._engine.create_execution_context(*(() if own is None else (own,)))
            if made is None or not made.set_optimization_profile_async(profile, self.memory.stream):
                raise EngineError(f"{self.plan.file}: no context for profile {profile}{self.why()}")
            self.memory.synchronise()
            self._contexts[profile] = Context(made, self)
        return self._contexts[profile]

    def _unread(self, name: str, context: Context) -> Tensor:
        """Memory for an output that nobody asked for: TensorRT wants an address for each, and may
        read them itself. Shared by all calls; a block that got too small is kept for those that
        were recorded with it."""
        shape = context.shape(name)
        dtype = self._engine.get_tensor_dtype(name)
        size = bytes_of("uint8", shape) * int(getattr(dtype, "itemsize", 8))
        blocks = self._scratch.setdefault(name, [])
        if not blocks or blocks[-1].size < size:
            blocks.append(self.memory.allocate(max(size, 1)))
        return Tensor(name, "uint8", shape, blocks[-1].pointer)

    def why(self) -> str:
        """What TensorRT said last, to end a message with."""
        said = self.log.taken()
        return f": {said[-1]}" if said else ""


class Context:
    """An execution context, and the call whose tensors are set in it."""

    def __init__(self, value: Any, executor: TensorRTExecutor) -> None:
        self.value = value
        self.holder: object = None
        self._executor = executor

    def set_shapes(self, inputs: Sequence[Tensor]) -> None:
        """Raises EngineError for a shape that is refused."""
        self.holder = None
        for tensor in inputs:
            if not self.value.set_input_shape(tensor.name, tensor.shape):
                raise EngineError(
                    f"{self._executor.plan.file}: '{tensor.name}' cannot be {list(tensor.shape)}"
                    f"{self._executor.why()}"
                )

    def shape(self, name: str) -> tuple[int, ...]:
        """Of an output, the inputs' being set. Raises EngineError where that does not tell."""
        shape = tuple(int(size) for size in self.value.get_tensor_shape(name))
        if any(size < 0 for size in shape):
            raise EngineError(f"{self._executor.plan.file}: '{name}' has no known shape")
        return shape

    def set(self, holder: object, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Sets everything, unless ``holder`` did so last."""
        if self.holder is holder:
            return
        self.set_shapes(inputs)
        host = self._executor.host_inputs
        for tensor in (*inputs, *outputs):
            pointer = tensor.pointer
            if tensor.name in host:
                assert tensor.host is not None
                pointer = tensor.host.ctypes.data
            if not self.value.set_tensor_address(tensor.name, pointer):
                raise EngineError(
                    f"{self._executor.plan.file}: '{tensor.name}' cannot be bound"
                    f"{self._executor.why()}"
                )
        self.holder = holder


class TensorRTCall:
    """See ``Call``; recorded at its second run, so that what runs only once is not."""

    def __init__(
        self,
        executor: TensorRTExecutor,
        context: Context,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        record: bool,
    ) -> None:
        self._executor = executor
        self._context = context
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)
        self._record = record
        self._ran = False
        self._recorded: Callable[[], None] | None = None

    def run(self, moved: Sequence[Tensor] = ()) -> None:
        if self._recorded is not None:
            self._recorded()
            return
        if moved:
            names = {tensor.name for tensor in moved}
            kept = (tensor for tensor in self._inputs if tensor.name not in names)
            self._inputs, self._context.holder = (*kept, *moved), None
        self._context.set(self, self._inputs, self._outputs)
        if self._record and self._ran and self._capturable():
            self._recorded = self._executor.memory.capture(self._launch)
            self._recorded()
        else:
            self._launch()
        self._ran = True

    def _capturable(self) -> bool:
        """TensorRT-RTX compiles kernels while it runs; before that it cannot be recorded."""
        ask = getattr(self._context.value, "is_stream_capturable", None)
        return ask is None or bool(ask(self._executor.memory.stream))

    def _launch(self) -> None:
        if not self._context.value.execute_async_v3(self._executor.memory.stream):
            raise EngineError(f"{self._executor.plan.file} failed{self._executor.why()}")


def listener(module: Any) -> Any:
    """A logger of TensorRT that keeps what went wrong (``taken``)."""

    class Listener(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self._said: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (module.ILogger.INTERNAL_ERROR, module.ILogger.ERROR):
                self._said.append(message.strip().splitlines()[0][:300])

        def taken(self) -> list[str]:
            """Errors since the last call."""
            said, self._said = self._said, []
            return said

    return Listener()


def _takes(profile: Profile, tensor: Tensor) -> bool:
    span = profile.inputs.get(tensor.name)
    if span is None:
        return True
    return len(span.least) == len(tensor.shape) and all(
        least <= size <= most
        for least, size, most in zip(span.least, tensor.shape, span.most, strict=True)
    )
