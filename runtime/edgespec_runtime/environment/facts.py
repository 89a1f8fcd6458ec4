"""Everything that is known of a machine and what is installed on it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import edgespec
from edgespec.nvidia import Gpu
from edgespec_runtime.environment.clocks import Clock, clocks_of
from edgespec_runtime.environment.debs import installed_debs
from edgespec_runtime.environment.jetson import Jetson, jetson_of
from edgespec_runtime.environment.libraries import Libraries
from edgespec_runtime.environment.nvidia import (
    Cuda,
    TensorRT,
    cuda_of,
    gpu_of,
    known_device,
    tensorrt_of,
)
from edgespec_runtime.environment.packages import (
    OnnxRuntime,
    dependencies_of,
    onnxruntime_of,
    packages_of,
)
from edgespec_runtime.environment.place import Place
from edgespec_runtime.environment.system import Memory, System, memory_of, system_of


@dataclass(frozen=True)
class Python:
    """The Python that runs edgespec."""

    version: str
    virtual: bool
    sees_system: bool
    """Whether it sees the packages of the system's Python."""


@dataclass(frozen=True)
class Facts:
    """What a bug report needs, and what ``doctor`` judges."""

    edgespec: str
    python: Python
    system: System
    device: str
    """The name of its device file; "" for a machine that has none."""
    jetson: Jetson | None
    gpu: Gpu | None
    cuda: Cuda
    tensorrt: TensorRT
    onnxruntime: OnnxRuntime
    memory: Memory
    clocks: tuple[Clock, ...]
    governor: str
    """What sets the processor's clocks."""
    packages: dict[str, str]
    """Versions of our dependencies, "" for what is not installed."""

    @property
    def builds_engines(self) -> bool:
        """Whether there are a GPU and a TensorRT of either kind for it."""
        return self.gpu is not None and bool(self.tensorrt.module or self.tensorrt.rtx)

    def as_json(self) -> dict[str, Any]:
        """Plain containers; keys as the fields are named."""
        values = asdict(self)
        code = self.onnxruntime.kernels
        values["onnxruntime"]["kernels"] = code and {
            "machine_code": sorted(code.machine_code),
            "portable": sorted(code.portable),
        }
        return values


def facts_of(place: Place) -> Facts:
    """Reads files; asks the driver and nvpmodel on this machine alone; imports no engine."""
    installed, debs, libraries = packages_of(place), installed_debs(place), Libraries(place)
    sheet = known_device(place)
    return Facts(
        edgespec=edgespec.__version__,
        python=Python(place.python, place.virtual, place.sees_system),
        system=system_of(place),
        device=sheet.name if sheet else "",
        jetson=jetson_of(place, debs),
        gpu=gpu_of(place),
        cuda=cuda_of(place, installed, libraries),
        tensorrt=tensorrt_of(place, installed, debs, libraries),
        onnxruntime=onnxruntime_of(place, installed, libraries),
        memory=memory_of(place),
        clocks=clocks_of(place),
        governor=place.text("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        packages={name: installed.get(name, "") for name in dependencies_of(place)},
    )
