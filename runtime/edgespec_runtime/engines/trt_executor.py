"""A graph that TensorRT has loaded: its profiles, and a context for each that is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgespec.engines import BuiltEngines, Plan, Profile
from edgespec.errors import EngineError
from edgespec_runtime.engines.executor import Tensor
from edgespec_runtime.engines.memory import Block, Memory
from edgespec_runtime.engines.staging import bytes_of
from edgespec_runtime.engines.trt_call import Context, TensorRTCall
from edgespec_runtime.engines.trt_log import last_said


class TensorRTExecutor:
    """See ``Executor``. One context per profile, made when it is first needed."""

    def __init__(
        self, module: Any, engine: Any, plan: Plan, built: BuiltEngines, memory: Memory, log: Any
    ) -> None:
        self._memory = memory
        self._plan = plan
        self._log = log
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
            raise EngineError(f"{self._plan.file} wants inputs {', '.join(sorted(missing))}")
        context = self._context(self._profile(inputs))
        context.set_shapes(inputs)
        asked = {tensor.name for tensor in outputs}
        nobody = [self._unread(name, context) for name in self._outputs if name not in asked]
        record = steady and not self.host_inputs
        return TensorRTCall(context, inputs, [*outputs, *nobody], record)

    def _profile(self, inputs: Sequence[Tensor]) -> int:
        """The profile for these shapes whose kernels were made for the fewest rows. Raises
        EngineError where none takes them."""
        fit = [
            (sum(sum(span.most) for span in profile.inputs.values()), index)
            for index, profile in enumerate(self._plan.profiles)
            if all(_takes(profile, tensor) for tensor in inputs)
        ]
        if fit:
            return min(fit)[1]
        worst = next(
            (t for t in inputs if not any(_takes(p, t) for p in self._plan.profiles)), inputs[0]
        )
        limits = "; ".join(
            f"{profile.name} {list(profile.inputs[worst.name].least)} to "
            f"{list(profile.inputs[worst.name].most)}"
            for profile in self._plan.profiles
            if worst.name in profile.inputs
        )
        raise EngineError(
            f"{self._plan.file}: no profile takes '{worst.name}' {list(worst.shape)} ({limits}); "
            f"build with larger --context, --prefill-rows or --max-rows: "
            f"{self._built.rebuild_command()}"
        )

    def _context(self, profile: int) -> Context:
        if profile not in self._contexts:
            strategies = getattr(self._module, "ExecutionContextAllocationStrategy", None)
            own = getattr(strategies, "ON_PROFILE_CHANGE", None)  # else room for all profiles
            made = self._engine.create_execution_context(*(() if own is None else (own,)))
            if made is None or not made.set_optimization_profile_async(
                profile, self._memory.stream
            ):
                raise EngineError(
                    f"{self._plan.file}: no context for profile {profile}{last_said(self._log)}"
                )
            self._memory.synchronise()
            self._contexts[profile] = Context(
                made, self._plan.file, self.host_inputs, self._memory, self._log
            )
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
            blocks.append(self._memory.allocate(max(size, 1)))
        return Tensor(name, "uint8", shape, blocks[-1].pointer)


def _takes(profile: Profile, tensor: Tensor) -> bool:
    span = profile.inputs.get(tensor.name)
    if span is None:
        return True
    return len(span.least) == len(tensor.shape) and all(
        least <= size <= most
        for least, size, most in zip(span.least, tensor.shape, span.most, strict=True)
    )
