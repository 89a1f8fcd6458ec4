"""Recorded machines: the files from which ``edgespec env`` and ``doctor`` read, as trees.

Contents are as the devices have them (nv_tegra_release, nvpmodel.conf, dpkg's versions), cut to
what is read; libraries are written here, small, with the same headers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgespec_runtime.environment.place import Place

ORIN_NANO_MODES = """\
< PARAM TYPE=FILE NAME=CPU_ONLINE >
< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=25W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
CPU_ONLINE CORE_0 1
< PM_CONFIG DEFAULT=1 >
"""
AGX_ORIN_MODES = """\
< POWER_MODEL ID=0 NAME=MAXN >
< POWER_MODEL ID=1 NAME=MODE_15W >
< POWER_MODEL ID=2 NAME=MODE_30W >
< POWER_MODEL ID=3 NAME=MODE_50W >
< PM_CONFIG DEFAULT=2 >
"""
THOR_MODES = "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=1 NAME=120W >\n"
ARM_CPU = "processor\t: {}\nCPU implementer\t: 0x41\nCPU part\t: {part}\n\n"
X86_CPU = "processor\t: {}\nmodel name\t: AMD Ryzen 7 5800X 8-Core Processor\n\n"


@dataclass
class Machine:
    """A tree below ``root``, and the Python in it."""

    root: Path
    python: str = "3.10.12"
    machine: str = "aarch64"
    sees_system: bool = True
    files: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, content in self.files.items():
            self.write(name, content)
        self.write(
            "venv/pyvenv.cfg",
            f"home = /usr/bin\ninclude-system-site-packages = {str(self.sees_system).lower()}\n",
        )
        self.site.mkdir(parents=True, exist_ok=True)

    @property
    def site(self) -> Path:
        """The virtual environment's packages."""
        minor = ".".join(self.python.split(".")[:2])
        return self.root / f"venv/lib/python{minor}/site-packages"

    @property
    def system_site(self) -> Path:
        minor = ".".join(self.python.split(".")[:2])
        return self.root / f"usr/lib/python{minor}/dist-packages"

    @property
    def place(self) -> Place:
        sites = (self.site, self.system_site) if self.sees_system else (self.site,)
        return Place(self.root, sites, self.root / "venv", self.python, self.machine)

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def package(self, name: str, version: str, requires: Iterable[str] = ()) -> None:
        """A Python package of the virtual environment."""
        _package(self.site, name, version, requires)

    def system_package(self, name: str, version: str) -> None:
        """One of the system's Python, with a module of its name."""
        _package(self.system_site, name, version, ())
        (self.system_site / name).mkdir(exist_ok=True)
        (self.system_site / name / "__init__.py").touch()

    def debs(self, versions: Mapping[str, str]) -> None:
        """dpkg's list, one removed package besides."""
        stanzas = [
            f"Package: {name}\nStatus: install ok installed\nSection: x\nVersion: {version}\n"
            for name, version in versions.items()
        ]
        stanzas.append("Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n")
        self.write("var/lib/dpkg/status", "\n".join(stanzas))

    def onnxruntime(self, package: str, version: str, cuda: bytes | None = None) -> None:
        """A build of onnxruntime; ``cuda`` is its CUDA provider's library."""
        self.package(package, version)
        capi = self.site / "onnxruntime" / "capi"
        capi.mkdir(parents=True, exist_ok=True)
        if cuda is not None:
            (capi / "libonnxruntime_providers_cuda.so").write_bytes(cuda)

    def locked(self, floor: int, ceiling: int, gpu: str = "17000000.gpu") -> None:
        """Clocks of one core group and the GPU: what is allowed, kHz and Hz."""
        cpu = "sys/devices/system/cpu/cpufreq/policy0"
        for name, value in (("min", floor), ("max", ceiling), ("cur", floor)):
            self.write(f"{cpu}/scaling_{name}_freq", f"{value}\n")
            self.write(f"sys/class/devfreq/{gpu}/{name}_freq", f"{value * 1000}\n")


def orin_nano(root: Path, sees_system: bool = True) -> Machine:
    """JetPack 6.2 as flashed: 25 W, clocks free, zram, TensorRT of the system."""
    machine = _jetson(
        Machine(root, sees_system=sees_system),
        model="NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        chip="tegra234",
        release=("36", "4.3"),
        modes=ORIN_NANO_MODES,
        mode=1,
        cores=6,
        megabytes=7620,
    )
    machine.debs(
        {
            "nvidia-jetpack": "6.2+b77",
            "libnvinfer10": "10.3.0.30-1+cuda12.5",
            "python3-libnvinfer": "10.3.0.30-1+cuda12.5",
            "libcudnn9-cuda-12": "9.3.0.75-1",
        }
    )
    machine.system_package("tensorrt", "10.3.0")
    _cuda(machine, "12.6.68", ("libcudart.so.12.6.68", "libcublas.so.12"), "libcudnn.so.9.3.0")
    zram = "/dev/zram0 partition 650000 0 5\n/dev/zram1 partition 650000 0 5\n"
    machine.write("proc/swaps", f"Filename Type Size Used Priority\n{zram}")
    machine.locked(729600, 1728000)
    return machine


def agx_orin(root: Path, sees_system: bool = True) -> Machine:
    """JetPack 6.2 made ready: MAXN, clocks locked, cuda-python."""
    machine = _jetson(
        Machine(root, sees_system=sees_system),
        model="NVIDIA Jetson AGX Orin Developer Kit",
        chip="tegra234",
        release=("36", "4.3"),
        modes=AGX_ORIN_MODES,
        mode=0,
        cores=12,
        megabytes=62795,
    )
    machine.debs({"nvidia-jetpack": "6.2+b77", "libnvinfer10": "10.3.0.30-1+cuda12.5"})
    machine.system_package("tensorrt", "10.3.0")
    _cuda(machine, "12.6.68", ("libcudart.so.12.6.68", "libcublas.so.12"), "libcudnn.so.9.3.0")
    machine.package("cuda-bindings", "12.9.10")
    machine.locked(2201600, 2201600)
    return machine


def thor(root: Path, sees_system: bool = True) -> Machine:
    """JetPack 7.2, no JetPack package: known by its Jetson Linux. The second power mode and the
    driver's version are assumed."""
    machine = _jetson(
        Machine(root, python="3.12.3", sees_system=sees_system),
        model="NVIDIA Jetson AGX Thor Developer Kit",
        chip="tegra264",
        release=("39", "2.0"),
        modes=THOR_MODES,
        mode=1,
        cores=14,
        megabytes=125773,
    )
    machine.debs({"libnvinfer10": "10.16.2.10-1+cuda13.2"})
    machine.system_package("tensorrt", "10.16.2.10")
    _cuda(machine, "13.2.1", ("libcudart.so.13.2.75", "libcublas.so.13"), "libcudnn.so.9.20.0")
    machine.package("cuda-bindings", "13.5.0")
    machine.locked(972000, 2601000, gpu="gpu-gpc-0")
    return machine


def pc(root: Path, gpu: bool) -> Machine:
    """An x86 machine with onnxruntime for the processor, with or without a GPU and its driver."""
    machine = Machine(root, python="3.12.3", machine="x86_64", sees_system=False)
    machine.write("proc/cpuinfo", "".join(X86_CPU.format(i) for i in range(16)))
    machine.write("proc/sys/kernel/osrelease", "6.8.0-45-generic\n")
    machine.write("etc/os-release", 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 24.04.1 LTS"\n')
    machine.write("sys/class/dmi/id/sys_vendor", "Gigabyte\n")
    machine.write("sys/class/dmi/id/product_name", "B550\n")
    _memory(machine, 32014)
    machine.onnxruntime("onnxruntime", "1.31.1")
    if gpu:
        machine.write(
            "proc/driver/nvidia/version",
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.120  Fri Sep 13 10:10:01 2024\n",
        )
        card = "proc/driver/nvidia/gpus/0000:01:00.0/information"
        machine.write(card, "Model: \t\t NVIDIA GeForce RTX 3090\nIRQ: 100\n")
    return machine


def library(needs: Iterable[str], code: Iterable[int] = (), portable: Iterable[int] = ()) -> bytes:
    """A shared library that needs others, with CUDA code of compute capabilities (87 is 8.7)."""
    names = b"\0" + b"".join(name.encode() + b"\0" for name in needs)
    entries, at = [], 1
    for name in needs:
        entries.append((1, at))
        at += len(name) + 1
    header, base = 64 + 2 * 56, 0x1000
    entries += [(5, base + header), (0, 0)]
    dynamic = b"".join(struct.pack("<qQ", tag, value) for tag, value in entries)
    start = header + len(names)
    size = start + len(dynamic)
    segments = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 4096)
    segments += struct.pack(
        "<IIQQQQQQ", 2, 6, start, base + start, base + start, len(dynamic), len(dynamic), 8
    )
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    head = ident + struct.pack("<HHIQQQIHHHHHH", 3, 183, 1, 0, 64, 0, 0, 64, 56, 2, 64, 0, 0)
    kinds = [(2, c) for c in code] + [(1, c) for c in portable]
    fat = b"".join(
        struct.pack("<HHIQ", kind, 0x101, 64, 8) + bytes(12) + struct.pack("<I", capability)
        + bytes(32) + b"\xff" * 8
        for kind, capability in kinds
    )  # fmt: skip
    fat = b"\x50\xed\x55\xba" + struct.pack("<HHQ", 1, 16, len(fat)) + fat if kinds else b""
    # The magic number alone, as it may occur by chance, has to be passed over.
    return head + segments + names + dynamic + b"\x50\xed\x55\xba" + bytes(3) + fat


def _jetson(
    machine: Machine,
    *,
    model: str,
    chip: str,
    release: tuple[str, str],
    modes: str,
    mode: int,
    cores: int,
    megabytes: int,
) -> Machine:
    major, revision = release
    six = major == "36"
    part, driver = ("0xd42", "540.4.0") if six else ("0xd83", "595.58")
    machine.write(
        "proc/driver/nvidia/version",
        f"NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  {driver}  Release Build\n",
    )
    machine.write(
        "etc/nv_tegra_release",
        f"# R{major} (release), REVISION: {revision}, GCID: 38968081, BOARD: generic, "
        "EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025\n# KERNEL_VARIANT: oot\n",
    )
    machine.write("proc/device-tree/model", f"{model}\0")
    machine.write("proc/device-tree/compatible", f"nvidia,p3768-0000+p3767\0nvidia,{chip}\0")
    machine.write("proc/cpuinfo", "".join(ARM_CPU.format(i, part=part) for i in range(cores)))
    machine.write("proc/sys/kernel/osrelease", "5.15.148-tegra\n" if six else "6.8.12-tegra\n")
    name = "22.04.5" if six else "24.04.4"
    machine.write("etc/os-release", f'PRETTY_NAME="Ubuntu {name} LTS"\n')
    machine.write("etc/nvpmodel.conf", modes)
    machine.write("var/lib/nvpmodel/status", f"pmode:{mode:04d}")
    _memory(machine, megabytes)
    machine.package("edgespec", "0.1.0", ["numpy>=1.23", 'onnxruntime>=1.23; extra == "ort"'])
    machine.package("numpy", "2.2.6")
    return machine


def _memory(machine: Machine, megabytes: int) -> None:
    kilobytes = {"MemTotal": megabytes << 10, "MemAvailable": megabytes << 9}
    rows = [f"{name}:{value:>12} kB" for name, value in kilobytes.items()]
    machine.write("proc/meminfo", "\n".join([*rows, "SwapTotal: 0 kB", "SwapFree: 0 kB"]) + "\n")


def _cuda(machine: Machine, version: str, libraries: Iterable[str], cudnn: str) -> None:
    machine.write(
        "usr/local/cuda/version.json", f'{{"cuda": {{"name": "CUDA SDK", "version": "{version}"}}}}'
    )
    for name in libraries:
        machine.write(f"usr/local/cuda/lib64/{name}", b"")
        short = ".".join(name.split(".")[:3])  # libcudart.so.12
        machine.write(f"usr/local/cuda/lib64/{short}", b"")
    for name in (cudnn, "libcudnn.so.9"):
        machine.write(f"usr/lib/aarch64-linux-gnu/{name}", b"")


def _package(site: Path, name: str, version: str, requires: Iterable[str]) -> None:
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {item}" for item in requires]
    (folder / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")
