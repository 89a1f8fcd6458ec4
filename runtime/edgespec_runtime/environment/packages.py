"""Python packages: ours, and the builds of onnxruntime, without importing any."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path

from edgespec_runtime.environment.elf import Kernels, kernels, needed
from edgespec_runtime.environment.libraries import Libraries
from edgespec_runtime.environment.place import Place

BUILDS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "onnxruntime-rocm",
    "onnxruntime-training",
)
"""Packages that all write the folder ``onnxruntime``: one overwrites the other's files."""
PROVIDERS = {
    "TensorrtExecutionProvider": "libonnxruntime_providers_tensorrt.so",
    "NvTensorRTRTXExecutionProvider": "libonnxruntime_providers_nv_tensorrt_rtx.so",
    "CUDAExecutionProvider": "libonnxruntime_providers_cuda.so",
}
NVIDIA = re.compile(r"lib(cu|nv)\w+\.so\.\d+")
DRIVER = "libcuda.so.1"


@dataclass(frozen=True)
class OnnxRuntime:
    """What of onnxruntime is installed."""

    builds: dict[str, str]
    """Versions by package: more than one is broken."""
    providers: tuple[str, ...]
    """Those whose files are there, the CPU's last; whether they run, a run tells."""
    missing: tuple[str, ...]
    """Libraries of NVIDIA's that the CUDA provider is linked with and that are not found."""
    kernels: Kernels | None
    """The GPUs that the CUDA provider was compiled for; None without it."""

    @property
    def version(self) -> str:
        """Of the first build; "" without one."""
        return next(iter(self.builds.values()), "")

    @property
    def cuda(self) -> bool:
        return "CUDAExecutionProvider" in self.providers


def packages_of(place: Place) -> dict[str, str]:
    """Versions of all Python packages by their normalised names, those that are imported."""
    found: dict[str, str] = {}
    for item in distributions(path=[str(site) for site in place.sites]):
        name = item.metadata["Name"]
        if name:
            found.setdefault(normalised(name), item.version)
    return found


def dependencies_of(place: Place) -> tuple[str, ...]:
    """Normalised names of all that edgespec asks for, its extras included; () where it is not
    installed as a package."""
    ours = (item for item in distributions(path=[str(site) for site in place.sites]) if _ours(item))
    requires = next((item.requires for item in ours), None)
    names = (re.match(r"[\w.-]+", line) for line in requires or ())
    return tuple(sorted({normalised(name.group()) for name in names if name} - {"edgespec"}))


def onnxruntime_of(place: Place, packages: dict[str, str], libraries: Libraries) -> OnnxRuntime:
    """From files alone."""
    folder = _folder(place, "onnxruntime")
    builds = {name: packages[name] for name in BUILDS if name in packages}
    if folder is None:
        return OnnxRuntime(builds, (), (), None)
    there = {name: folder / "capi" / file for name, file in PROVIDERS.items()}
    providers = tuple(name for name, path in there.items() if path.is_file())
    cuda = there["CUDAExecutionProvider"]
    return OnnxRuntime(
        builds=builds,
        providers=(*providers, "CPUExecutionProvider"),
        missing=tuple(
            name
            for name in needed(cuda)
            if NVIDIA.fullmatch(name) and name != DRIVER and name not in libraries
        ),
        kernels=kernels(cuda) if cuda.is_file() else None,
    )


def normalised(name: str) -> str:
    """As package indexes compare names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def has_module(place: Place, name: str) -> bool:
    """Whether ``import name`` finds a package."""
    return _folder(place, name) is not None


def _folder(place: Place, module: str) -> Path | None:
    folders = (site.joinpath(*module.split(".")) for site in place.sites)
    return next((folder for folder in folders if folder.is_dir()), None)


def _ours(item: Distribution) -> bool:
    return normalised(item.metadata["Name"] or "") == "edgespec"
