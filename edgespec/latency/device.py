"""The machine this runs on, read from the files Linux keeps about it; nothing is guessed."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from edgespec.latency.profile import Device

ROOT = Path("/")
# Where /proc/cpuinfo gives ARM's numbers instead of a name (implementer 0x41).
ARM_CORES = {
    "0xd03": "Cortex-A53",
    "0xd08": "Cortex-A72",
    "0xd0b": "Cortex-A76",
    "0xd42": "Cortex-A78AE",
    "0xd83": "Neoverse-V3AE",
}


def this_device(root: Path = ROOT) -> Device:
    """What can be read of this machine; "" or 0 where a file is absent or says nothing.

    ``root`` is where /proc, /sys, /etc and /var are looked for. ``cores`` are those this process
    may run on, ``power_mode`` is nvpmodel's on a Jetson and the frequency governor elsewhere.
    """
    processor = _processor(root)
    return Device(
        name=_text(root, "proc/device-tree/model") or processor or platform.machine(),
        processor=processor,
        cores=len(os.sched_getaffinity(0)),
        accelerator=_accelerator(root),
        memory_mb=_memory_mb(root),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        power_mode=_power_mode(root),
    )


def _text(root: Path, name: str) -> str:
    """A small file's text without the NULs that device trees end with; "" if unreadable."""
    try:
        raw = (root / name).read_bytes()
    except OSError:
        return ""
    return raw.decode("utf-8", "replace").strip("\0 \n\t")


def _field(text: str, name: str) -> str:
    """The value of the first ``name : value`` line, or ""."""
    found = re.search(rf"^{re.escape(name)}[ \t]*:[ \t]*(.*)$", text, re.MULTILINE)
    return found.group(1).strip() if found else ""


def _processor(root: Path) -> str:
    text = _text(root, "proc/cpuinfo")
    named = _field(text, "model name") or _field(text, "Model")
    part, implementer = _field(text, "CPU part"), _field(text, "CPU implementer")
    if named or not part:
        return named
    known = ARM_CORES.get(part) if implementer == "0x41" else None
    return known or f"implementer {implementer} part {part}"


def _accelerator(root: Path) -> str:
    """A discrete GPU by the driver's name for it, a Jetson's by its chip."""
    try:
        cards = sorted((root / "proc/driver/nvidia/gpus").iterdir())
    except OSError:
        cards = []
    for card in cards:
        name = _field(_text(card, "information"), "Model")
        if name:
            return name
    chips = re.findall(r"nvidia,(tegra\d+)", _text(root, "proc/device-tree/compatible"))
    return str(chips[-1]) if chips else ""


def _memory_mb(root: Path) -> int:
    kilobytes = re.match(r"(\d+) kB", _field(_text(root, "proc/meminfo"), "MemTotal"))
    return int(kilobytes.group(1)) // 1024 if kilobytes else 0


def _power_mode(root: Path) -> str:
    mode = re.search(r"pmode:(\d+)", _text(root, "var/lib/nvpmodel/status"))
    if mode is None:
        return _text(root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    number = int(mode.group(1))
    models = re.findall(
        r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", _text(root, "etc/nvpmodel.conf")
    )
    return next((name for given, name in models if int(given) == number), f"nvpmodel {number}")
