"""The facts as a block of text, one subject a line."""

from __future__ import annotations

from collections.abc import Iterator

from edgespec_runtime.environment.facts import Facts

WIDTH = 14


def as_block(facts: Facts) -> str:
    """What goes into a bug report; subjects that a machine has nothing of are left out."""
    rows = (*_machine(facts), *_engines(facts), *_state(facts), *_packages(facts))
    return "\n".join(f"{name:<{WIDTH}}{text}".rstrip() for name, text in rows if text)


def _machine(facts: Facts) -> Iterator[tuple[str, str]]:
    python, system, jetson, gpu = facts.python, facts.system, facts.jetson, facts.gpu
    kind = "virtual environment" if python.virtual else "no virtual environment"
    if python.virtual:
        kind += ", sees system packages" if python.sees_system else ", without system packages"
    yield "edgespec", facts.edgespec
    yield "python", f"{python.version} ({kind})"
    yield "system", ", ".join(filter(None, (system.os, f"Linux {system.kernel} {system.machine}")))
    yield "device", system.model
    yield "processor", f"{system.processor or 'unknown'}, {system.cores} cores"
    if jetson:
        yield "jetpack", f"{jetson.jetpack or 'unknown'} (Jetson Linux {jetson.l4t})"
    if gpu:
        capability = f"compute capability {gpu.compute_capability or 'unknown'}"
        driver = f"driver {gpu.driver}" if gpu.driver else "no driver version found"
        yield "gpu", f"{gpu.name or 'NVIDIA card'}, {capability}, {driver}"
    else:
        yield "gpu", "none of NVIDIA's"


def _engines(facts: Facts) -> Iterator[tuple[str, str]]:
    cuda, tensorrt, ort = facts.cuda, facts.tensorrt, facts.onnxruntime
    parts = {
        "toolkit": cuda.toolkit,
        "runtime": cuda.runtime,
        "cuDNN": cuda.cudnn,
        "cuda-bindings": cuda.bindings,
    }
    yield "cuda", ", ".join(f"{name} {value}" for name, value in parts.items() if value)
    module = {"": "no Python module", "?": "Python module"}.get(
        tensorrt.module, f"Python module {tensorrt.module}"
    )
    if tensorrt.elsewhere:
        module = "Python module of the system's Python only"
    if tensorrt.library or tensorrt.module:
        yield "tensorrt", f"{tensorrt.library or 'no library'}, {module}"
    yield "tensorrt-rtx", tensorrt.rtx
    builds = " and ".join(f"{name} {version}" for name, version in ort.builds.items())
    providers = ", ".join(name.removesuffix("ExecutionProvider") for name in ort.providers)
    yield "onnxruntime", f"{builds}: {providers}" if builds else "none"
    if ort.kernels:
        code = ", ".join(f"{c // 10}.{c % 10}" for c in sorted(ort.kernels.machine_code))
        yield "", f"compiled for compute capability {code or 'none'}"
    if ort.missing:
        yield "", f"libraries not found: {', '.join(ort.missing)}"


def _state(facts: Facts) -> Iterator[tuple[str, str]]:
    memory, jetson = facts.memory, facts.jetson
    swaps = ", ".join(f"{swap.name} {swap.megabytes:,} MB" for swap in memory.swaps) or "none"
    yield "memory", f"{memory.total_mb:,} MB, {memory.available_mb:,} MB available"
    yield "swap", f"{swaps}, {memory.swap_free_mb:,} MB free" if memory.swaps else swaps
    if jetson:
        modes = ", ".join(f"{number} {name}" for number, name in sorted(jetson.power_modes.items()))
        yield "power mode", f"{jetson.power_mode or 'unknown'} (of {modes or 'none known'})"
    yield "governor", facts.governor
    for clock in facts.clocks:
        now = "unknown" if clock.now is None else f"{clock.now:.0f}"
        state = "locked" if clock.locked else f"{clock.lowest:.0f} to {clock.highest:.0f} allowed"
        yield f"clock {clock.name}", f"{now} MHz, {state}"


def _packages(facts: Facts) -> Iterator[tuple[str, str]]:
    here = [f"{name} {version}" for name, version in facts.packages.items() if version]
    for i in range(0, len(here), 5):
        yield "packages" if i == 0 else "", ", ".join(here[i : i + 5])
