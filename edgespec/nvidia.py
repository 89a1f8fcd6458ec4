"""What this machine has of NVIDIA's: the GPU as its driver tells, Jetson Linux, TensorRT.

Asks the driver's own library through ctypes, so that no package is needed: `nvidia-smi` tells no
compute capability on a Jetson.
"""

from __future__ import annotations

import ctypes
import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from edgespec.errors import ConfigError, EngineError

DRIVER = "libcuda.so.1"
TEGRA_RELEASE = Path("/etc/nv_tegra_release")
MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*

LIBRARIES: Mapping[str, tuple[str, ...]] = {
    "tensorrt": ("tensorrt",),
    "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
"""Modules by which a library may be installed; the first of these libraries that is there is what
"auto" takes."""

HOW_TO_GET = (
    "on a Jetson it is JetPack's (sudo apt install nvidia-jetpack), which a virtual environment "
    "sees if made with --system-site-packages; on a PC with an RTX GPU: "
    "pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings"
)


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU; "" where nothing tells."""

    name: str
    compute_capability: str
    """Major and minor, e.g. 8.7; by the driver, or by the chip of a known board."""
    driver: str = ""
    """Version of the kernel's driver, as ``edgespec env`` reads it."""


@dataclass(frozen=True)
class TensorRT:
    """An importable TensorRT, of either kind."""

    library: str
    version: str
    module: ModuleType

    @property
    def numbers(self) -> tuple[int, ...]:
        """The version, to be compared."""
        return tuple(int(part) for part in re.findall(r"\d+", self.version))


def find_gpu() -> Gpu | None:
    """The first GPU; None where there is no driver, or it shows none."""
    try:
        cuda = ctypes.CDLL(DRIVER)
    except OSError:
        return None
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0):
        return None
    parts = []
    for attribute in (MAJOR, MINOR):
        value = ctypes.c_int()
        if cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            return None
        parts.append(str(value.value))
    cuda.cuDeviceGetName(name, len(name), device)
    return Gpu(name.value.decode(errors="replace"), ".".join(parts))


def l4t_release(path: Path = TEGRA_RELEASE) -> str | None:
    """Release of Jetson Linux, e.g. R36.4.0; None on other machines."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"# R(\d+) \(release\), REVISION: ([\d.]+)", text)
    return f"R{found[1]}.{found[2]}" if found else None


def find_tensorrt(library: str = "auto") -> TensorRT:
    """The TensorRT of that name, or with "auto" the first there is.

    Raises EngineError where it is not installed, saying how to get it, and ConfigError for a name
    that is none.
    """
    if library != "auto" and library not in LIBRARIES:
        names = ", ".join(("auto", *LIBRARIES))
        raise ConfigError(f"library '{library}' is unknown; there are: {names}")
    broken = ""
    for name in LIBRARIES if library == "auto" else (library,):
        for module_name in LIBRARIES[name]:
            try:
                module = importlib.import_module(module_name)
            except ModuleNotFoundError as error:
                if error.name != module_name:
                    broken = broken or f" ({module_name}: {error})"
                continue
            except (ImportError, OSError, RuntimeError) as error:  # its libraries are missing
                broken = broken or f" ({module_name}: {error})"
                continue
            if hasattr(module, "Builder"):
                return TensorRT(name, str(module.__version__), module)
            broken = broken or f" ({module_name} is an empty package)"
    wanted = "TensorRT" if library == "auto" else f"library '{library}'"
    raise EngineError(f"{wanted} cannot be imported{broken}; {HOW_TO_GET}")
