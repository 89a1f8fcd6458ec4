"""GPU, driver, CUDA and TensorRT, from files; the driver is asked on this machine alone."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from edgespec.latency import Datasheet, device_files, load_estimate, this_device
from edgespec.nvidia import Gpu, find_gpu
from edgespec_runtime.environment.libraries import Libraries
from edgespec_runtime.environment.packages import has_module
from edgespec_runtime.environment.place import Place

PCI = "sys/bus/pci/devices/*"
VENDOR, DISPLAY = "0x10de", "0x03"
SYSTEM_SITES = ("usr/lib/python3*/dist-packages", "usr/local/lib/python3*/dist-packages")


@dataclass(frozen=True)
class Cuda:
    """CUDA as installed beside the driver; "" where it is not."""

    toolkit: str
    runtime: str
    """Version in the name of libcudart, of the toolkit or of Python's wheels."""
    cudnn: str
    bindings: str
    """Version of the Python package cuda-bindings (or cuda-python)."""


@dataclass(frozen=True)
class TensorRT:
    """TensorRT as installed; "" where it is not."""

    library: str
    """Version of libnvinfer: of its Debian package, or of its file."""
    module: str
    """Version of the Python module that is imported, "?" where it does not say."""
    elsewhere: bool
    """Whether the system's Python has the module and this one does not see it."""
    rtx: str
    """Version of TensorRT-RTX's Python package."""


def gpu_of(place: Place) -> Gpu | None:
    """The first GPU; None where there is none."""
    told = find_gpu() if place.live else None
    sheet = known_device(place)
    name = told.name if told else this_device(place.root).accelerator
    if not name and not _card_without_driver(place):
        return None
    version = re.search(r"(?:Module|for \w+)\s+([\d.]+)", place.text("proc/driver/nvidia/version"))
    return Gpu(
        name=name,
        compute_capability=told.compute_capability
        if told
        else (sheet.compute_capability if sheet else ""),
        driver=version.group(1) if version else "",
    )


def known_device(place: Place) -> Datasheet | None:
    """The device file with this Jetson's chip whose memory is nearest to what is here; None for
    other machines."""
    here = this_device(place.root)
    sheets = [load_estimate(path) for _, path in sorted(device_files().items())]
    fitting = [s for s in sheets if here.accelerator and s.accelerator == here.accelerator]
    return min(fitting, key=lambda s: abs(s.memory_mb - here.memory_mb), default=None)


def cuda_of(place: Place, packages: dict[str, str], libraries: Libraries) -> Cuda:
    try:
        toolkit = json.loads(place.text("usr/local/cuda/version.json"))["cuda"]["version"]
    except (ValueError, KeyError, TypeError):
        toolkit = ""
    return Cuda(
        toolkit=str(toolkit),
        runtime=libraries.version("libcudart"),
        cudnn=libraries.version("libcudnn"),
        bindings=packages.get("cuda-bindings") or packages.get("cuda-python", ""),
    )


def tensorrt_of(
    place: Place, packages: dict[str, str], debs: dict[str, str], libraries: Libraries
) -> TensorRT:
    deb = next((debs[name] for name in sorted(debs) if re.fullmatch(r"libnvinfer\d+", name)), "")
    seen = has_module(place, "tensorrt")
    version = packages.get("tensorrt", packages.get("tensorrt-bindings", "?")) if seen else ""
    rtx = next((packages[name] for name in sorted(packages) if _is_rtx(name)), "")
    return TensorRT(
        library=deb.split("-")[0] or libraries.version("libnvinfer"),
        module=version,
        elsewhere=not seen and _in_system(place, "tensorrt"),
        rtx=rtx,
    )


def _in_system(place: Place, module: str) -> bool:
    return any(next(place.root.glob(f"{p}/{module}"), None) for p in SYSTEM_SITES)


def _is_rtx(package: str) -> bool:
    return re.fullmatch(r"tensorrt-rtx(-cu\d+-bindings)?", package) is not None


def _card_without_driver(place: Place) -> bool:
    """Whether the PCI bus has a display controller of NVIDIA's."""
    devices = [str(path.relative_to(place.root)) for path in place.root.glob(PCI)]
    return any(
        place.text(f"{device}/vendor") == VENDOR
        and place.text(f"{device}/class").startswith(DISPLAY)
        for device in devices
    )
