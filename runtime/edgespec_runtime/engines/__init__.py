"""Inference engines behind one contract; ``open_engine`` picks one by name."""

from __future__ import annotations

from edgespec.errors import ConfigError
from edgespec_runtime.engines.base import Ask, Engine, Graph, StepGraph, StepPool, StepSession


def open_engine(name: str = "ort", *, threads: int = 0) -> Engine:
    """The engine of that name; ``threads`` 0 = one per core the process may use."""
    if name != "ort":
        raise ConfigError(f"unknown engine '{name}'; there are: ort")
    from edgespec_runtime.engines.ort import OrtEngine

    return OrtEngine(threads)


__all__ = ["Ask", "Engine", "Graph", "StepGraph", "StepPool", "StepSession", "open_engine"]
