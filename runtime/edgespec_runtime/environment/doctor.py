"""The checks of a machine: what is missing for edgespec to run on it, and run fast."""

from __future__ import annotations

import re
from collections.abc import Iterator

from edgespec.nvidia import Gpu
from edgespec_runtime.environment import remedies
from edgespec_runtime.environment.check import Check, ok, problem, warning
from edgespec_runtime.environment.facts import Facts
from edgespec_runtime.environment.jetson import Jetson
from edgespec_runtime.environment.remedies import Platform, platform_of

LEAST_PYTHON = (3, 10)
PYTHONS: dict[Platform, str] = {"jetpack6": "3.10", "jetpack7": "3.12"}
LEAST_MEMORY_MB = 1024
ROOMY_MB = 20_000
"""A Jetson with more memory builds engines of small models without swap."""
SLOW_W = 15


def machine_checks(facts: Facts) -> tuple[Check, ...]:
    """In the order in which they are mended."""
    checks = [_python(facts), _driver(facts.gpu), _engine(facts), _one_onnxruntime(facts)]
    checks += [
        _kernels(facts),
        _cuda_libraries(facts),
        _tensorrt(facts),
        _bindings(facts),
        _builder(facts),
    ]
    checks += [*_power(facts.jetson), _clocks(facts), _memory(facts), _swap(facts)]
    return tuple(check for check in checks if check)


def _python(facts: Facts) -> Check:
    version, wanted = facts.python.version, PYTHONS.get(platform_of(facts))
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < LEAST_PYTHON:
        return problem("python", f"{version}, where 3.10 or newer is needed", remedies.VENV)
    if wanted and not version.startswith(f"{wanted}."):
        return warning(
            "python",
            f"{version}; JetPack's TensorRT module is for {wanted} and will not be seen",
            f"python{wanted} -m venv --system-site-packages .venv && . .venv/bin/activate",
        )
    return ok("python", version)


def _driver(gpu: Gpu | None) -> Check | None:
    if gpu is None:
        return None
    if not gpu.name:
        return problem(
            "driver",
            "there is a card of NVIDIA's, but no driver shows it",
            "sudo ubuntu-drivers install",
            "sudo reboot",
        )
    return ok("gpu", f"{gpu.name}, compute capability {gpu.compute_capability or 'unknown'}")


def _engine(facts: Facts) -> Check:
    """Whether anything can run a graph, and whether it is the GPU where there is one."""
    ort, tensorrt = facts.onnxruntime, facts.tensorrt
    if not (ort.providers or facts.builds_engines):
        return problem("engine", "nothing that runs a graph is installed", *remedies.engine(facts))
    names = [f"onnxruntime {ort.version}".strip()] if ort.providers else []
    if facts.builds_engines and tensorrt.module:
        names.append(f"TensorRT {tensorrt.library or tensorrt.module}")
    if facts.builds_engines and tensorrt.rtx:
        names.append(f"TensorRT-RTX {tensorrt.rtx}")
    if facts.gpu and not (ort.cuda or facts.builds_engines):
        found = f"{names[0]} runs on the processor only, and there is a GPU"
        commands = remedies.engine(facts)
        if not facts.jetson:  # both builds write one folder
            commands = (f"pip uninstall -y {' '.join(ort.builds)}", *commands)
        return warning("engine", found, *commands)
    return ok("engine", ", ".join(names))


def _one_onnxruntime(facts: Facts) -> Check | None:
    builds = facts.onnxruntime.builds
    if len(builds) < 2:
        return None
    return problem(
        "onnxruntime",
        f"{' and '.join(builds)} are installed together; each overwrote the other's files",
        *remedies.one_onnxruntime(facts),
    )


def _kernels(facts: Facts) -> Check | None:
    """Whether the CUDA provider was compiled for this GPU: a list of providers does not tell."""
    code, gpu = facts.onnxruntime.kernels, facts.gpu
    if code is None or gpu is None or not gpu.compute_capability:
        return None
    if not (code.machine_code or code.portable) or code.run_on(gpu.compute_capability):
        return ok("onnxruntime kernels", f"there are some for {gpu.compute_capability}")
    made = ", ".join(f"{c // 10}.{c % 10}" for c in sorted(code.machine_code))
    commands = ("pip uninstall -y onnxruntime-gpu", *remedies.engine(facts))
    return problem(
        "onnxruntime kernels",
        f"this build of onnxruntime-gpu is for compute capability {made}; the GPU here has "
        f"{gpu.compute_capability}",
        *commands,
        *([f"or a build for this JetPack from the Jetson AI Lab index: {remedies.GUIDE}"])
        if facts.jetson
        else (),
    )


def _cuda_libraries(facts: Facts) -> Check | None:
    ort = facts.onnxruntime
    if not ort.cuda or facts.gpu is None:
        return None
    if ort.missing:
        return problem(
            "cuda libraries",
            f"onnxruntime's CUDA provider needs {', '.join(ort.missing)}, not found here "
            f"(CUDA runtime {facts.cuda.runtime or 'none'}, cuDNN {facts.cuda.cudnn or 'none'})",
            *remedies.cuda_libraries(facts),
        )
    return ok("cuda libraries", f"CUDA {facts.cuda.runtime}, cuDNN {facts.cuda.cudnn}")


def _tensorrt(facts: Facts) -> Check | None:
    tensorrt = facts.tensorrt
    if tensorrt.module:
        return ok("tensorrt", f"{tensorrt.library or tensorrt.module}, importable")
    if tensorrt.elsewhere:
        return problem(
            "tensorrt",
            "its Python module is the system's, and this virtual environment does not see it",
            *remedies.tensorrt(facts),
        )
    if not (tensorrt.library or facts.jetson):
        return None
    found = f"{tensorrt.library} without its Python module" if tensorrt.library else "not installed"
    return problem("tensorrt", found, *remedies.tensorrt(facts))


def _bindings(facts: Facts) -> Check | None:
    """TensorRT's engines need them to allocate and copy."""
    if not facts.builds_engines:
        return None
    bindings, command = facts.cuda.bindings, remedies.cuda_python(facts)
    if not bindings:
        return problem("cuda-python", "not installed; TensorRT's engines need it", command)
    runtime = facts.cuda.runtime.split(".")[0]
    if runtime and bindings.split(".")[0] != runtime:
        return problem("cuda-python", f"{bindings} with CUDA {facts.cuda.runtime}", command)
    return ok("cuda-python", bindings)


def _builder(facts: Facts) -> Check | None:
    """``edgespec build`` reads and changes ONNX files."""
    if not facts.builds_engines or facts.packages.get("onnx") != "":
        return None
    found = "the package onnx is not installed; `edgespec build` needs it"
    return warning("build", found, "pip install 'edgespec[export]'")


def _power(jetson: Jetson | None) -> Iterator[Check]:
    if jetson is None or jetson.fastest_mode is None:
        return
    fastest = jetson.power_modes[jetson.fastest_mode]
    if jetson.power_mode != fastest:
        found = f"{jetson.power_mode or 'unknown'}, where {fastest} is faster"
        yield warning("power mode", found, remedies.power_mode(jetson))
    else:
        yield ok("power mode", fastest)
    watts = re.fullmatch(r"(\d+)W", fastest)
    if watts and int(watts.group(1)) <= SLOW_W:
        yield warning(
            "power modes",
            f"none above {fastest}: flashed without the super configuration",
            f"flash the board with it: {remedies.GUIDE}",
        )


def _clocks(facts: Facts) -> Check | None:
    if facts.jetson is None or not facts.clocks:
        return None
    moving = [clock.name for clock in facts.clocks if not clock.locked]
    if moving:
        found = f"{', '.join(moving)} not locked: times vary with the load"
        return warning("clocks", found, "sudo jetson_clocks")
    return ok("clocks", "locked")


def _memory(facts: Facts) -> Check:
    memory = facts.memory
    found = f"{memory.available_mb:,} of {memory.total_mb:,} MB available"
    if memory.available_mb < LEAST_MEMORY_MB:
        commands = [remedies.NO_DESKTOP] if facts.jetson else ["ps aux --sort=-rss | head"]
        return warning("memory", found, *commands)
    return ok("memory", found)


def _swap(facts: Facts) -> Check | None:
    """On a small Jetson alone: building engines takes several times the weights."""
    memory = facts.memory
    if facts.jetson is None or memory.total_mb > ROOMY_MB:
        return None
    if any(not swap.compressed for swap in memory.swaps):
        return ok("swap", f"{memory.swap_mb:,} MB")
    if memory.swaps:
        found = "zram only: it takes the memory that the models need"
        return warning("swap", found, remedies.NO_ZRAM, *remedies.SWAP_FILE)
    return warning("swap", "none: building engines may run out of memory", *remedies.SWAP_FILE)
