"""Sections about times: verifying, drafting, prompts and pictures, bookkeeping."""

from __future__ import annotations

from collections.abc import Sequence

from edgespec.latency import Curve, DeviceProfile
from edgespec_runtime.profiling.ceiling import floor_ms, usual_context
from edgespec_runtime.profiling.page.charts import Frame, Series, curve_series, line_chart
from edgespec_runtime.profiling.page.markup import Markup, figure, section, table, tag

SMALL = (440.0, 270.0)
SHOWN = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Sizes that tables list, where they were measured."""


def verify_section(profile: DeviceProfile) -> Markup:
    """The verify curve with its ceiling, and the same in figures."""
    curve, context = profile.costs.verify, usual_context(profile)
    frame = Frame("Verifying a tree, mask to commit", "rows (nodes + 1)", "ms", height=360.0)
    lines = curve_series(curve)
    floors = _floors(profile, context)
    if floors:
        name = f"roofline, {context:,} rows cached"
        lines.append(Series(name, tuple(map(float, curve.sizes)), floors, bound=True, colour=5))
    note = (
        "How dear a larger tree is. A flat stretch is free speculation; a step is where the "
        "kernels start another tile."
    )
    if not floors:
        note += " The card knows no rates of this machine, so there is no roofline to compare with."
    return section("Verify curve", line_chart(frame, lines), _verify_table(profile), note=note)


def _floors(profile: DeviceProfile, context: int) -> tuple[float, ...]:
    sizes = profile.costs.verify.sizes
    found = [floor_ms(profile.card, "target", rows, context) for rows in sizes]
    return tuple(ms for ms in found if ms is not None)


def _verify_table(profile: DeviceProfile) -> Markup:
    curve, context = profile.costs.verify, usual_context(profile)
    index = curve.contexts.index(context)
    medians = dict(zip(curve.sizes, curve.median_ms[index], strict=True))
    tails = dict(zip(curve.sizes, curve.p95_ms[index], strict=True))
    floors = dict(zip(curve.sizes, _floors(profile, context), strict=False))
    sizes = [size for size in curve.sizes if size in SHOWN] or list(curve.sizes[:12])
    one = curve.at(1, context)
    rows = []
    for size in sizes:
        low = floors.get(size)
        rows.append(
            (
                size,
                figure(medians[size]),
                figure(tails[size]),
                f"{medians[size] / one:.2f} ×",
                figure(medians[size] / size),
                figure(low) if low is not None else "–",
            )
        )
    head = ("rows", "median ms", "p95 ms", "of one row", "ms per row", "roofline ms")
    return table(head, rows, f"At {context:,} rows cached")


def draft_section(profile: DeviceProfile) -> Markup:
    """What a round's candidates cost."""
    costs = profile.costs
    charts = []
    if costs.draft_first is not None:
        charts.append(_small("First step of a round", "committed rows taken in", costs.draft_first))
    if costs.draft_step is not None:
        charts.append(_small("A further step", "nodes expanded (width)", costs.draft_step))
    if costs.chain_first is not None:
        charts.append(
            _small("First call of the chain", "committed rows taken in", costs.chain_first)
        )
    if not charts:
        words = (
            "This bundle has no draft graphs; n-grams are looked up in the text and cost nothing."
        )
        return section("Drafting", tag("p", words))
    parts = [tag("div", *charts, class_="grid")]
    if costs.chain_first is not None and costs.chain_next is not None:
        parts.append(_chain_table(costs.chain_first, costs.chain_next, costs.chain_steps))
    return section("Drafting", *parts)


def _chain_table(first: Curve, further: Curve, steps: int) -> Markup:
    rows = []
    for name, curve in (("first call, one row taken in", first), ("a further call", further)):
        for context in curve.contexts:
            ms = curve.at(1, context)
            cached = "–" if curve.contexts == (0,) else f"{context:,}"
            rows.append((name, cached, figure(ms), steps, figure(ms / steps)))
    head = ("chain graph", "rows cached", "ms", "levels per call", "ms per level")
    return table(head, rows, "Several levels in one engine call")


def prompt_section(profile: DeviceProfile) -> Markup:
    """Prefill and pictures, of both models."""
    costs = profile.costs
    prompts = curve_series(costs.prefill, "target")
    if costs.draft_prefill is not None:
        prompts += curve_series(costs.draft_prefill, "draft", colour=1)
    pictures = curve_series(costs.vision, "target")
    if costs.draft_vision is not None:
        pictures += curve_series(costs.draft_vision, "draft", colour=1)
    return section(
        "Prompt and pictures",
        tag(
            "div",
            line_chart(Frame("Prefill", "tokens", "ms", *SMALL), prompts),
            line_chart(Frame("Vision tower and projector", "pictures", "ms", *SMALL), pictures),
            class_="grid",
        ),
        _per_table("token", costs.prefill, costs.draft_prefill),
        note="Paid once per answer, before its first token.",
    )


def _per_table(unit: str, target: Curve, draft: Curve | None) -> Markup:
    rows = []
    for name, curve in (("target", target), ("draft", draft)):
        if curve is not None:
            size, ms = curve.sizes[-1], curve.median_ms[0][-1]
            rate = f"{1000 * size / ms:,.0f}"
            rows.append((name, f"{size:,}", figure(ms), figure(ms / size), rate))
    head = ("prefill", f"{unit}s", "ms", f"ms per {unit}", f"{unit}s per second")
    return table(head, rows, "The longest prompt of the curve")


def host_section(profile: DeviceProfile) -> Markup:
    """What no graph accounts for."""
    costs = profile.costs
    rows: Sequence[Sequence[object]] = (
        ("the draft's commit", figure(costs.commit_ms), "round"),
        ("bookkeeping", figure(costs.host_round_ms), "round"),
        ("bookkeeping", figure(costs.host_token_ms), "emitted token"),
        ("drawing a token at temperature > 0", figure(costs.pick_ms), "visited node"),
    )
    return section("Around the graphs", table(("on the host", "ms", "per"), rows))


def remote_section(profile: DeviceProfile) -> Markup:
    """A remote target, where one was measured."""
    remote = profile.remote
    if remote is None:
        return Markup("")
    head = ("remote target", "median ms", "p95 ms")
    trip = ("round trip", figure(remote.round_trip_ms), figure(remote.round_trip_p95_ms))
    frame = Frame("Verifying on the server, without the network", "rows (nodes + 1)", "ms")
    return section(
        "Remote target",
        tag("p", remote.url, class_="note"),
        table(head, [trip]),
        line_chart(frame, curve_series(remote.verify)),
    )


def _small(title: str, size: str, curve: Curve) -> Markup:
    return line_chart(Frame(title, size, "ms", *SMALL), curve_series(curve))
