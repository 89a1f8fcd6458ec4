"""The report for people: what was assumed, and a Markdown table that reads well in a terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from edgespec.latency import DeviceProfile
from edgespec.sizing.budgets import Budget
from edgespec_runtime.bench.report import number, percent, table, varies
from edgespec_runtime.simulate.cells import Cell
from edgespec_runtime.simulate.network import Network

Column = tuple[str, Callable[[Cell], str]]


def markdown(
    cells: Sequence[Cell],
    profile: DeviceProfile,
    budget: Budget,
    *,
    server: DeviceProfile | None = None,
    network: Network | None = None,
    ahead: bool = True,
    noise: bool = False,
) -> str:
    """A caption that states what all lines share, and one line per cell."""
    limits = _limits(budget)
    where = [f"Predicted for {_device(profile)}"]
    if server is not None:
        where.append(f"target on {_device(server)}")
    if network is not None:
        where.append(f"across a network: {_network(network)}")
    idle = network is not None and not ahead
    caption = [
        ", ".join(where) + ".",
        "The draft waits for every answer." if idle else "",
        "Costs scatter as their 95th percentiles say." if noise else "Costs are the medians.",
        f"Budget: {limits}." if limits else "",
        "Speeds are medians over answers; accepted length is the mean over rounds and counts the "
        "bonus token; a round's tokens are handed out together.",
        drawn(cells),
    ]
    columns = [*_keys(cells), *FIGURES, *_streamed(cells), *_over_columns(cells)]
    rows = [[show(cell) for _, show in columns] for cell in cells]
    titles = [title for title, _ in columns]
    return f"{' '.join(filter(None, caption))}\n\n{table(titles, rows, len(_keys(cells)))}"


def drawn(cells: Sequence[Cell]) -> str:
    """How much was not recorded and had to be drawn; "" where all was."""
    asked, missing = (sum(getattr(cell, name) for cell in cells) for name in ("asked", "drawn"))
    if not missing:
        return ""
    return (
        f"Of {asked} proposals asked for on the answers' paths, {missing} "
        f"({100 * missing / asked:.1f} %) were in no trace and were drawn from the same task's; "
        "record with --policy survey to have them all."
    )


def _device(profile: DeviceProfile) -> str:
    mode = f", {profile.device.power_mode}" if profile.device.power_mode else ""
    kind = "measured" if profile.kind == "measured" else "ESTIMATED from its datasheet"
    return f"{profile.device.name} ({kind}{mode})"


def _network(network: Network) -> str:
    link = f", {network.uplink_kbps:g} kbit/s up" if network.uplink_kbps else ""
    return f"{network.rtt_ms:g} ms round trip{link}"


def _limits(budget: Budget) -> str:
    limits = {
        "ms per round": budget.ms_per_round,
        "ms to the first token": budget.ttft_ms,
        "ms between tokens (95th percentile)": budget.p95_itl_ms,
        "MB": budget.memory_mb,
    }
    return ", ".join(f"{limit:g} {unit}" for unit, limit in limits.items() if math.isfinite(limit))


def _keys(cells: Sequence[Cell]) -> list[Column]:
    columns: list[Column] = [("set", lambda cell: cell.domain), ("task", lambda cell: cell.task)]
    if varies("bundle", cells):
        columns.append(("bundle", lambda cell: cell.bundle))
    if varies("method", cells):
        columns.append(("method", lambda cell: cell.method))
    if varies("temperature", cells):
        columns.append(("T", lambda cell: f"{cell.temperature:g}"))
    columns.append(("policy", lambda cell: cell.policy))
    if varies("mode", cells):
        columns.append(("mode", lambda cell: cell.mode))
    return columns


FIGURES: tuple[Column, ...] = (
    ("n", lambda cell: str(cell.n)),
    ("tokens", lambda cell: number(cell.tokens, 0)),
    ("tok/s", lambda cell: number(cell.tokens_per_s, 1)),
    ("speedup decode", lambda cell: number(cell.speedup_decode, 2, "x")),
    ("end to end", lambda cell: number(cell.speedup_e2e, 2, "x")),
    ("accepted length", lambda cell: number(cell.accepted_length, 2)),
    ("first token ms", lambda cell: number(cell.ttft_ms, 1)),
    ("round p50 ms", lambda cell: number(cell.round_p50_ms, 2)),
    ("p95 ms", lambda cell: number(cell.round_p95_ms, 2)),
    ("between tokens p50 ms", lambda cell: number(cell.itl_p50_ms, 2)),
    ("p95 ms", lambda cell: number(cell.itl_p95_ms, 2)),
    ("drafted", lambda cell: percent(cell.drafted, 0)),
)


def _streamed(cells: Sequence[Cell]) -> list[Column]:
    if network_modes(cells):
        return [("streamed", lambda cell: percent(cell.streamed, 0))]
    return []


def network_modes(cells: Sequence[Cell]) -> bool:
    """Whether the target is elsewhere, so that there were modes to compare."""
    return varies("mode", cells)


def _over_columns(cells: Sequence[Cell]) -> list[Column]:
    columns: tuple[tuple[str, str], ...] = (
        ("rounds over budget", "over_round_budget"),
        ("first tokens over budget", "over_ttft_budget"),
        ("answers over p95 budget", "over_itl_budget"),
    )
    return [
        (title, _share(name))
        for title, name in columns
        if any(getattr(cell, name) is not None for cell in cells)
    ]


def _share(name: str) -> Callable[[Cell], str]:
    return lambda cell: percent(getattr(cell, name), 1)
