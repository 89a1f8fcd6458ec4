"""JetPack, Jetson Linux and the power modes of a Jetson."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgespec.nvidia import l4t_release
from edgespec_runtime.environment.place import Place
from edgespec_runtime.profiling.telemetry.powermode import mode_names, power_mode, saved_mode

# NVIDIA's release pages: developer.nvidia.com/embedded/jetpack/downloads and its archive.
JETPACKS = {
    "R36.2": "6.0 DP",
    "R36.3": "6.0",
    "R36.4.0": "6.1",
    "R36.4.3": "6.2",
    "R36.4.4": "6.2.1",
    "R36.5": "6.2.2",
    "R38.2": "7.0",
    "R38.4": "7.1",
    "R39.2.0": "7.2",
    "R39.2.1": "7.2.1",
}


@dataclass(frozen=True)
class Jetson:
    """What runs on a Jetson; "" where nothing tells."""

    l4t: str
    """Release of Jetson Linux: "R36.4.3"."""
    jetpack: str
    """Release of JetPack: of its package if it is installed, else as that Jetson Linux has it."""
    power_mode: str
    power_modes: dict[int, str]
    """Names by number, as nvpmodel takes it."""

    @property
    def generation(self) -> int:
        """6 or 7: whose Python, CUDA and TensorRT it has."""
        number = self.l4t.removeprefix("R").split(".")[0]
        return 6 if number.isdigit() and int(number) < 38 else 7

    @property
    def fastest_mode(self) -> int | None:
        """Number of the mode with the highest clocks: MAXN_SUPER, MAXN, else by its watts."""
        return max(self.power_modes, key=lambda n: _speed(self.power_modes[n]), default=None)


def jetson_of(place: Place, debs: dict[str, str]) -> Jetson | None:
    """None on other machines. ``debs`` are the installed Debian packages, versions by name."""
    l4t = l4t_release(place.root / "etc/nv_tegra_release")
    if l4t is None:
        return None
    package = re.match(r"\d+(\.\d+)+", debs.get("nvidia-jetpack", ""))
    return Jetson(
        l4t=l4t,
        jetpack=package.group() if package else _jetpack(l4t),
        power_mode=power_mode(place.root) if place.live else saved_mode(place.root),
        power_modes=mode_names(place.text("etc/nvpmodel.conf")),
    )


def _jetpack(l4t: str) -> str:
    """Of the longest release that this one begins with."""
    known = (name for name in JETPACKS if f"{l4t}.".startswith(f"{name}."))
    return JETPACKS.get(max(known, key=len, default=""), "")


def _speed(mode: str) -> tuple[bool, bool, int]:
    watts = re.search(r"(\d+)\s*W", mode, re.IGNORECASE)
    upper = mode.upper()
    return "MAXN" in upper, "SUPER" in upper, int(watts.group(1)) if watts else 0
