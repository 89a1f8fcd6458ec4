"""CUDA memory through cuda-python: no torch, every return code looked at."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from threading import RLock
from types import ModuleType
from typing import Any

import numpy as np

from edgespec.errors import EngineError, MissingDependencyError
from edgespec_runtime.engines.base import Array
from edgespec_runtime.engines.memory import Block

WITHOUT_LEGACY = 1  # cudaStreamNonBlocking: does not wait for the legacy default stream


def cuda_runtime() -> ModuleType:
    """cuda-python's runtime API, of any of its layouts. Raises MissingDependencyError."""
    try:
        from cuda.bindings import runtime

        return runtime  # type: ignore[no-any-return,unused-ignore]
    except ImportError:
        pass
    try:
        from cuda import cudart  # before cuda-python 12.3

        return cudart  # type: ignore[no-any-return,unused-ignore]
    except ImportError:
        raise MissingDependencyError("cuda-python", "an engine on the GPU", "cuda") from None


class CudaMemory:
    """See ``Memory``; device 0 and one stream of its own."""

    device = "cuda"

    def __init__(self) -> None:
        """Raises MissingDependencyError without cuda-python, EngineError without a GPU."""
        self._cuda = cuda_runtime()
        found = self._ask("cudaGetDeviceCount")
        if not found:
            raise EngineError("no CUDA device is visible here; `nvidia-smi` shows what there is")
        self._ask("cudaSetDevice", 0)
        properties = self._ask("cudaGetDeviceProperties", 0)
        name = properties.name
        self.card = (name.decode() if isinstance(name, bytes) else str(name)).rstrip("\0")
        self.compute_capability = f"{properties.major}.{properties.minor}"
        self._stream = self._ask("cudaStreamCreateWithFlags", WITHOUT_LEGACY)
        self.stream = int(self._stream)
        self.lock = RLock()
        self._free_at_first = self.free()
        kinds = self._cuda.cudaMemcpyKind
        self._up, self._down = kinds.cudaMemcpyHostToDevice, kinds.cudaMemcpyDeviceToHost
        self._within = kinds.cudaMemcpyDeviceToDevice

    def free(self) -> int:
        """Free bytes of the device."""
        return int(self._ask("cudaMemGetInfo")[0])

    def held(self) -> int:
        return max(self._free_at_first - self.free(), 0)

    def allocate(self, size: int) -> Block:
        block = Block(int(self._ask("cudaMalloc", size, what=f"{size} bytes of GPU memory")), size)
        weakref.finalize(block, self._cuda.cudaFree, block.pointer)
        return block

    def clear(self, block: Block) -> None:
        self._ask("cudaMemsetAsync", block.pointer, 0, block.size, self._stream)

    def pinned(self, size: int) -> Array:
        pointer = int(self._ask("cudaMallocHost", max(size, 1), what=f"{size} pinned bytes"))
        memory = (ctypes.c_uint8 * size).from_address(pointer)
        array: Array = np.ctypeslib.as_array(memory)
        array.fill(0)
        weakref.finalize(memory, self._cuda.cudaFreeHost, pointer)  # views keep it alive
        return array

    def upload(self, pointer: int, source: Array) -> None:
        self._copy(pointer, source.ctypes.data, source.nbytes, self._up)

    def download(self, target: Array, pointer: int) -> None:
        self._copy(target.ctypes.data, pointer, target.nbytes, self._down)

    def copy_rows(
        self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, rows: int
    ) -> None:
        sizes = (target, target_pitch, source, source_pitch, width, rows)
        self._ask("cudaMemcpy2DAsync", *sizes, self._within, self._stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._ask("cudaStreamBeginCapture", self._stream, mode)
        try:
            work()
        except BaseException:
            self._cuda.cudaStreamEndCapture(self._stream)  # or the stream stays unusable
            raise
        graph = self._ask("cudaStreamEndCapture", self._stream)
        ready = self._ask("cudaGraphInstantiate", graph, 0)
        self._ask("cudaGraphDestroy", graph)
        recorded = _Recorded(lambda: self._ask("cudaGraphLaunch", ready, self._stream))
        weakref.finalize(recorded, self._cuda.cudaGraphExecDestroy, ready)
        return recorded

    def synchronise(self) -> None:
        self._ask("cudaStreamSynchronize", self._stream)

    def _copy(self, target: int, source: int, size: int, kind: Any) -> None:
        self._ask("cudaMemcpyAsync", target, source, size, kind, self._stream)

    def _ask(self, name: str, *arguments: Any, what: str = "") -> Any:
        """Calls the function; returns what it gives beside its code: nothing, a value or several.
        Raises EngineError for a code that is no success."""
        code, *found = getattr(self._cuda, name)(*arguments)
        if int(code) != 0:
            said = self._cuda.cudaGetErrorString(code)[1]
            text = said.decode() if isinstance(said, bytes) else str(said)
            raise EngineError(f"{name} failed{f' for {what}' if what else ''}: {text}")
        return found[0] if len(found) == 1 else tuple(found)


class _Recorded:
    """A CUDA graph that is launched by calling it."""

    def __init__(self, launch: Callable[[], Any]) -> None:
        self._launch = launch

    def __call__(self) -> None:
        self._launch()
