"""A matrix that rows are multiplied with, as checkpoints store it: outputs by inputs, in pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Matrix:
    """``pieces`` gives its rows in order, [n, inputs] at a time: an output each."""

    inputs: int
    outputs: int
    pieces: Callable[[], Iterator[Array]]

    @classmethod
    def of(cls, inputs: int, outputs: int, load: Callable[[], Array]) -> Matrix:
        """One that is loaded whole, as [inputs, outputs]."""
        return cls(inputs, outputs, lambda: iter([load().T]))

    def transposed(self) -> Floats:
        """[inputs, outputs]."""
        whole = np.empty((self.inputs, self.outputs), dtype=np.float32)
        start = 0
        for piece in self.pieces():
            whole[:, start : start + len(piece)] = piece.T
            start += len(piece)
        return whole
