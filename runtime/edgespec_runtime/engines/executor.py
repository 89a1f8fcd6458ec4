"""What differs between engines on an accelerator: how a graph's tensors are bound and enqueued."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from edgespec.bundle import TensorSpec
from edgespec_runtime.engines.base import Array


@dataclass(frozen=True, eq=False)
class Tensor:
    """Where one input or output of a graph lies."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    pointer: int
    """On the device."""
    host: Array | None = None
    """Of an input: the pinned array that is copied there."""


class Call(Protocol):
    """A graph with its tensors bound."""

    def run(self, moved: Sequence[Tensor] = ()) -> None:
        """Enqueues it; ``moved``: inputs of another shape than at the last run. Raises
        EngineError."""


class Executor(Protocol):
    """A loaded graph."""

    @property
    def host_inputs(self) -> frozenset[str]:
        """Inputs that the engine reads in host memory; what is bound is then ``Tensor.host``."""

    def prepare(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], steady: bool) -> Call:
        """Binds tensors, for as long as the call lives. ``steady``: neither shapes nor addresses
        will change, and it will run often, so that recording it is worth while. Raises
        EngineError for shapes that the graph was not made for."""


def sized(tensor: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Its shape; ``sizes`` are those of axes that have a name."""
    return tuple(axis if isinstance(axis, int) else sizes[axis] for axis in tensor.axes)
