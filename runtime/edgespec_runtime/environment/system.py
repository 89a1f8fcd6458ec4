"""Operating system, board, processor, memory and swap, as Linux's own files have them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgespec.latency import this_device
from edgespec_runtime.environment.place import Place


@dataclass(frozen=True)
class System:
    """What the machine is; "" or 0 where nothing tells."""

    os: str
    kernel: str
    machine: str
    model: str
    """Of the board or the computer."""
    processor: str
    cores: int
    """Those switched on."""


@dataclass(frozen=True)
class Swap:
    """One place that memory is swapped to."""

    name: str
    megabytes: int

    @property
    def compressed(self) -> bool:
        """Whether it is memory itself (zram), not a disk."""
        return "zram" in self.name


@dataclass(frozen=True)
class Memory:
    """Megabytes of 2**20 bytes; on a Jetson the GPU's too."""

    total_mb: int
    available_mb: int
    swap_mb: int
    swap_free_mb: int
    swaps: tuple[Swap, ...]


def system_of(place: Place) -> System:
    release = re.search(r'^PRETTY_NAME="?([^"\n]*)', place.text("etc/os-release"), re.MULTILINE)
    cores = re.findall(r"^processor\s*:", place.text("proc/cpuinfo"), re.MULTILINE)
    device = this_device(place.root)
    maker = place.text("sys/class/dmi/id/sys_vendor")
    product = place.text("sys/class/dmi/id/product_name")
    return System(
        os=release.group(1) if release else "",
        kernel=place.text("proc/sys/kernel/osrelease"),
        machine=place.machine,
        model=place.text("proc/device-tree/model") or f"{maker} {product}".strip(),
        processor=device.processor,
        cores=len(cores),
    )


def memory_of(place: Place) -> Memory:
    sizes = {
        name: int(kilobytes) // 1024
        for name, kilobytes in re.findall(
            r"^(\w+):\s+(\d+) kB$", place.text("proc/meminfo"), re.MULTILINE
        )
    }
    rows = [line.split() for line in place.text("proc/swaps").splitlines()[1:]]
    return Memory(
        total_mb=sizes.get("MemTotal", 0),
        available_mb=sizes.get("MemAvailable", 0),
        swap_mb=sizes.get("SwapTotal", 0),
        swap_free_mb=sizes.get("SwapFree", 0),
        swaps=tuple(Swap(row[0], int(row[2]) // 1024) for row in rows if len(row) > 2),
    )
