"""Whether a device has room: its memory, and what a precision needs of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgespec.latency.datasheet import Datasheet
from edgespec.planning.demand import BLOCK, Item, Setting, demand, total
from edgespec.planning.inventory import Inventory
from edgespec.planning.weights import ON_CPU, ON_GPU, PRECISIONS

MB = 2**20
CLOSE = 0.9
"""Part of the memory from which on a fit is called tight: estimates are not that exact."""
FITS, TIGHT, NOT = "fits", "tight", "no"
CPU = "CPUExecutionProvider"


@dataclass(frozen=True)
class Device:
    """What a plan must know of a device; megabytes of 2**20 bytes."""

    name: str
    usable_mb: float
    base_mb: float
    precisions: tuple[str, ...]
    gpu: bool
    builds: bool
    """Whether engines are built in the memory that they run in: so on a Jetson. A card of its own
    leaves most of building to its host, of which device files say nothing."""

    @property
    def lowering(self) -> str:
        """Whose operators are for its engines."""
        return ON_GPU if self.gpu else ON_CPU

    def verdict(self, needed_mb: float) -> str:
        """FITS, TIGHT or NOT."""
        if needed_mb > self.usable_mb:
            return NOT
        return TIGHT if needed_mb > CLOSE * self.usable_mb else FITS


@dataclass(frozen=True)
class Row:
    """One precision."""

    precision: str
    exported: bool
    """Whether its weights were counted in a bundle's files, not computed."""
    needed_mb: dict[int, float]
    """By context."""
    verdicts: dict[int, str]
    files_mb: float
    """Of graphs and token tables, to be copied to the device."""
    items: tuple[Item, ...]
    """At the context that was asked for."""
    largest_context: int
    """That still fits, tightly or not; 0 where none does."""
    build_mb: tuple[float, float] | None
    """Of building its engines, between the least and the most that is assumed; None without."""
    build: str
    """FITS, TIGHT or NOT; "" where nothing is built."""


def device_of(sheet: Datasheet, usable_mb: float | None = None) -> Device:
    """A device by its file; ``usable_mb``: what is free there, if somebody looked."""
    return Device(
        name=sheet.name,
        usable_mb=float(sheet.usable_mb if usable_mb is None else usable_mb),
        base_mb=sheet.base_mb,
        precisions=tuple(name for name in PRECISIONS if name in sheet.precisions),
        gpu=sheet.provider != CPU,
        builds=sheet.accelerator.startswith("tegra"),
    )


def needed_mb(inventory: Inventory, device: Device, setting: Setting) -> float:
    """Interpreter and engine included."""
    return device.base_mb + total(demand(inventory, setting)) / MB


def largest_context(inventory: Inventory, device: Device, setting: Setting) -> int:
    """The most tokens that fit, the model's own limit or whole blocks of rows; 0 for none."""

    def fits(tokens: int) -> bool:
        return device.verdict(needed_mb(inventory, device, replace(setting, context=tokens))) != NOT

    most = inventory.max_positions
    if fits(most):
        return most
    low, high = 0, most // BLOCK + 1  # blocks: low fits, high does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * BLOCK) else (low, middle)
    return low * BLOCK
