"""Rounding to few bits, without calibration (RTN) or against what a layer reads (``gptq``)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec_export.quantise.gptq import Root, compensated
from edgespec_export.quantise.matrix import Floats, Matrix

Numbers = npt.NDArray[np.int8]
TINY = float(np.finfo(np.float32).tiny)
NOTHING = np.float32(1e-6)
"""The scale of zeros. Kernels add the zero point's part and take it away again, each rounded: a
small scale keeps what is left of that small."""


def signed_scales(blocks: Floats) -> Floats:
    """[..., block] -> [..., 1]: the value of largest magnitude becomes -8, so that all sixteen
    values of 4 bits are used (the rule of llama.cpp's Q4_0)."""
    where = np.abs(blocks).argmax(axis=-1)[..., None]
    scales = np.take_along_axis(blocks, where, axis=-1) / np.float32(-8)
    found: Floats = np.where(np.abs(scales) < TINY, NOTHING, scales)
    return found


def even_scales(blocks: Floats) -> Floats:
    """[..., block] -> [..., 1]: the largest magnitude becomes 127."""
    scales = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
    found: Floats = np.where(scales < TINY, NOTHING, scales)
    return found


def rounded(blocks: Floats, scales: Floats, bits: int) -> Numbers:
    """The nearest numbers of ``bits`` bits to blocks / scales."""
    least, most = (-8, 7) if bits == 4 else (-127, 127)
    numbers: Numbers = np.clip(np.rint(blocks / scales), least, most).astype(np.int8)
    return numbers


class Rounded(ABC):
    """A matrix in few bits, rounded once, whichever thread asks first and for what: ``numbers``
    and their ``scales``, each let go once it is taken."""

    def __init__(self, matrix: Matrix) -> None:
        self._matrix = matrix
        self._lock = Lock()
        self._numbers: npt.NDArray[Any] | None = None
        self._scales: Floats | None = None

    def numbers(self) -> npt.NDArray[Any]:
        with self._lock:
            if self._numbers is None:
                self._numbers, self._scales = self._round()
            taken, self._numbers = self._numbers, None
            return taken

    def scales(self) -> Floats:
        with self._lock:
            if self._scales is None:
                self._numbers, self._scales = self._round()
            taken, self._scales = self._scales, None
            return taken

    @abstractmethod
    def _round(self) -> tuple[npt.NDArray[Any], Floats]:
        """(numbers, scales)."""


class BlockWeights(Rounded):
    """A matrix as MatMulNBits reads it: numbers [outputs, blocks, bytes], scales [outputs, blocks].
    ``root``: what GPTQ goes by (``gptq.root_of``), or None for RTN."""

    def __init__(
        self, matrix: Matrix, bits: int, block: int, root: Callable[[], Root | None]
    ) -> None:
        super().__init__(matrix)
        self._bits = bits
        self._block = block
        self._root = root

    @property
    def shape(self) -> tuple[int, int, int]:
        count = self._matrix.inputs // self._block
        return self._matrix.outputs, count, self._block * self._bits // 8

    def _round(self) -> tuple[npt.NDArray[np.uint8], Floats]:
        outputs, count, width = self.shape
        packed = np.empty((outputs, count, width), dtype=np.uint8)
        scales = np.empty((outputs, count), dtype=np.float32)
        root = self._root() if self._bits == 4 else None
        start = 0
        for piece in self._matrix.pieces():
            end = start + len(piece)
            found, scales[start:end] = self._rounded(piece, root)
            packed[start:end] = _packed(found.reshape(-1, count, self._block), self._bits)
            start = end
        return packed, scales

    def _rounded(self, piece: Floats, root: Root | None) -> tuple[Numbers, Floats]:
        if root is not None:
            return compensated(piece, self._block, root, signed_scales)
        blocks = piece.reshape(len(piece), -1, self._block)
        scales = signed_scales(blocks) if self._bits == 4 else even_scales(blocks)
        return rounded(blocks, scales, self._bits), scales[..., 0]


class RowWeights(Rounded):
    """A matrix in int8 with a scale for each output, as MatMulInteger reads it: numbers
    [inputs, outputs], scales [outputs]."""

    def _round(self) -> tuple[Numbers, Floats]:
        matrix = self._matrix
        numbers = np.empty((matrix.inputs, matrix.outputs), dtype=np.int8)
        scales = np.empty(matrix.outputs, dtype=np.float32)
        start = 0
        for piece in matrix.pieces():
            end = start + len(piece)
            own = even_scales(piece)
            numbers[:, start:end] = rounded(piece, own, 8).T
            scales[start:end] = own[:, 0]
            start = end
        return numbers, scales


def _packed(numbers: Numbers, bits: int) -> npt.NDArray[np.uint8]:
    """Numbers of [..., block] above a zero point in the middle; of 4 bits two to a byte, the first
    in the low half."""
    packed: npt.NDArray[np.uint8]
    if bits == 8:
        packed = np.ascontiguousarray(numbers).view(np.uint8) ^ np.uint8(128)
        return packed
    lifted = np.ascontiguousarray(numbers + np.int8(8)).view(np.uint8)
    packed = lifted[..., ::2] | (lifted[..., 1::2] << np.uint8(4))
    return packed
