"""Speedups over tree size and accepted length as a map, with the line where they begin."""

from __future__ import annotations

import math
from bisect import bisect_right

from edgespec_runtime.profiling.page.charts import Scale
from edgespec_runtime.profiling.page.markup import Markup, coordinate, join, tag
from edgespec_runtime.profiling.surface import Surface

EDGES = (0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0)
"""Between the colours, h0 to h10; 1 is one of them, so that losses and gains never share one."""
CELL, ROW = 42.0, 23.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 14.0, 10.0, 46.0


def colour(speedup: float) -> str:
    """The style sheet's class for a speedup."""
    return "none" if math.isnan(speedup) else f"h{bisect_right(EDGES, speedup)}"


def heat_map(surface: Surface) -> Markup:
    """A cell per size and length with its speedup in figures, the lengths ascending upwards."""
    columns, rows = len(surface.nodes), len(surface.lengths)
    width, height = LEFT + columns * CELL + RIGHT, TOP + rows * ROW + BOTTOM
    y = Scale(surface.lengths[0], surface.lengths[-1], TOP + (rows - 0.5) * ROW, TOP + 0.5 * ROW)
    title = (
        f"Speedup over plain decoding, drafting {surface.drafting.value}, "
        f"{surface.context:,} rows cached"
    )
    shapes = [tag("title", title)]
    for row, length in enumerate(surface.lengths):
        shapes.append(tag("text", f"{length:g}", x=LEFT - 8, y=y(length) + 4, class_="tick end"))
        for column, nodes in enumerate(surface.nodes):
            value = float(surface.speedup[row, column])
            shapes += _cell(LEFT + column * CELL, y(length) - ROW / 2, value, nodes, length)
    for column, nodes in enumerate(surface.nodes):
        at = LEFT + (column + 0.5) * CELL
        shapes.append(tag("text", nodes, x=at, y=height - BOTTOM + 17, class_="tick middle"))
    shapes += _contour(surface, y)
    middle = LEFT + columns * CELL / 2
    shapes.append(
        tag("text", "nodes verified per round", x=middle, y=height - 8, class_="label middle")
    )
    place = f"translate(14 {coordinate(TOP + rows * ROW / 2)}) rotate(-90)"
    shapes.append(tag("text", "accepted length τ", transform=place, class_="label middle"))
    view = f"0 0 {coordinate(width)} {coordinate(height)}"
    picture = tag("svg", *shapes, viewBox=view, role="img", class_="map")
    return tag("figure", tag("figcaption", title), _legend(), picture)


def _cell(x: float, y: float, value: float, nodes: int, length: float) -> list[Markup]:
    kind = colour(value)
    box = {"x": x + 0.5, "y": y + 0.5, "width": CELL - 1, "height": ROW - 1}
    if math.isnan(value):
        return [tag("rect", **box, class_="cell none")]
    words = f"{nodes} nodes, τ {length:g}: {value:.2f} times as fast"
    number = f"{value:.2f}" if value < 9.995 else f"{value:.1f}"
    return [
        tag("rect", tag("title", words), **box, class_=f"cell {kind}"),
        tag("text", number, x=x + CELL / 2, y=y + ROW / 2 + 4, class_=f"in middle {kind}"),
    ]


def _contour(surface: Surface, y: Scale) -> list[Markup]:
    """The border between losses and gains, along the cells' edges so that it crosses no figure;
    broken over columns that never gain."""
    pieces: list[list[str]] = [[]]
    for column in range(len(surface.nodes)):
        gains = [row for row, value in enumerate(surface.speedup[:, column]) if value >= 1]
        if not gains:
            pieces.append([])
            continue
        left = LEFT + column * CELL
        at = coordinate(y(surface.lengths[gains[0]]) + ROW / 2)
        pieces[-1] += [f"{coordinate(left)},{at}", f"{coordinate(left + CELL)},{at}"]
    return [
        tag("polyline", points=join(piece, " "), class_=kind)
        for piece in pieces
        if piece
        for kind in ("halo", "even")
    ]


def _legend() -> Markup:
    """The colours with their edges, and the line."""
    names = [f"< {EDGES[0]:g}", *(f"{edge:g}" for edge in EDGES)]
    keys = [
        tag("li", tag("i", "", class_=f"key box h{index}"), name)
        for index, name in enumerate(names)
    ]
    line = tag("li", tag("i", "", class_="key line"), "pays above")
    blank = tag("li", tag("i", "", class_="key box none"), "out of the tree's reach")
    return tag("ul", *keys, line, blank, class_="legend scale")
