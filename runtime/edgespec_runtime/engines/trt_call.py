"""A call of a graph that TensorRT has loaded.

Shapes and addresses are set before a launch where another call used the profile's context in
between, and not at all where the launch was recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from edgespec.errors import EngineError
from edgespec_runtime.engines.executor import Tensor
from edgespec_runtime.engines.memory import Memory
from edgespec_runtime.engines.trt_log import last_said


class Context:
    """An execution context, and the call whose tensors are set in it."""

    def __init__(
        self, value: Any, file: str, host_inputs: frozenset[str], memory: Memory, log: Any
    ) -> None:
        """``file``: the plan's, for messages; ``host_inputs``: see ``Executor``."""
        self.memory = memory
        self.holder: object = None
        self._value = value
        self._file = file
        self._host_inputs = host_inputs
        self._log = log

    def set_shapes(self, inputs: Sequence[Tensor]) -> None:
        """Raises EngineError for a shape that is refused."""
        self.holder = None
        for tensor in inputs:
            if not self._value.set_input_shape(tensor.name, tensor.shape):
                raise EngineError(
                    f"{self._file}: '{tensor.name}' cannot be {list(tensor.shape)}"
                    f"{last_said(self._log)}"
                )

    def shape(self, name: str) -> tuple[int, ...]:
        """Of an output, the inputs' being set. Raises EngineError where that does not tell."""
        shape = tuple(int(size) for size in self._value.get_tensor_shape(name))
        if any(size < 0 for size in shape):
            raise EngineError(f"{self._file}: '{name}' has no known shape")
        return shape

    def set(self, holder: object, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Sets everything, unless ``holder`` did so last."""
        if self.holder is holder:
            return
        self.set_shapes(inputs)
        for tensor in (*inputs, *outputs):
            pointer = tensor.pointer
            if tensor.name in self._host_inputs:
                assert tensor.host is not None
                pointer = tensor.host.ctypes.data
            if not self._value.set_tensor_address(tensor.name, pointer):
                raise EngineError(
                    f"{self._file}: '{tensor.name}' cannot be bound{last_said(self._log)}"
                )
        self.holder = holder

    def capturable(self) -> bool:
        """TensorRT-RTX compiles kernels while it runs; before that it cannot be recorded."""
        ask = getattr(self._value, "is_stream_capturable", None)
        return ask is None or bool(ask(self.memory.stream))

    def launch(self) -> None:
        """Enqueues the graph with what is set. Raises EngineError where that fails."""
        if not self._value.execute_async_v3(self.memory.stream):
            raise EngineError(f"{self._file} failed{last_said(self._log)}")


class TensorRTCall:
    """See ``Call``; recorded at its second run, so that what runs only once is not."""

    def __init__(
        self,
        context: Context,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        record: bool,
    ) -> None:
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
        if self._record and self._ran and self._context.capturable():
            self._recorded = self._context.memory.capture(self._context.launch)
            self._recorded()
        else:
            self._context.launch()
        self._ran = True
