"""One moment's telemetry, and which power rails make up the total."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

INPUTS = ("VIN", "VDD_IN", "POM_5V_IN")
"""Rails through which everything flows: Thor's carrier board; the modules of TX1, TX2, Xavier NX,
Orin NX and Orin Nano; Nano."""

PARALLEL = (
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
)
"""Modules without an input rail (AGX Orin, Thor, AGX Xavier): the supplies that feed them side by
side. AGX Orin's VDDQ_VDD2_1V8AO (memory) hangs below VIN_SYS_5V0 and would count twice."""


@dataclass(frozen=True)
class Reading:
    """What was told at one moment; empty or None where nothing was."""

    time_s: float
    """Of ``time.monotonic``."""
    watts: Mapping[str, float] = field(default_factory=dict)
    """By rail. A sensor's offset can make an idle rail negative; it is handed on as read."""
    total_w: float | None = None
    """See ``total_rails``."""
    celsius: Mapping[str, float] = field(default_factory=dict)
    clocks_mhz: Mapping[str, float] = field(default_factory=dict)
    """"cpu0" and so on, "gpu", "emc" (memory); 0 where a unit is gated."""
    gpu_percent: float | None = None
    """Load of the GPU."""
    ram_mb: float | None = None
    """In use by the whole system, megabytes of 2**20 bytes."""
    power_mode: str = ""
    joules: Mapping[str, float] = field(default_factory=dict)
    """Energy counters: only differences mean something."""
    throttle_counts: Mapping[str, int] = field(default_factory=dict)
    """Events since boot."""
    alerts: frozenset[str] = frozenset()
    """What reports itself throttled at this moment."""

    @property
    def tells(self) -> bool:
        """Whether there is anything about power, heat or clocks; memory alone does not count."""
        return bool(self.watts or self.joules or self.celsius or self.clocks_mhz) or (
            self.gpu_percent is not None
        )


def total_rails(watts: Mapping[str, object]) -> tuple[str, ...]:
    """The rails whose sum is the whole: an input rail if there is one, else all the supplies of a
    module known to have none. Empty where neither is complete: a part is never called the total."""
    for rail in INPUTS:
        if rail in watts:
            return (rail,)
    for rails in PARALLEL:
        if all(rail in watts for rail in rails):
            return rails
    return ()


def total_watts(watts: Mapping[str, float]) -> float | None:
    """Watts of the whole by ``total_rails``."""
    rails = total_rails(watts)
    return sum(watts[rail] for rail in rails) if rails else None


def is_temperature(name: str, celsius: float) -> bool:
    """Whether a sensor's figure is one. Jetson's PMIC sensor is a constant (100, on some modules
    50), and a sensor without power reads -256."""
    return not name.lower().startswith("pmic") and -60.0 <= celsius <= 150.0
