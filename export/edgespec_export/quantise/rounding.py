"""Rounding to few bits, without calibration (RTN) or against what a layer reads (``gptq``)."""

from __future__ import annotations

from collections.abc import Callable

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


class BlockWeights:
    """A matrix as MatMulNBits reads it, rounded once: numbers [outputs, blocks, bytes], scales
    [outputs, blocks]. ``root``: what GPTQ goes by (``gptq.root_of``), or None for RTN."""

    def __init__(
        self, matrix: Matrix, bits: int, block: int, root: Callable[[], Root | None]
    ) -> None:
        self._matrix = matrix
        self._bits = bits
        self._block = block
        self._root = root
        self._scales: Floats | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        count = self._matrix.inputs // self._block
        return self._matrix.outputs, count, self._block * self._bits // 8

    def numbers(self) -> npt.NDArray[np.uint8]:
        outputs, count, width = self.shape
        packed = np.empty((outputs, count, width), dtype=np.uint8)
        scales = np.empty((outputs, count), dtype=np.float32)
        root = self._root() if self._bits == 4 else None
        start = 0
        for piece in self._matrix.pieces():
            end = start + len(piece)
            found, scales[start:end] = self._round(piece, root)
            packed[start:end] = _packed(found.reshape(-1, count, self._block), self._bits)
            start = end
        self._scales = scales
        return packed

    def scales(self) -> Floats:
        """Handed out and forgotten: all layers' scales would be a tenth of a large model."""
        if self._scales is None:
            self.numbers()
        found, self._scales = self._scales, None
        assert found is not None
        return found

    def _round(self, piece: Floats, root: Root | None) -> tuple[Numbers, Floats]:
        if root is not None:
            return compensated(piece, self._block, root, signed_scales)
        blocks = piece.reshape(len(piece), -1, self._block)
        scales = signed_scales(blocks) if self._bits == 4 else even_scales(blocks)
        return rounded(blocks, scales, self._bits), scales[..., 0]


class RowWeights:
    """A matrix in int8 with a scale for each output, as MatMulInteger reads it: numbers
    [inputs, outputs], scales [outputs]."""

    def __init__(self, matrix: Matrix) -> None:
        self._matrix = matrix
        self._scales: Floats | None = None

    def numbers(self) -> Numbers:
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
        self._scales = scales
        return numbers

    def scales(self) -> Floats:
        """Handed out and forgotten."""
        if self._scales is None:
            self.numbers()
        found, self._scales = self._scales, None
        assert found is not None
        return found


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
