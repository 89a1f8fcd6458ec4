"""Coupled drafting on ONNX Runtime: a draft graph's ``noise`` and ``inv_temperature``, bound once.

Without noise a row of zeros stays bound, one per chain step, and nothing is done per call.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.bundle import GraphSpec
from edgespec_runtime.engines.checks import check_noise, inverse


class Coupling:
    """Both inputs of one session."""

    def __init__(self, spec: GraphSpec, binding: Any, wrap: Any) -> None:
        self.noisy = False  # whether noise is bound, not the zeros
        self._spec = spec
        self._bind = binding.bind_ortvalue_input
        self._wrap = wrap  # shares memory: what is bound is kept here
        self._zeros = np.zeros((1, int(spec.meta.get("steps", 1)), 1), dtype=np.float32)
        self._inverse = np.ones(1, dtype=np.float32)
        self._buffers: dict[int, tuple[npt.NDArray[np.float32], Any]] = {}
        self._bind("inv_temperature", wrap(self._inverse))
        self.clear()

    def set_temperature(self, temperature: float) -> None:
        """Raises EngineError unless ``temperature`` is above 0."""
        self._inverse[0] = inverse(self._spec, temperature)

    def bind(self, noise: npt.NDArray[np.float32], picked: int) -> None:
        """Binds a copy of ``noise`` [1 or ``picked``, V_d] for the coming run; a chain takes a row
        for each of its steps. Raises EngineError for another shape."""
        check_noise(self._spec, noise, picked)
        rows = len(noise)
        if rows not in self._buffers:
            buffer = np.zeros((1, *noise.shape), dtype=np.float32)
            self._buffers[rows] = (buffer, self._wrap(buffer))
        self._buffers[rows][0][0] = noise
        self._bind("noise", self._buffers[rows][1])
        self.noisy = True

    def clear(self) -> None:
        """Binds the zeros again."""
        self._bind("noise", self._wrap(self._zeros))
        self.noisy = False
