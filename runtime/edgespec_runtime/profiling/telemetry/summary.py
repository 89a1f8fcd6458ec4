"""Readings to figures: what a profile keeps of them, in plain containers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from edgespec_runtime.profiling.telemetry.reading import Reading, total_rails

SHORTEST_S = 0.05
"""Between two counter values whose difference is called a power."""
FEWEST = 8
"""Samples before a falling clock is spoken of."""
FALL = 0.9
"""The last quarter's mean clock against the first's."""


def summarise(
    readings: Sequence[Reading],
    energy_ranges: Mapping[str, float] | None = None,
    ceilings_mhz: tuple[Mapping[str, float], Mapping[str, float]] = ({}, {}),
) -> dict[str, Any] | None:
    """Mean and maximum of everything read; None where the platform told nothing.

    ``readings`` are in order of time; ``energy_ranges`` say where counters start again, joules;
    ``ceilings_mhz`` are the highest allowed clocks before and after. Keys, each left out where
    there is nothing to say: samples, seconds, power_mode, watts {rail, or "total": mean, max},
    total_is (what the total covers), joules (by counters, of the same total), celsius, clocks_mhz
    {mean, min, max}, gpu_percent, ram_mb, throttling (hints in words; [] if there are none).
    """
    told = [reading for reading in readings if reading.tells]
    if not told:
        return None
    watts, total_is, joules = _power(told, energy_ranges or {})
    figures: dict[str, Any] = {
        "samples": len(told),
        "seconds": round(told[-1].time_s - told[0].time_s, 3),
        "power_mode": next((r.power_mode for r in reversed(told) if r.power_mode), ""),
        "watts": watts,
        "total_is": total_is,
        "joules": joules,
        "celsius": _each(told, lambda r: r.celsius),
        "clocks_mhz": _each(told, lambda r: r.clocks_mhz, lowest=True),
        "gpu_percent": _figures([r.gpu_percent for r in told if r.gpu_percent is not None]),
        "ram_mb": _figures([r.ram_mb for r in told if r.ram_mb is not None]),
    }
    kept = {name: value for name, value in figures.items() if value not in ("", None, {})}
    return {**kept, "throttling": throttling(told, *ceilings_mhz)}


def throttling(
    readings: Sequence[Reading],
    before_mhz: Mapping[str, float],
    after_mhz: Mapping[str, float],
) -> list[str]:
    """Hints that the machine held itself back, in words: events counted, alerts, lowered ceilings,
    clocks that fell. The last is weak: a clock also falls where there is less to do."""
    hints = []
    for name in sorted(readings[0].throttle_counts):
        events = readings[-1].throttle_counts.get(name, 0) - readings[0].throttle_counts[name]
        if events > 0:
            hints.append(f"{name}: {events} event{'s' if events > 1 else ''}")
    for name in sorted(frozenset().union(*(r.alerts for r in readings))):
        count = sum(name in r.alerts for r in readings)
        hints.append(f"{name}: in {count} of {len(readings)} samples")
    for name, ceiling in before_mhz.items():
        if after_mhz.get(name, ceiling) < ceiling:
            hints.append(f"{name}: ceiling lowered from {ceiling:.0f} to {after_mhz[name]:.0f} MHz")
    hints += [
        f"{unit}: clock fell from {first:.0f} to {last:.0f} MHz"
        for unit, first, last in _falls(readings)
    ]
    return hints


def _falls(readings: Sequence[Reading]) -> list[tuple[str, float, float]]:
    """The fastest core's clock and the GPU's, where the last quarter is well below the first."""
    falls = []
    for unit in ("cpu", "gpu"):
        clocks = [
            max(mhz for name, mhz in r.clocks_mhz.items() if name.startswith(unit))
            for r in readings
            if any(name.startswith(unit) for name in r.clocks_mhz)
        ]
        quarter = len(clocks) // 4
        if len(clocks) >= FEWEST:
            first, last = _mean(clocks[:quarter]), _mean(clocks[-quarter:])
            if last < FALL * first:
                falls.append((unit, first, last))
    return falls


def _power(
    readings: Sequence[Reading], ranges: Mapping[str, float]
) -> tuple[dict[str, dict[str, float]], str, float | None]:
    """Watts by rail and of the whole, what the whole is, and its joules by counters."""
    watts = _each(readings, lambda r: r.watts)
    total = _figures([r.total_w for r in readings if r.total_w is not None])
    total_is = " + ".join(total_rails(watts)) if total else ""
    joules = None
    used = {name: _used(readings, name, ranges.get(name)) for name in readings[0].joules}
    seconds = readings[-1].time_s - readings[0].time_s
    for name, steps in used.items():
        if steps and seconds >= SHORTEST_S:
            highest = max(_rate(step) for step in steps)
            watts[name] = _rounded({"mean": sum(j for j, _ in steps) / seconds, "max": highest})
    counters = [name for name in total_counters(used) if name in watts]
    if counters and not total:
        joules = round(sum(joule for name in counters for joule, _ in used[name]), 3)
        each = zip(*(used[name] for name in counters), strict=False)
        highest = max(sum(_rate(step) for step in steps) for steps in each)
        total = _rounded({"mean": joules / seconds, "max": highest})
        total_is = " + ".join(counters)
    return {**({"total": total} if total else {}), **watts}, total_is, joules


def total_counters(names: Mapping[str, object]) -> tuple[str, ...]:
    """The energy counters whose sum is the most that is counted: the platform's, else the
    processor packages with their memory, which leaves out everything else on the board."""
    if "psys" in names:
        return ("psys",)
    return tuple(name for name in names if re.fullmatch(r"package-\d+( dram)?", name))


def _used(readings: Sequence[Reading], name: str, limit: float | None) -> list[tuple[float, float]]:
    """(joules, seconds) between successive values of a counter; a fall is its starting again."""
    steps = []
    values = [(r.time_s, r.joules[name]) for r in readings if name in r.joules]
    for (before_s, before), (after_s, after) in pairwise(values):
        joules = after - before
        if joules < 0 and limit:
            joules += limit
        if joules >= 0:
            steps.append((joules, after_s - before_s))
    return steps


def _rate(step: tuple[float, float]) -> float:
    """Watts; 0 over a time too short to tell."""
    joules, seconds = step
    return joules / seconds if seconds >= SHORTEST_S else 0.0


def _each(
    readings: Sequence[Reading],
    kind: Callable[[Reading], Mapping[str, float]],
    lowest: bool = False,
) -> dict[str, dict[str, float]]:
    values: dict[str, list[float]] = {}
    for reading in readings:
        for name, value in kind(reading).items():
            values.setdefault(name, []).append(value)
    return {name: _figures(found, lowest) for name, found in values.items()}


def _figures(values: Sequence[float], lowest: bool = False) -> dict[str, float]:
    if not values:
        return {}
    least = {"min": min(values)} if lowest else {}
    return _rounded({"mean": _mean(values), **least, "max": max(values)})


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in figures.items()}
