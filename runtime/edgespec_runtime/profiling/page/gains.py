"""The section about speedups: where speculation pays, and from which accepted length on."""

from __future__ import annotations

import math

from edgespec.latency import DeviceProfile
from edgespec_runtime.profiling.ceiling import usual_context
from edgespec_runtime.profiling.page.heatmap import heat_map
from edgespec_runtime.profiling.page.markup import Markup, figure, section, table, tag
from edgespec_runtime.profiling.surface import (
    LEVELS,
    Drafting,
    Surface,
    break_even,
    draft_ms,
    round_ms,
    surface,
    ways,
)

NODES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64)
LENGTHS = tuple(1 + step / 2 for step in range(13))
"""Accepted lengths 1 to 7: the most that ``LEVELS`` levels and the bonus bring."""


def surfaces(profile: DeviceProfile) -> list[Surface]:
    """One per way of drafting, over the trees that were measured."""
    return [
        surface(profile.costs, drafting, usual_context(profile), _nodes(profile), LENGTHS)
        for drafting in ways(profile.costs)
    ]


def counted(nodes: int) -> str:
    """ "1 node", "2 nodes"."""
    return "1 node" if nodes == 1 else f"{nodes} nodes"


def _nodes(profile: DeviceProfile) -> tuple[int, ...]:
    """Tree sizes within the verify curve; 1 where it has one row alone."""
    most = profile.costs.verify.sizes[-1] - 1
    return tuple(n for n in NODES if n <= most) or (1,)


def best_break_even(profile: DeviceProfile) -> tuple[float, int, Drafting] | None:
    """The shortest accepted length that pays, its tree size and way of drafting; None where no tree
    that was measured pays."""
    found = [
        (break_even(profile.costs, drafting, n, usual_context(profile)), n, drafting)
        for drafting in ways(profile.costs)
        for n in _nodes(profile)
    ]
    return min(
        (item for item in found if not math.isnan(item[0])), key=lambda item: item[:2], default=None
    )


def gains_section(profile: DeviceProfile) -> Markup:
    """Maps, and the break-even lengths in figures."""
    maps = [heat_map(item) for item in surfaces(profile)]
    note = (
        "Speedup = τ · t(1) / (t draft + t verify(n + 1) + t host), with the costs above and τ the "
        "tokens a round brings, bonus included. What τ a tree reaches depends on draft and text; "
        "the map says which τ it needs: above the line it pays. "
    )
    if Drafting.STEPS in ways(profile.costs):
        note += f"Level by level means {LEVELS} steps (fewer for fewer nodes), equally wide."
    return section("Where speculation pays", *maps, _rounds_table(profile), note=note)


def _rounds_table(profile: DeviceProfile) -> Markup:
    costs, context = profile.costs, usual_context(profile)
    rows = []
    for drafting in ways(costs):
        for nodes in _nodes(profile):
            if nodes in (1, 4, 8, 16, 32, 64):
                needed = break_even(costs, drafting, nodes, context)
                tau = 1.0 if math.isnan(needed) else needed
                rows.append(
                    (
                        f"{counted(nodes)} {drafting.value}",
                        figure(draft_ms(costs, drafting, nodes, tau, context)),
                        figure(costs.verify.at(nodes + 1, context)),
                        figure(round_ms(costs, drafting, nodes, tau, context)),
                        "never" if math.isnan(needed) else f"{needed:.2f}",
                    )
                )
    head = ("tree", "draft ms", "verify ms", "round ms", "pays from τ")
    return tag("div", table(head, rows, f"Rounds at {context:,} rows cached"))
