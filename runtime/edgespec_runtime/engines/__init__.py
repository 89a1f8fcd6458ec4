"""Inference engines behind one contract; ``open_engine`` picks one by name."""

from __future__ import annotations

from edgespec.errors import ConfigError
from edgespec_runtime.engines.base import Ask, Engine, Graph, StepGraph, StepPool, StepSession

ENGINES = ("ort", "ort-cuda")


def open_engine(name: str = "ort", *, threads: int = 0) -> Engine:
    """The engine of that name, one of ``ENGINES``; ``threads`` 0: one per core the process may use.

    Raises EngineError for one that cannot run here, MissingDependencyError for what it needs.
    """
    if name == "ort":
        from edgespec_runtime.engines.ort import OrtEngine

        return OrtEngine(threads)
    if name == "ort-cuda":
        from edgespec_runtime.engines.cuda import CudaMemory
        from edgespec_runtime.engines.ort_device import CUDA, OrtDeviceEngine

        return OrtDeviceEngine(name, CUDA, CudaMemory, threads)
    raise ConfigError(f"unknown engine '{name}'; there are: {', '.join(ENGINES)}")


__all__ = ["Ask", "Engine", "Graph", "StepGraph", "StepPool", "StepSession", "open_engine"]
