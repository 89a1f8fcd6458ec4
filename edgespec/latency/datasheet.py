"""Datasheet files: what a device's documents say of it, and what is assumed on top."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from edgespec.errors import ConfigError
from edgespec.flavour import PRECISIONS
from edgespec.latency.files import check_version, containers, read_text
from edgespec.latency.strict import read

KIND = "datasheet"
HERE = Path(__file__).resolve().parent
PLACES = (HERE.parent / "devices", HERE.parent.parent / "configs" / "devices")
"""Where device files lie: inside an installed package, and in a checkout."""


@dataclass(frozen=True)
class PowerMode:
    """Peak figures in one power mode."""

    name: str
    bandwidth_gb_s: float
    """Memory bandwidth in 10**9 bytes a second."""
    gflops: dict[str, float]
    """Dense arithmetic rate by precision of the graph: "fp32", "fp16"."""


@dataclass(frozen=True)
class Achieved:
    """Which part of the peak kernels are taken to reach."""

    bandwidth: float
    rate: float

    def __post_init__(self) -> None:
        for name in ("bandwidth", "rate"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; a part of the peak is in (0, 1]"
                )


@dataclass(frozen=True)
class Overhead:
    """What a call costs however small its graph is."""

    call_ms: float
    """Of one engine call: Python, binding, copies, synchronising."""
    layer_ms: float
    """Of one decoder or encoder layer: launching its kernels or operators."""


@dataclass(frozen=True)
class Host:
    """Python around the engine; see ``Costs`` for where each is paid."""

    round_ms: float
    token_ms: float
    commit_ms: float
    pick_ms_per_1k: float
    """Of one draw at temperature > 0, for every 1,000 tokens of the vocabulary."""


@dataclass(frozen=True)
class Software:
    """One release of the system that a device runs; "" where no source confirms a version."""

    name: str
    """As its maker calls it: "JetPack 6.2"."""
    python: str
    cuda: str
    tensorrt: str


@dataclass(frozen=True)
class Datasheet:
    """A device as its documents describe it. Raises ValueError for modes that do not fit."""

    kind: str
    name: str
    title: str
    processor: str
    cores: int
    accelerator: str
    memory_mb: int
    usable_mb: int
    """Left for this process by system and display."""
    provider: str
    """Execution provider the figures are for."""
    default_mode: str
    modes: tuple[PowerMode, ...]
    achieved: Achieved
    overlap: bool
    """Whether reading weights hides behind arithmetic (the longer counts) or adds to it."""
    overhead: Overhead
    host: Host
    tile: dict[str, int]
    """Rows that a kernel computes at once, by precision: fewer cost as much."""
    base_mb: float
    """Resident memory of interpreter and engine without a model."""
    sources: tuple[str, ...]
    assumptions: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    """Shorter names that stand for it."""
    compute_capability: str = ""
    """Of the GPU: "8.7"; "" without one."""
    precisions: tuple[str, ...] = ("fp32", "fp16")
    """In which its engines take graphs; see ``edgespec export --precision``."""
    software: tuple[Software, ...] = ()
    """The releases it runs, oldest first; empty where the user chooses."""

    def __post_init__(self) -> None:
        names = [mode.name for mode in self.modes]
        if self.kind != KIND:
            raise ValueError(f"kind is '{self.kind}', not '{KIND}'")
        if self.default_mode not in names:
            raise ValueError(f"default_mode '{self.default_mode}' is none of {', '.join(names)}")
        if not re.fullmatch(r"(\d+\.\d+)?", self.compute_capability):
            raise ValueError(f"compute_capability is '{self.compute_capability}', not as in '8.7'")
        if bool(self.accelerator) != bool(self.compute_capability):
            raise ValueError("accelerator and compute_capability come together or not at all")
        unknown = [name for name in self.precisions if name not in PRECISIONS]
        if unknown or not self.precisions:
            raise ValueError(f"precisions is {unknown}; it lists some of {', '.join(PRECISIONS)}")
        for mode in self.modes:
            rates = (mode.bandwidth_gb_s, *mode.gflops.values())
            if not all(rates) or set(mode.gflops) != set(self.tile) or 0 in self.tile.values():
                raise ValueError(
                    f"mode {mode.name} needs a bandwidth, and a rate and a tile above 0 for the "
                    "same precisions"
                )

    def mode(self, name: str = "") -> PowerMode:
        """A power mode by name, the default one for "". Raises ConfigError with those there are."""
        wanted = name or self.default_mode
        for mode in self.modes:
            if mode.name.lower() == wanted.lower():
                return mode
        raise ConfigError(
            f"device '{self.name}' has no power mode '{wanted}'; "
            f"there are: {', '.join(mode.name for mode in self.modes)}"
        )


def load_estimate(path: str | Path) -> Datasheet:
    """The datasheet in a file. Raises ConfigError saying where what was found, and what to do."""
    where = f"device file '{path}'"
    return datasheet_from_plain(containers(read_text(path), where), where)


def datasheet_from_plain(values: dict[str, Any], where: str) -> Datasheet:
    """A datasheet from a file's content. Raises ConfigError."""
    check_version(values, where)
    return read(Datasheet, {k: v for k, v in values.items() if k != "version"}, where)


def device_files(places: Iterable[Path] = PLACES) -> dict[str, Path]:
    """The device files that come with edgespec, by name."""
    found = [path for place in places for path in sorted(place.glob("*.yaml"))]
    return {path.stem: path for path in reversed(found)}


def find_device(name: str) -> Path:
    """The file of a device by its bare name or an alias. Raises ConfigError listing those there
    are."""
    files = device_files()
    if name in files:
        return files[name]
    aliases = _aliases(files)
    if name in aliases:
        return files[aliases[name]]
    near = get_close_matches(name, [*files, *aliases], n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ConfigError(
        f"'{name}' is neither a profile file nor a known device; devices: "
        f"{', '.join(sorted(files)) or 'none installed'}.{hint} "
        "Measure this one with: edgespec profile --bundle ... --out profile.yaml"
    )


def _aliases(files: Mapping[str, Path]) -> dict[str, str]:
    """Devices' names by the shorter ones."""
    return {
        alias: name for name, path in sorted(files.items()) for alias in load_estimate(path).aliases
    }
