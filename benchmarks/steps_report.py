"""What ``steps.py`` clocked, as figures and as the tables that people read."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.steps_sides import READ_MB, Point, TransformersSide
from edgespec.latency import this_device
from edgespec_runtime import Model
from edgespec_runtime.kv import CacheShape

PACKAGES = ("edgespec", "numpy", "onnxruntime", "torch", "transformers")
BASELINE = TransformersSide.name
Figures = dict[str, Any]


@dataclass
class Clocked:
    """Milliseconds by side and point or prompt tokens, attention's shares, memory's GB/s."""

    steps: dict[str, dict[Point, list[float]]]
    prompts: dict[str, dict[int, list[float]]]
    attention: dict[str, dict[Point, float]] = field(default_factory=dict)
    reads: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, names: Sequence[str]) -> Clocked:
        """Nothing yet; ``names``: the sides, in the order of the tables."""
        return cls({name: {} for name in names}, {name: {} for name in names})


def figures_of(
    models: Mapping[str, Model],
    clocked: Clocked,
    settings: Mapping[str, Any],
    loads: Sequence[Sequence[float]],
) -> Figures:
    """All of it as JSON has it; ``models``: the bundles by the names of their sides; ``loads``:
    the load averages before and after."""
    reads = clocked.reads
    read = {"megabytes": READ_MB, "gb_s": statistics.median(reads), "best_gb_s": max(reads)}
    sides = {name: _timed(name, clocked) for name in clocked.steps}
    for name, model in models.items():
        sides[name] |= _sized(model)
        sides[name]["bound"] = list(_bounds(sides[name], read))
    source = next(iter(models.values())).manifest.models["target"].source
    return {
        "model": Path(source).name,
        "machine": _machine(),
        "load_average": {"before": list(loads[0]), "after": list(loads[-1])},
        "settings": dict(settings),
        "read": read,
        "sides": sides,
    }


def _timed(name: str, clocked: Clocked) -> Figures:
    shares = clocked.attention.get(name, {})
    return {
        "steps": [
            {"context": p.context, "rows": p.rows, **_times(ms), "attention": shares.get(p)}
            for p, ms in sorted(clocked.steps[name].items())
        ],
        "first_token": [
            {"tokens": tokens, **_times(ms)} for tokens, ms in sorted(clocked.prompts[name].items())
        ],
    }


def _times(ms: Sequence[float]) -> dict[str, float]:
    return {"ms": round(statistics.median(ms), 3), "best_ms": round(min(ms), 3), "count": len(ms)}


def _sized(model: Model) -> Figures:
    spec = model.steps["target"].spec
    return {
        "bundle": model.bundle.path.name,
        "stored": spec.meta.get("stored"),
        "weight_bytes": int(spec.meta["weight_bytes"]),
        "row_bytes": CacheShape.of(spec).row_bytes,
    }


def _bounds(side: Figures, read: Mapping[str, float]) -> Iterator[Figures]:
    """What a plain step must read at every context, and how near it comes to the time that takes:
    medians of both, and the best of both."""
    for step in side["steps"]:
        if step["rows"] == 1:
            size = side["weight_bytes"] + step["context"] * side["row_bytes"]
            bound, best = (size / read[rate] / 1e6 for rate in ("gb_s", "best_gb_s"))
            yield {
                "context": step["context"],
                "bytes": size,
                "bound_ms": bound,
                "best_bound_ms": best,
                "reached": bound / step["ms"],
                "best_reached": best / step["best_ms"],
            }


def _machine() -> Figures:
    versions = {name: found for name in PACKAGES if (found := _version(name))}
    python = platform.python_version()
    return {**asdict(this_device()), "python": python, "versions": versions}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def markdown(figures: Figures) -> str:
    """All tables, from what JSON has."""
    parts = [_heading, _by_context, _beside_transformers, _curve, _bound, _first_token]
    return "\n".join(line for part in parts for line in part(figures)) + "\n"


def _heading(figures: Figures) -> Iterator[str]:
    machine, settings = figures["machine"], figures["settings"]
    before, after = (figures["load_average"][when][0] for when in ("before", "after"))
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    yield (
        f"{figures['model']} on {machine['processor']}, {machine['cores']} cores, "
        f"{settings['threads']} threads; {settings['repeats']} passes in random order behind one "
        f"that warms up; load {before:.1f} before, {after:.1f} after. Python {machine['python']}, "
        f"{versions}."
    )
    if settings["left_out"]:
        yield ""
        yield f"Left out: {'; '.join(settings['left_out'])}."


def _by_context(figures: Figures) -> Iterator[str]:
    yield from _titled(
        "ms of a step of so many rows behind so many cached ones: median / minimum; in brackets "
        "attention's share of the time of all nodes, by ONNX Runtime's profiler in a session made "
        "for it, since profiling slows small nodes down"
    )
    sides = figures["sides"]
    rows = [
        [point.rows, point.context, *(_cell(_step(side, point)) for side in sides.values())]
        for point in _points(figures)
    ]
    yield from _table(["rows", "context", *sides], rows)


def _cell(step: Figures) -> str:
    share = "" if step["attention"] is None else f" ({step['attention']:.0%})"
    return f"{step['ms']:.2f} / {step['best_ms']:.2f}{share}"


def _beside_transformers(figures: Figures) -> Iterator[str]:
    """Ratios of medians, and whether any step is slower."""
    sides = figures["sides"]
    if BASELINE not in sides:
        return
    yield from _titled(f"How many times as long a step of {BASELINE} takes (medians)")
    bundles = [name for name in sides if name != BASELINE]
    rows: list[list[Any]] = []
    slower: list[str] = []
    for point in _points(figures):
        theirs = _step(sides[BASELINE], point)["ms"]
        ratios = {name: theirs / _step(sides[name], point)["ms"] for name in bundles}
        rows.append([point.rows, point.context, *(f"{ratio:.2f}" for ratio in ratios.values())])
        slower += [
            f"{name} with {point.rows} rows at {point.context}"
            for name, ratio in ratios.items()
            if ratio < 1
        ]
    yield from _table(["rows", "context", *bundles], rows)
    yield ""
    yield f"Slower than {BASELINE}: {', '.join(slower) or 'no step'}."


def _curve(figures: Figures) -> Iterator[str]:
    context, rows = figures["settings"]["curve_context"], figures["settings"]["rows"]
    yield from _titled(f"Verify curve: t(n) / t(1) of n rows behind {context}, medians")
    lines = []
    for name, side in figures["sides"].items():
        one, *more = (_step(side, Point(context, n))["ms"] for n in rows)
        lines.append([name, f"{one:.2f}", *(f"{ms / one:.2f}" for ms in more)])
    yield from _table(["precision", "t(1), ms", *map(str, rows[1:])], lines)


def _bound(figures: Figures) -> Iterator[str]:
    read = figures["read"]
    yield from _titled(
        f"Plain steps and the memory-bandwidth bound: {read['gb_s']:.1f} GB/s in the median, "
        f"{read['best_gb_s']:.1f} at best, by a plain read of {read['megabytes']} MB in between. "
        "A step reads all weights but the token table, and the cached rows; reached: the bound by "
        "the step's time, of medians / of the best"
    )
    lines = [
        [
            name,
            at["context"],
            f"{side['weight_bytes'] / 1e6:.1f}",
            f"{(at['bytes'] - side['weight_bytes']) / 1e6:.1f}",
            f"{at['bound_ms']:.2f} / {at['best_bound_ms']:.2f}",
            f"{at['reached']:.2f} / {at['best_reached']:.2f}",
        ]
        for name, side in figures["sides"].items()
        for at in side.get("bound", ())
    ]
    yield from _table(
        ["precision", "context", "weights, MB", "cache, MB", "bound, ms", "reached"], lines
    )


def _first_token(figures: Figures) -> Iterator[str]:
    prompts = figures["settings"]["prompts"]
    if not prompts:
        return
    yield from _titled("ms to the first token of prompts of so many tokens: median / minimum")
    lines = [
        [name, *(f"{at['ms']:.0f} / {at['best_ms']:.0f}" for at in side["first_token"])]
        for name, side in figures["sides"].items()
    ]
    yield from _table(["precision", *map(str, prompts)], lines)


def _points(figures: Figures) -> list[Point]:
    """Of the tables by context: by rows, then context."""
    settings = figures["settings"]
    return [Point(c, rows) for rows in settings["step_rows"] for c in settings["contexts"]]


def _step(side: Figures, point: Point) -> Figures:
    wanted = (point.context, point.rows)
    steps: list[Figures] = side["steps"]
    return next(step for step in steps if (step["context"], step["rows"]) == wanted)


def _titled(text: str) -> Iterator[str]:
    yield from ("", f"{text}:", "")


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|---|{'--:|' * (len(head) - 1)}"
    for row in rows:
        yield f"| {' | '.join(map(str, row))} |"
