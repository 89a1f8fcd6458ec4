"""Whether clocks stand where they were set, or still move with the load."""

from __future__ import annotations

from dataclasses import dataclass

from edgespec_runtime.environment.place import Place
from edgespec_runtime.profiling.telemetry.sysfs import SysfsReader


@dataclass(frozen=True)
class Clock:
    """MHz of one core group or the GPU, as allowed now and as they are."""

    name: str
    lowest: float
    highest: float
    now: float | None

    @property
    def locked(self) -> bool:
        """As jetson_clocks leaves it: nothing below the highest is allowed."""
        return self.lowest >= self.highest


def clocks_of(place: Place) -> tuple[Clock, ...]:
    """Of everything that tells both limits, by name."""
    reader = SysfsReader(place.root)
    lowest, highest = reader.floors_mhz(), reader.ceilings_mhz()
    now = reader.read(rails=False).clocks_mhz
    names = sorted(lowest.keys() & highest.keys())
    return tuple(Clock(name, lowest[name], highest[name], now.get(name)) for name in names)
