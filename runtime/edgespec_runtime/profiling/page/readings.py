"""The section about telemetry: what the platform told while the profile was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgespec_runtime.profiling.page.charts import Frame, Series, line_chart
from edgespec_runtime.profiling.page.markup import Markup, facts, figure, join, section, table, tag
from edgespec_runtime.profiling.telemetry.reading import Reading

SENSORS = 6
"""Lines in a chart over time."""
NAMES = {
    "total_is": "the total is",
    "watts": "power, W",
    "joules": "energy of the total, J",
    "celsius": "temperature, °C",
    "clocks_mhz": "clock, MHz",
    "gpu_percent": "GPU load, %",
    "ram_mb": "memory in use, MB",
}
"""What a summary's keys are called; others are shown as they are."""


def telemetry_section(
    telemetry: Mapping[str, Any] | None, readings: Sequence[Reading] = ()
) -> Markup:
    """Power, temperature and clocks while measuring; nothing where nothing was told."""
    if not telemetry:
        return Markup("")
    charts = [
        _over_time("Power", "W", readings, _powers),
        _over_time("Temperature", "°C", readings, lambda reading: reading.celsius),
    ]
    drawn = [chart for chart in charts if chart is not None]
    single: list[tuple[str, object]] = []
    tables: list[Markup] = []
    for key, value in telemetry.items():
        name = NAMES.get(str(key), str(key).replace("_", " "))
        if isinstance(value, Mapping):
            tables.append(_figures_table(name, value))
        elif isinstance(value, (list, tuple)):
            single.append((name, join(value, "; ") if value else "none seen"))
        else:
            single.append((name, _shown(value)))
    parts = [tag("div", *drawn, class_="grid")] if drawn else []
    return section("While it was measured", facts(single), *parts, *tables)


def _figures_table(name: str, figures: Mapping[str, Any]) -> Markup:
    """{sensor: {mean, max}} as a table, {mean, max} as a table of one row."""
    nested = any(isinstance(value, Mapping) for value in figures.values())
    named = figures.items() if nested else [("", figures)]
    rows = {str(key): row if isinstance(row, Mapping) else {"": row} for key, row in named}
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    shown = [
        (key, *(_shown(row.get(column, "")) for column in columns)) for key, row in rows.items()
    ]
    return table((name, *columns), shown)


def _shown(value: object) -> object:
    return figure(value) if isinstance(value, float) else value


def _powers(reading: Reading) -> Mapping[str, float]:
    """By rail, and together where no rail alone is the whole."""
    whole = reading.total_w
    if whole is None or whole in reading.watts.values():
        return reading.watts
    return {"total": whole, **reading.watts}


def _over_time(
    title: str,
    unit: str,
    readings: Sequence[Reading],
    kind: Callable[[Reading], Mapping[str, float]],
) -> Markup | None:
    """A line per sensor, those that read highest."""
    found: dict[str, list[tuple[float, float]]] = {}
    for reading in readings:
        for name, value in kind(reading).items():
            found.setdefault(name, []).append((reading.time_s - readings[0].time_s, value))
    lines = [(name, values) for name, values in found.items() if len(values) > 1]
    lines.sort(key=lambda line: -max(value for _, value in line[1]))
    if not lines:
        return None
    series = [
        Series(
            name,
            tuple(t for t, _ in values),
            tuple(max(v, 0.0) for _, v in values),
            (),
            i,
            dots=False,
        )
        for i, (name, values) in enumerate(lines[:SENSORS])
    ]
    return line_chart(Frame(title, "s", unit, width=440.0, height=250.0), series)
