"""TensorRT's runtime API over ONNX Runtime on the CPU: what sets shapes, addresses and profiles
runs without a GPU. A "plan" is the path of the graph it stands for.

It is as strict as the original: a shape outside of the profile, a name that is none, an output
without an address, or shapes set for another profile are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

from edgespec.engines import Plan
from tests.support.host_memory import HostMemory

TYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}


class TensorIOMode(Enum):
    INPUT = 0
    OUTPUT = 1


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING = range(3)

    def __init__(self) -> None:
        pass


class FakeTensorRT:
    """Stands for the module; ``plans`` tell the profiles of what is deserialised."""

    def __init__(self, memory: HostMemory, plans: Sequence[Plan]) -> None:
        self.memory = memory
        self.plans = {plan.file: plan for plan in plans}
        self.launches = 0
        self.fails_at = -1  # that many launches work
        self.ILogger, self.TensorIOMode = ILogger, TensorIOMode
        self.ExecutionContextAllocationStrategy = SimpleNamespace(ON_PROFILE_CHANGE=1)

    def Runtime(self, log: Any) -> FakeRuntime:  # noqa: N802 - TensorRT's own name
        return FakeRuntime(self, log)


class FakeRuntime:
    def __init__(self, module: FakeTensorRT, log: Any) -> None:
        self._module, self._log = module, log
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, plan: bytes) -> FakeEngine | None:
        file, _, path = plan.decode().partition("\n")
        if file not in self._module.plans or not Path(path).is_file():
            self._log.log(ILogger.ERROR, "the plan was made by another version\nmore")
            return None
        return FakeEngine(self._module, self._log, path, self._module.plans[file])


class FakeEngine:
    def __init__(self, module: FakeTensorRT, log: Any, path: str, plan: Plan) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
        self.module, self.log, self.plan = module, log, plan
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.outputs = {value.name: value for value in self.session.get_outputs()}
        self._names: list[str] = [*self.inputs, *self.outputs]
        self.num_io_tensors = len(self._names)

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return np.dtype(TYPES[{**self.inputs, **self.outputs}[name].type])

    def is_shape_inference_io(self, name: str) -> bool:
        return False

    def create_execution_context(self, strategy: int) -> FakeContext:
        return FakeContext(self)


class FakeContext:
    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self._profile = -1
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self._profile = index
        return index < len(self._engine.plan.profiles)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        span = self._engine.plan.profiles[self._profile].inputs[name]
        bounds = zip(span.least, shape, span.most, strict=True)
        fits = all(least <= size <= most for least, size, most in bounds)
        if fits:
            self._shapes[name] = tuple(shape)
        else:
            self._engine.log.log(ILogger.ERROR, f"{name} {shape} is out of the profile")
        return fits

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Of an output, as the named axes of the inputs tell."""
        sizes = {
            axis: size
            for value in self._engine.inputs.values()
            for axis, size in zip(value.shape, self._shapes[value.name], strict=True)
        }
        if name.startswith("new_") and "topk_ids" in self._engine.outputs:
            steps = self._engine.outputs["topk_ids"].shape[1]
            if isinstance(steps, int):  # a chain's rows come out with those it was given
                sizes["N"] = sizes["S"] + steps - 1
        return tuple(sizes.get(axis, axis) for axis in self._engine.outputs[name].shape)

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        self._addresses[name] = pointer
        return name in self._engine.inputs or name in self._engine.outputs

    def execute_async_v3(self, stream: int) -> bool:
        engine = self._engine
        if engine.module.launches == engine.module.fails_at:
            engine.log.log(ILogger.ERROR, "an illegal memory access was encountered")
            return False
        missing = {*engine.inputs, *engine.outputs} - set(self._addresses)
        assert not missing, f"no address for {missing}"
        assert set(engine.inputs) <= set(self._shapes), "no shape"
        engine.module.memory.enqueue(self._bound())
        return True

    def _bound(self) -> Callable[[], None]:
        """A run on the shapes and addresses of now, whatever is set later."""
        engine, binding = self._engine, self._engine.session.io_binding()
        for name, value in engine.inputs.items():
            place = (0, TYPES[value.type], self._shapes[name], self._addresses[name])
            binding.bind_input(name, "cpu", *place)
        for name, value in engine.outputs.items():
            shape = self.get_tensor_shape(name)
            binding.bind_output(name, "cpu", 0, TYPES[value.type], shape, self._addresses[name])

        def run() -> None:
            engine.module.launches += 1
            engine.session.run_with_iobinding(binding)

        return run
