"""The device engines' ``Memory`` over the host's own: everything but CUDA runs without a GPU.

What was never written is no number, and copies that CUDA would not define are refused.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from threading import RLock
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec_runtime.engines.memory import Block

Bytes = npt.NDArray[Any]
POISON = 0xFF  # bytes of which every float is a NaN


class HostMemory:
    """See ``Memory``. Copies are done at once: the executors of the tests run on the host too."""

    device = "cpu"
    card = "this computer"
    stream = 0

    def __init__(self) -> None:
        self.lock = RLock()
        self.captures = 0
        self.copies = 0
        self._recording: list[Callable[[], None]] | None = None
        self.waits = 0
        self.allocated: list[npt.NDArray[np.uint8]] = []

    def held(self) -> int:
        return sum(len(data) for data in self.allocated)

    def allocate(self, size: int) -> Block:
        data = np.full(size + 256, POISON, dtype=np.uint8)
        self.allocated.append(data)  # pointers stay good; tests are short
        start = -(-data.ctypes.data // 256) * 256
        return Block(start, size)

    def clear(self, block: Block) -> None:
        ctypes.memset(block.pointer, 0, block.size)

    def pinned(self, size: int) -> Bytes:
        return np.zeros(size, dtype=np.uint8)

    def upload(self, pointer: int, source: Bytes) -> None:
        assert source.flags.c_contiguous
        self.copies += 1
        ctypes.memmove(pointer, source.ctypes.data, source.nbytes)

    def download(self, target: Bytes, pointer: int) -> None:
        assert target.flags.c_contiguous
        self.copies += 1
        ctypes.memmove(target.ctypes.data, pointer, target.nbytes)

    def copy_rows(
        self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, rows: int
    ) -> None:
        assert width <= min(target_pitch, source_pitch)
        self.copies += 1
        for row in range(rows):
            to, at = target + row * target_pitch, source + row * source_pitch
            assert abs(to - at) >= width, "CUDA does not define copies that overlap"
            ctypes.memmove(to, at, width)

    def enqueue(self, work: Callable[[], None]) -> None:
        """Runs ``work``, or records it while that is going on."""
        if self._recording is None:
            work()
        else:
            self._recording.append(work)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        recorded: list[Callable[[], None]] = []
        self._recording = recorded
        try:
            work()
        finally:
            self._recording = None
        self.captures += 1

        def again() -> None:
            for each in recorded:
                each()

        return again

    def synchronise(self) -> None:
        self.waits += 1

    def floats(self, block: Block, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """A float32 view of a block."""
        raw = (ctypes.c_uint8 * block.size).from_address(block.pointer)
        return np.ctypeslib.as_array(raw).view(np.float32).reshape(shape)
