"""Sections about the machine: headline, what was measured, weights, memory, noise."""

from __future__ import annotations

from edgespec.latency import DeviceProfile
from edgespec_runtime.profiling.ceiling import floor_ms, usual_context
from edgespec_runtime.profiling.page.gains import best_break_even, counted
from edgespec_runtime.profiling.page.markup import Markup, facts, figure, section, table, tag
from edgespec_runtime.profiling.surface import plain_ms

MEGABYTE = 2**20


def headline(profile: DeviceProfile) -> Markup:
    """Title, what kind of profile it is, and the figures to remember."""
    device, bundle = profile.device, profile.bundle
    kind = "measured" if profile.kind == "measured" else "estimate, not measured"
    title = tag("h1", device.name, " · ", bundle.name)
    badge = tag("span", kind, class_=f"badge {profile.kind}")
    line = tag("p", badge, " ", profile.created, class_="note")
    return tag("header", title, line, tag("div", *_tiles(profile), class_="tiles"))


def _tiles(profile: DeviceProfile) -> list[Markup]:
    context = usual_context(profile)
    token = plain_ms(profile.costs, context)
    at = f"at {context:,} rows cached"
    tiles = [_tile("Plain decoding", figure(1000 / token), "tokens/s", f"predicted, {at}")]
    floor = floor_ms(profile.card, "target", 1, context)
    if floor:
        used = 100 * floor / profile.costs.verify.at(1, context)
        source = "measured rates" if profile.card.measured else "the datasheet's rates"
        tiles.append(_tile("Ceiling", figure(1000 / floor), "tokens/s", f"roofline by {source}"))
        tiles.append(_tile("Utilisation", f"{used:.0f}", "%", "of the ceiling, one row"))
    best = best_break_even(profile)
    if best is None:
        tiles.append(_tile("Speculation", "never", "", "pays with no tree that was measured"))
    else:
        length, nodes, drafting = best
        tiles.append(
            _tile(
                "Speculation pays from",
                f"τ {length:.2f}",
                "",
                f"{counted(nodes)}, {drafting.value}",
            )
        )
    if profile.kind == "measured":
        tiles.append(_tile("Noise", f"{100 * (profile.noise - 1):.0f}", "%", "p95 above median"))
    return tiles


def _tile(name: str, value: str, unit: str, words: str) -> Markup:
    shown = tag("strong", value, *([tag("small", " " + unit)] if unit else []))
    return tag("div", tag("span", name), shown, tag("em", words), class_="tile")


def about_section(profile: DeviceProfile) -> Markup:
    """What was measured, on what, by what."""
    device, engine, bundle = profile.device, profile.engine, profile.bundle
    pairs = [
        ("processor", device.processor),
        ("cores", device.cores or ""),
        ("accelerator", device.accelerator),
        ("memory", f"{device.memory_mb:,} MB" if device.memory_mb else ""),
        ("system", device.system),
        ("power mode", device.power_mode),
        ("engine", f"{engine.name} {engine.version}".strip()),
        ("provider", engine.provider),
        ("threads", engine.threads),
        ("target", bundle.target),
        ("draft", bundle.draft),
        ("draft kind", bundle.variant),
        ("compressor", bundle.compressor),
        ("lowering", bundle.lowering),
        ("precision", bundle.precision),
        ("measured in", f"{profile.seconds:,.0f} s" if profile.seconds else ""),
    ]
    parts = [facts(pairs)]
    if profile.sources:
        parts.append(tag("h3", "Sources"))
        parts.append(tag("ul", *(tag("li", source) for source in profile.sources)))
    return section("What this is about", *parts)


def noise_section(profile: DeviceProfile) -> Markup:
    """How far a figure of this page can be trusted."""
    if profile.kind != "measured":
        words = (
            "Nothing here was measured: the figures are computed from the sources below, and a "
            "real device can be well off them. Measure before relying on them."
        )
        return section("How sure this is", tag("p", words))
    spread = 100 * (profile.noise - 1)
    if spread < 5:
        judgement = "The machine was quiet."
    elif spread < 20:
        judgement = "The machine was a little restless, as machines in use are."
    else:
        judgement = "The machine was busy with other things: measure again when it is idle."
    words = (
        f"Over all points, the 95th percentile lies {spread:.1f} % above the median (the median of "
        f"that ratio). {judgement} Differences smaller than that say little."
    )
    return section("How sure this is", tag("p", words))


def card_section(profile: DeviceProfile) -> Markup:
    """The static card: what the graphs weigh, and how fast they could be at best."""
    card = profile.card
    rows = []
    for graph in card.graphs:
        floor = floor_ms(card, graph.role, 1, 0)
        rows.append(
            (
                graph.role,
                graph.precision,
                f"{graph.weight_bytes / MEGABYTE:,.1f}",
                f"{graph.kv_bytes_per_token:,}",
                figure(graph.flops_per_row / 1e6),
                "–" if floor is None else figure(floor),
            )
        )
    head = (
        "graph",
        "precision",
        "weights MB",
        "cache bytes/token",
        "MFLOP/row",
        "least ms, one row",
    )
    how = "measured" if card.measured else "from a datasheet"
    note = (
        f"Memory bandwidth {figure(card.bandwidth_gb_s)} GB/s, arithmetic {figure(card.gflops)} "
        f"GFLOP/s, {how}. MB are 2^20 bytes. A vision graph's rows are patches; a chain passes "
        "over its draft's weights once per level."
    )
    return section("Weights", table(head, rows), note=note)


def memory_section(profile: DeviceProfile) -> Markup:
    """Resident memory, and what a long conversation adds."""
    memory = profile.memory
    whole = memory.base_mb + memory.target_mb + memory.draft_mb
    grown = 1000 * (memory.target_kv_bytes + memory.draft_kv_bytes) / MEGABYTE
    rows = [
        ("interpreter and engine", figure(memory.base_mb)),
        ("target", figure(memory.target_mb)),
        ("draft", figure(memory.draft_mb)),
        ("together", figure(whole)),
        ("caches, per 1,000 tokens", figure(grown)),
    ]
    return section("Memory", table(("resident", "MB"), rows))
