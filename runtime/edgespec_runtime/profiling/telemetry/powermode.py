"""Which power mode the machine is in: a name, or nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from edgespec_runtime.profiling.telemetry.sysfs import text

PATIENCE_S = 5.0


def power_mode(root: Path = Path("/")) -> str:
    """Jetson: ``nvpmodel -q``'s answer, or its state file's if it will not answer (it wants root on
    some releases). Elsewhere the platform profile or the cpufreq governor. "" where none tells."""
    return (
        parse_nvpmodel(_ask_nvpmodel())
        or saved_mode(root)
        or _named("platform profile", root / "sys/firmware/acpi/platform_profile")
        or _named("governor", root / "sys/devices/system/cpu/cpufreq/policy0/scaling_governor")
    )


def parse_nvpmodel(answer: str) -> str:
    """The mode's name in ``nvpmodel -q``'s answer, warnings and fan mode around it or not:

    NV Power Mode: MAXN_SUPER
    2
    """
    found = re.search(r"NV Power Mode:[ \t]*(\S[^\r\n]*)", answer)
    return found.group(1).strip() if found else ""


def mode_names(configuration: str) -> dict[int, str]:
    """Names by number in ``nvpmodel.conf``: ``< POWER_MODEL ID=0 NAME=MAXN >``, in either order."""
    names: dict[int, str] = {}
    for fields in re.findall(r"^[ \t]*<[ \t]*POWER_MODEL\b([^>\n]*)>", configuration, re.MULTILINE):
        number, name = re.search(r"\bID=(\d+)", fields), re.search(r"\bNAME=(\S+)", fields)
        if number and name:
            names[int(number.group(1))] = name.group(1)
    return names


def _ask_nvpmodel() -> str:
    program = shutil.which("nvpmodel")
    if program is None:
        return ""
    try:
        done = subprocess.run(
            [program, "-q"], capture_output=True, text=True, errors="replace", timeout=PATIENCE_S
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def saved_mode(root: Path) -> str:
    """The mode that nvpmodel last wrote down (``pmode:0002``), named by its configuration; "" where
    there is none."""
    found = re.search(r"pmode:(\d+)", text(root / "var/lib/nvpmodel/status") or "")
    if found is None:
        return ""
    mode = int(found.group(1))
    return mode_names(text(root / "etc/nvpmodel.conf") or "").get(mode, f"mode {mode}")


def _named(what: str, path: Path) -> str:
    content = text(path)
    return f"{what} {content}" if content else ""
