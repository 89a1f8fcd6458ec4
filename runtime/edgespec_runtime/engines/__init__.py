"""Inference engines behind one contract; ``open_engine`` opens one by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgespec.errors import ConfigError, EngineError
from edgespec_runtime.engines.base import Ask, Engine, Graph, StepGraph, StepPool, StepSession

if TYPE_CHECKING:
    from edgespec.bundle import Bundle


def open_engine(
    name: str = "ort",
    *,
    threads: int = 0,
    bundle: Bundle | None = None,
    huge_pages: bool = False,
) -> Engine:
    """The engine of that name (``choice.ENGINES``); ``threads`` 0: one per core the process may
    use. ``bundle``, of one flavour: whose built engines "tensorrt" and "tensorrt-rtx" run.
    ``huge_pages``: for weights in the host's memory; steps take less time, and loading more.

    Raises EngineError for one that cannot run here, MissingDependencyError for what it needs.
    """
    from edgespec_runtime.engines.choice import BUILT, ENGINES, built_here

    if name == "ort":
        from edgespec_runtime.engines.ort import OrtEngine

        return OrtEngine(threads, huge_pages=huge_pages)
    if name not in ENGINES:
        raise ConfigError(f"unknown engine '{name}'; there are: {', '.join(ENGINES)}")
    from edgespec_runtime.engines.cuda import CudaMemory

    if name not in BUILT:
        from edgespec_runtime.engines.ort_device import PROVIDERS, OrtDeviceEngine

        return OrtDeviceEngine(name, PROVIDERS[name], CudaMemory, threads)
    if bundle is None:
        raise EngineError(f"engine {name} runs what was built of a bundle; name the bundle")
    from edgespec.nvidia import find_tensorrt
    from edgespec_runtime.engines.trt import TensorRTEngine

    tensorrt, memory = find_tensorrt(BUILT[name]), CudaMemory()
    built = built_here(bundle, name, memory.compute_capability)
    return TensorRTEngine(name, tensorrt, built, bundle, memory)


__all__ = ["Ask", "Engine", "Graph", "StepGraph", "StepPool", "StepSession", "open_engine"]
