"""A graph without memory on an accelerator: vision tower, projector, compressor."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from edgespec.bundle import GraphSpec
from edgespec.errors import EngineError
from edgespec_runtime.engines.base import Array
from edgespec_runtime.engines.executor import Call, Executor
from edgespec_runtime.engines.memory import Memory
from edgespec_runtime.engines.staging import Inputs, Outputs

SHAPES = 4
"""Shapes of inputs whose buffers are kept; numbers of pictures, for the most part."""


class DeviceGraph:
    """See ``Graph``."""

    def __init__(self, spec: GraphSpec, executor: Executor, memory: Memory) -> None:
        self.spec = spec
        self.inputs = frozenset(tensor.name for tensor in spec.inputs)
        self._executor = executor
        self._memory = memory
        self._kept: OrderedDict[object, tuple[Inputs, Outputs, Call]] = OrderedDict()

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Raises EngineError for shapes that the graph does not take."""
        with self._memory.lock:
            inputs, outputs, call = self._bound(feeds)
            for name, value in feeds.items():
                inputs.host(name)[...] = value
            inputs.upload()
            call.run()
            found = {name: outputs.download_whole(name) for name in outputs.tensors}
            self._memory.synchronise()
            return {name: value.copy() for name, value in found.items()}  # callers keep them

    def _bound(self, feeds: Mapping[str, Array]) -> tuple[Inputs, Outputs, Call]:
        sizes = self._sizes(feeds)
        key = tuple(sorted(sizes.items()))
        if key not in self._kept:
            inputs = Inputs(self._memory, self.spec.inputs, sizes)
            outputs = Outputs(self._memory, self.spec.outputs, sizes)
            call = self._executor.prepare(
                list(inputs.tensors.values()), list(outputs.tensors.values()), steady=False
            )
            self._kept[key] = (inputs, outputs, call)
            if len(self._kept) > SHAPES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _sizes(self, feeds: Mapping[str, Array]) -> dict[str, int]:
        """Sizes of the named axes, as ``feeds`` have them."""
        sizes: dict[str, int] = {}
        for tensor in self.spec.inputs:
            shape = feeds[tensor.name].shape
            fits = len(shape) == len(tensor.axes) and all(
                size == (axis if isinstance(axis, int) else sizes.setdefault(axis, size))
                for axis, size in zip(tensor.axes, shape, strict=True)
            )
            if not fits:
                raise EngineError(
                    f"{self.spec.file} takes '{tensor.name}' {list(tensor.axes)}; "
                    f"it is {list(shape)}"
                )
        return sizes
