"""Line charts as SVG: medians, bands up to the 95th percentile, dashed bounds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edgespec.latency import Curve
from edgespec_runtime.profiling.page.markup import Markup, coordinate, figure, join, tag

LEFT, RIGHT, TOP, BOTTOM = 58.0, 16.0, 14.0, 44.0  # what the axes' words need
COLOURS = 6
"""Classes s0, s1, ... of the style sheet."""


@dataclass(frozen=True)
class Series:
    """One line; ``tops`` makes a band up to them."""

    name: str
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    tops: tuple[float, ...] = ()
    colour: int = 0
    bound: bool = False
    """Drawn dashed and without dots: computed, not measured."""
    dots: bool = True


@dataclass(frozen=True)
class Frame:
    """The picture: its size in units, what it shows, and what its axes, both from 0, say."""

    title: str
    x_label: str
    y_label: str
    width: float = 720.0
    height: float = 320.0


@dataclass(frozen=True)
class Scale:
    """A number's place: ``low`` at ``start``, ``high`` at ``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def curve_series(curve: Curve, name: str = "", colour: int = 0) -> list[Series]:
    """A line per context, named by it; ``name`` goes before where a chart has several curves."""
    lines = []
    for index, context in enumerate(curve.contexts):
        words = [name] if name else []
        if curve.contexts != (0,):
            words.append(f"{context:,} rows cached")
        sizes = tuple(map(float, curve.sizes))
        medians, tails = curve.median_ms[index], curve.p95_ms[index]
        lines.append(
            Series(", ".join(words) or "median", sizes, medians, tails, (colour + index) % COLOURS)
        )
    return lines


def line_chart(frame: Frame, series: Sequence[Series]) -> Markup:
    """The picture and, above it, what its colours mean."""
    x, y = _scales(frame, series)
    shapes = [tag("title", frame.title), *_axes(frame, x, y)]
    for line in series:
        shapes += _band(line, x, y)
    for line in series:
        shapes += _line(line, x, y, frame)
    picture = tag(
        "svg", *shapes,
        viewBox=f"0 0 {coordinate(frame.width)} {coordinate(frame.height)}", role="img",
    )  # fmt: skip
    return tag("figure", tag("figcaption", frame.title), legend(series), picture)


def legend(series: Sequence[Series]) -> Markup:
    """Swatches and names, and what a band is if there is one."""
    items = [
        tag(
            "li",
            tag("i", "", class_=f"key s{line.colour}" + (" bound" if line.bound else "")),
            line.name,
        )
        for line in series
    ]
    if any(line.tops > line.ys for line in series):  # an estimate has no spread
        items.append(tag("li", tag("i", "", class_="key band"), "median to 95th percentile"))
    return tag("ul", *items, class_="legend")


def ticks(low: float, high: float, most: int) -> list[float]:
    """At most ``most`` round numbers from ``low`` to ``high``: steps of 1, 2 or 5."""
    if high <= low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _scales(frame: Frame, series: Sequence[Series]) -> tuple[Scale, Scale]:
    xs = [x for line in series for x in line.xs] or [0.0]
    ys = [y for line in series for y in (*line.ys, *line.tops)] or [0.0]
    right = max(xs) or 1.0
    top = max(ys) * 1.04 or 1.0
    return (
        Scale(0.0, right, LEFT, frame.width - RIGHT),
        Scale(0.0, top, frame.height - BOTTOM, TOP),
    )


def _axes(frame: Frame, x: Scale, y: Scale) -> list[Markup]:
    """Horizontal rules, ticks and the words of both axes."""
    parts = []
    for value in ticks(y.low, y.high, 6):
        at = y(value)
        kind = "rule" if value else "axis"
        parts.append(tag("line", x1=x.start, x2=x.end, y1=at, y2=at, class_=kind))
        parts.append(tag("text", _tick(value), x=x.start - 8, y=at + 4, class_="tick end"))
    for value in ticks(x.low, x.high, 8 if frame.width > 500 else 5):
        at = x(value)
        parts.append(tag("line", x1=at, x2=at, y1=y.start, y2=y.start + 4, class_="axis"))
        parts.append(tag("text", _tick(value), x=at, y=y.start + 18, class_="tick middle"))
    middle = (x.start + x.end) / 2
    parts.append(tag("text", frame.x_label, x=middle, y=frame.height - 8, class_="label middle"))
    place = f"translate(14 {coordinate((y.start + y.end) / 2)}) rotate(-90)"
    parts.append(tag("text", frame.y_label, transform=place, class_="label middle"))
    return parts


def _tick(value: float) -> str:
    return f"{value:,.10g}"


def _band(line: Series, x: Scale, y: Scale) -> list[Markup]:
    if not line.tops:
        return []
    there = _points(line.xs, line.ys, x, y)
    back = _points(line.xs[::-1], line.tops[::-1], x, y)
    return [tag("polygon", points=f"{there} {back}", class_=f"band s{line.colour}")]


def _line(line: Series, x: Scale, y: Scale, frame: Frame) -> list[Markup]:
    kind = f"line s{line.colour}" + (" bound" if line.bound else "")
    parts = []
    if len(line.xs) > 1:
        parts.append(tag("polyline", points=_points(line.xs, line.ys, x, y), class_=kind))
    if line.dots and not line.bound:
        for index, (size, value) in enumerate(zip(line.xs, line.ys, strict=True)):
            tail = f", p95 {figure(line.tops[index])}" if line.tops else ""
            words = (
                f"{line.name}: {_tick(size)} {frame.x_label}, {figure(value)}{tail} {frame.y_label}"
            )
            dot = {"cx": x(size), "cy": y(value), "r": 3.0, "class_": f"dot s{line.colour}"}
            parts.append(tag("circle", tag("title", words), **dot))
    return parts


def _points(xs: Iterable[float], ys: Iterable[float], x: Scale, y: Scale) -> str:
    places = zip(xs, ys, strict=True)
    return str(join((f"{coordinate(x(a))},{coordinate(y(b))}" for a, b in places), " "))
