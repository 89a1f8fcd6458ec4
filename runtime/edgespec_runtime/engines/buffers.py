"""Buffers that engine calls are bound to, shared by calls that come one after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgespec_runtime.engines.base import Array


class Buffers:
    """Named buffers [1, rows, width], each as long as the most rows that were asked of it.

    A server's sessions share one of these: a buffer per session and row count would take
    gigabytes of logits.
    """

    def __init__(self, wrap: Callable[[Array], Any]) -> None:
        """``wrap``: makes the engine's value of an array, on the same memory."""
        self._wrap = wrap
        self._arrays: dict[str, Array] = {}
        self._views: dict[tuple[str, int], tuple[Array, Any]] = {}

    def take(self, name: str, rows: int, width: int, dtype: Any) -> tuple[Array, Any]:
        """The first ``rows`` rows of that buffer: [rows, width] (width 0: [rows]), and the
        engine's value [1, rows, width] of them."""
        array = self._arrays.get(name)
        if array is None or array.shape[1] < rows:
            shape = (1, rows, width) if width else (1, rows)
            self._arrays[name] = array = np.zeros(shape, dtype=dtype)
            self._views = {key: view for key, view in self._views.items() if key[0] != name}
        if (name, rows) not in self._views:
            part = array[:, :rows]
            self._views[name, rows] = (part[0], self._wrap(part))
        return self._views[name, rows]
