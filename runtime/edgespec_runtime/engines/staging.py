"""Buffers of one call on both sides: inputs that one copy carries, outputs that are read alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgespec.bundle import TensorSpec
from edgespec_runtime.engines.base import Array
from edgespec_runtime.engines.executor import Tensor, sized
from edgespec_runtime.engines.memory import SIZES, Memory, aligned, shaped


class Inputs:
    """Inputs in one pinned array and one block of the device, in the order of their specs."""

    def __init__(
        self, memory: Memory, specs: Sequence[TensorSpec], sizes: Mapping[str, int]
    ) -> None:
        """``sizes`` are those of axes that have a name."""
        shapes = [sized(tensor, sizes) for tensor in specs]
        lengths = [bytes_of(t.dtype, shape) for t, shape in zip(specs, shapes, strict=True)]
        total = sum(aligned(length) for length in lengths)
        self._memory = memory
        self._staged = memory.pinned(total)
        self._block = memory.allocate(total)
        self.tensors: dict[str, Tensor] = {}
        self.starts: dict[str, int] = {}
        start = 0
        for spec, shape, length in zip(specs, shapes, lengths, strict=True):
            host = shaped(self._staged[start : start + length], spec.dtype, shape)
            pointer = self._block.pointer + start
            self.tensors[spec.name] = Tensor(spec.name, spec.dtype, shape, pointer, host)
            self.starts[spec.name] = start
            start += aligned(length)

    def host(self, name: str) -> Array:
        """That input's pinned array; what it holds is uploaded next."""
        host = self.tensors[name].host
        assert host is not None
        return host

    def upload(self, end: int | None = None) -> None:
        """Enqueues the copy of all inputs, or of the leading ``end`` bytes."""
        self._memory.upload(self._block.pointer, self._staged[:end])


class Outputs:
    """Outputs, each with a block of the device and a pinned array."""

    def __init__(
        self, memory: Memory, specs: Sequence[TensorSpec], sizes: Mapping[str, int]
    ) -> None:
        """``sizes`` are those of axes that have a name."""
        self._memory = memory
        self._blocks = []
        self.tensors: dict[str, Tensor] = {}
        for spec in specs:
            shape = sized(spec, sizes)
            length = bytes_of(spec.dtype, shape)
            block, host = memory.allocate(length), memory.pinned(length)
            self._blocks.append(block)
            self.tensors[spec.name] = Tensor(
                spec.name, spec.dtype, shape, block.pointer, shaped(host, spec.dtype, shape)
            )

    def download(self, name: str, rows: int | None = None) -> Array:
        """Enqueues the copy of that output [1, R, ...], or of its leading ``rows`` rows; the array
        [R, ...] returned holds them once the stream was waited for."""
        tensor = self.tensors[name]
        assert tensor.host is not None
        part: Array = tensor.host[0] if rows is None else tensor.host[0, :rows]
        self._memory.download(part, tensor.pointer)
        return part

    def download_whole(self, name: str) -> Array:
        """The same of all of it, whatever its first axis."""
        tensor = self.tensors[name]
        assert tensor.host is not None
        self._memory.download(tensor.host, tensor.pointer)
        return tensor.host


def bytes_of(dtype: str, shape: Sequence[int]) -> int:
    """What a tensor takes."""
    size = SIZES[dtype]
    for axis in shape:
        size *= axis
    return size
