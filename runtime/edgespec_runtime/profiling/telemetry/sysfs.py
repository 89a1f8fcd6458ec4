"""The kernel's own files, read by nobody else's library.

Every path is looked for once, when a ``SysfsReader`` is made; a reading then opens only what was
there. What is absent stays absent and what cannot be read this time is left out of the reading: a
gated GPU's thermal zone, for one, refuses to be read until it wakes.

Sources: the kernel's hwmon, powercap, thermal, cpufreq and devfreq ABI documents; NVIDIA's Jetson
Linux developer guide for the INA3221 rails and the over-current counters.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgespec_runtime.profiling.telemetry.reading import Reading, is_temperature, total_watts

MOST_CPUS = 16
"""Clock domains that are read; reading hundreds would be felt."""
GPUS = re.compile(r"gpu|g[pvam]\d+b|mali", re.IGNORECASE)
PI_NOW = {0: "undervoltage", 1: "clock capped", 2: "throttled", 3: "soft temperature limit"}
"""Bits of Raspberry Pi's ``get_throttled`` that speak of this moment."""


@dataclass(frozen=True)
class Gauge:
    """A file with one number, or two whose product counts."""

    paths: tuple[Path, ...]
    scale: float

    def read(self) -> float | None:
        product = self.scale
        for path in self.paths:
            value = number(path)
            if value is None:
                return None
            product *= value
        return product


class SysfsReader:
    """Readings from below ``root`` (tests give a tree of recorded files)."""

    def __init__(self, root: Path = Path("/")) -> None:
        system = root / "sys"
        self._memory = root / "proc" / "meminfo"
        self._rails = dict(_rails(system))
        self._energy = dict(_energy(system))
        self._sensors = dict(_sensors(system))
        self._clocks = dict(_clocks(system, "scaling_cur_freq", "cur_freq"))
        self._ceilings = dict(_clocks(system, "scaling_max_freq", "max_freq"))
        self._floors = dict(_clocks(system, "scaling_min_freq", "min_freq"))
        self._load = next(_loads(system), None)
        self._counts = dict(_throttle_counts(system))
        self._alarms = dict(_alarms(system))
        self._pi = system / "devices/platform/soc/soc:firmware/get_throttled"
        self.energy_ranges: Mapping[str, float] = _read(
            dict(_energy(system, "max_energy_range_uj"))
        )
        """Joules at which each counter starts again from 0."""

    def read(self, rails: bool = True) -> Reading:
        """Everything now; without the power rails where they come from elsewhere."""
        celsius = _read(self._sensors)
        watts = _read(self._rails) if rails else {}
        return Reading(
            time_s=time.monotonic(),
            watts=watts,
            total_w=total_watts(watts),
            celsius={name: c for name, c in celsius.items() if is_temperature(name, c)},
            clocks_mhz=_read(self._clocks),
            gpu_percent=self._load.read() if self._load else None,
            ram_mb=_memory_used(self._memory),
            joules=_read(self._energy),
            throttle_counts={name: int(n) for name, n in _read(self._counts).items()},
            alerts=frozenset(name for name, n in _read(self._alarms).items() if n > 0)
            | _pi_alerts(self._pi),
        )

    def ceilings_mhz(self) -> dict[str, float]:
        """The highest clocks allowed now, by the power mode, by hand or by the thermal governor."""
        return _read(self._ceilings)

    def floors_mhz(self) -> dict[str, float]:
        """The lowest clocks allowed now."""
        return _read(self._floors)


def text(path: Path) -> str | None:
    """A file's text, or None where there is none that can be read."""
    try:
        with open(path, "rb", buffering=0) as file:  # a third of the time of read_text
            return file.read().decode("utf-8", "replace").strip("\0 \t\r\n")
    except OSError:
        return None


def number(path: Path) -> float | None:
    """A file's one number, or None."""
    content = text(path)
    try:
        return float(content) if content else None
    except ValueError:
        return None


def _read(gauges: Mapping[str, Gauge]) -> dict[str, float]:
    values = {name: gauge.read() for name, gauge in gauges.items()}
    return {name: value for name, value in values.items() if value is not None}


def _found(folder: Path, pattern: str) -> list[Path]:
    """Matches in order of their numbers: zone 2 before zone 10."""
    matches = folder.glob(pattern)
    return sorted(matches, key=lambda p: [(len(s), s) for s in re.split(r"(\d+)", str(p))])


def _unique(name: str, taken: set[str]) -> str:
    """``name``, or with a number behind it: two sensors may have one name. Notes what it gave."""
    count = 1
    candidate = name
    while candidate in taken:
        count += 1
        candidate = f"{name} {count}"
    taken.add(candidate)
    return candidate


def _rails(system: Path) -> Iterator[tuple[str, Gauge]]:
    """Watts: of INA monitors by rail, of other chips by chip and channel."""
    others: set[str] = set()
    chips = _found(system, "class/hwmon/hwmon*")
    chips += _found(system, "bus/i2c/drivers/ina3221/*/hwmon/hwmon*")
    for chip in chips:
        name = text(chip / "name") or chip.name
        if name.startswith("ina"):
            yield from _ina_rails(chip)
            continue
        for path in _found(chip, "power*_input"):
            label = text(chip / path.name.replace("_input", "_label")) or ""
            yield _unique(f"{name} {label}".strip(), others), Gauge((path,), 1e-6)
    for device in _found(system, "bus/i2c/drivers/ina3221x/*/iio*"):  # JetPack 4
        for path in _found(device, "rail_name_*"):
            rail, power = text(path), device / f"in_power{path.name[len('rail_name_') :]}_input"
            if _connected(rail) and power.is_file():
                yield str(rail), Gauge((power,), 1e-3)


def _ina_rails(chip: Path) -> Iterator[tuple[str, Gauge]]:
    """Channels with a name and a current: the power they state in microwatts (INA238), else
    millivolts times milliamperes (INA3221). What is left are shunts and their sum."""
    own = text(chip / "label")
    for amperes in _found(chip, "curr*_input"):
        index = amperes.name[len("curr") : -len("_input")]
        rail = text(chip / f"in{index}_label") or (own if index == "1" else None)
        volts, watts = chip / f"in{index}_input", chip / f"power{index}_input"
        if _connected(rail) and watts.is_file():
            yield str(rail), Gauge((watts,), 1e-6)
        elif _connected(rail) and volts.is_file():
            yield str(rail), Gauge((volts, amperes), 1e-6)


def _connected(rail: str | None) -> bool:
    return bool(rail) and rail != "NC"


def _energy(system: Path, file: str = "energy_uj") -> Iterator[tuple[str, Gauge]]:
    """Joules by RAPL domain: "package-0", "package-0 core". Only root may read it on many systems.
    AMD's processors appear below the same name."""
    zones = _found(system, "class/powercap/intel-rapl:*")
    names = {zone.name: text(zone / "name") or zone.name for zone in zones}
    for zone in zones:
        parent = names.get(zone.name.rpartition(":")[0])
        name = f"{parent} {names[zone.name]}" if parent else names[zone.name]
        yield name, Gauge((zone / file,), 1e-6)


def _sensors(system: Path) -> Iterator[tuple[str, Gauge]]:
    """Degrees by thermal zone, and by hwmon chip where no zone mirrors it; no single cores."""
    taken: set[str] = set()
    for zone in _found(system, "class/thermal/thermal_zone*"):
        kind = text(zone / "type") or zone.name
        yield _unique(_bare(kind), taken), Gauge((zone / "temp",), 1e-3)
    zones = frozenset(taken)
    for path in _found(system, "class/hwmon/hwmon*/temp*_input"):
        chip = text(path.parent / "name") or path.parent.name
        label = text(path.parent / path.name.replace("_input", "_label")) or ""
        if _bare(chip) not in zones and not label.startswith("Core "):
            yield _unique(f"{chip} {label}".strip(), taken), Gauge((path,), 1e-3)


def _bare(sensor: str) -> str:
    """The sensor of a zone: cpu of cpu-thermal, as tegrastats has it; mirrors say cpu_thermal."""
    return re.sub(r"[-_]therm(al)?$", "", sensor, flags=re.IGNORECASE)


def _clocks(system: Path, cpu_file: str, gpu_file: str) -> Iterator[tuple[str, Gauge]]:
    """MHz: of every cpufreq policy by its first core, and of the GPU."""
    for policy in _found(system, "devices/system/cpu/cpufreq/policy*")[:MOST_CPUS]:
        if (policy / cpu_file).is_file():
            yield f"cpu{policy.name[len('policy') :]}", Gauge((policy / cpu_file,), 1e-3)
    gpus = _gpus(system)
    for gpu in gpus:
        if (gpu / gpu_file).is_file():
            yield "gpu" if len(gpus) == 1 else gpu.name, Gauge((gpu / gpu_file,), 1e-6)


def _gpus(system: Path) -> list[Path]:
    return [gpu for gpu in _found(system, "class/devfreq/*") if GPUS.search(gpu.name)]


def _loads(system: Path) -> Iterator[Gauge]:
    """GPU load in percent: Jetson counts in thousandths, amdgpu in hundredths."""
    jetson = [gpu / "device/load" for gpu in _gpus(system)]
    jetson += [system / "devices/gpu.0/load", system / "devices/platform/gpu.0/load"]
    yield from (Gauge((path,), 0.1) for path in jetson if path.is_file())
    for path in _found(system, "class/drm/card*/device/gpu_busy_percent"):
        yield Gauge((path,), 1.0)


def _throttle_counts(system: Path) -> Iterator[tuple[str, Gauge]]:
    """Jetson's under-voltage (oc1) and over-current (oc2 mean, oc3 momentary) events; x86's
    thermal throttling of the package."""
    for path in _found(system, "class/hwmon/hwmon*/oc*_event_cnt"):
        yield path.name[: -len("_event_cnt")], Gauge((path,), 1.0)
    path = system / "devices/system/cpu/cpu0/thermal_throttle/package_throttle_count"
    if path.is_file():
        yield "package throttling", Gauge((path,), 1.0)


def _alarms(system: Path) -> Iterator[tuple[str, Gauge]]:
    """Jetson's cooling devices that stand above 0 while a unit is throttled."""
    for device in _found(system, "class/thermal/cooling_device*"):
        kind = text(device / "type") or ""
        if kind.endswith("-throttle-alert"):
            yield kind, Gauge((device / "cur_state",), 1.0)


def _pi_alerts(path: Path) -> frozenset[str]:
    try:
        bits = int(text(path) or "0", 16)
    except ValueError:
        return frozenset()
    return frozenset(word for bit, word in PI_NOW.items() if bits >> bit & 1)


def _memory_used(path: Path) -> float | None:
    """Megabytes in use: all memory less what could be had."""
    content = text(path) or ""
    found = dict(re.findall(r"^(MemTotal|MemAvailable):\s+(\d+) kB$", content, re.MULTILINE))
    if len(found) != 2:
        return None
    return (int(found["MemTotal"]) - int(found["MemAvailable"])) / 1024
