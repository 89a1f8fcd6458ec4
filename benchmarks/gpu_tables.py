"""The figures of ``gpu.py`` as Markdown tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Figures = Mapping[str, Any]


def tables(report: Figures) -> str:
    """All sections of a report, with what stopped those that did not run to their end."""
    parts = [f"Geometry {report['geometry']}, engine {report['engine']}, {report['started']}."]
    sections = report["sections"]
    if "opening" in sections:
        parts.append(_table("model opened", _each(sections["opening"])))
    for name, found in sections.items():
        if name == "opening":
            continue
        parts.append(f"**{name}** ({found['seconds']} s)")
        for how in ("error", "skipped", "refused"):
            if how in found:
                parts.append(f"{how}: {found[how]}")
        if found["figures"]:
            parts += WRITERS.get(name, _plainly)(found["figures"])
    return "\n\n".join(parts)


def _plainly(figures: Figures) -> Iterator[str]:
    yield "\n".join(f"- {name}: {_short(value)}" for name, value in figures.items())


def _by_name(figures: Figures) -> Iterator[str]:
    """Every figure that is a mapping of plain values is a row; the others are lines."""
    rows = {name: value for name, value in figures.items() if _flat(value)}
    rest = {name: value for name, value in figures.items() if name not in rows}
    if rest:
        yield from _plainly(rest)
    if rows:
        yield _table("", _each(rows))


def _curve(figures: Figures) -> Iterator[str]:
    nodes = figures["nodes"]
    rows = [
        [f"{name}, {kind.removesuffix('_ms')}", *values]
        for name, found in figures.items()
        if name != "nodes"
        for kind, values in found.items()
    ]
    yield _grid(["ms of a tree of n nodes", *nodes], rows)


def _draft(figures: Figures) -> Iterator[str]:
    rows = [
        [name, *found["step_ms"], found.get("chain_levels", "-"), found.get("chain_ms", "-")]
        for name, found in figures.items()
        if name != "rows"
    ]
    yield _grid(["ms of a draft call, rows", *figures["rows"], "levels", "chain"], rows)


def _replay(figures: Figures) -> Iterator[str]:
    yield f"{figures['said']} Flavour {figures['flavour']}."
    rows = dict(figures.get("reports", {}))
    if "builtin_trace" in figures:
        rows["built-in family's own rounds"] = figures["builtin_trace"]
    yield _table("accepted as in", _each(rows))
    yield _table("tree", _each(figures.get("needed", {})))


def _truth(figures: Figures) -> Iterator[str]:
    for name, found in figures.items():
        yield f"{name}:"
        yield from _plainly(found)


WRITERS: Mapping[str, Callable[[Figures], Iterator[str]]] = {
    "builtin": _by_name,
    "plain": _by_name,
    "transformers": _by_name,
    "curve": _curve,
    "draft": _draft,
    "replay": _replay,
    "oracle": _truth,
    "equality": _truth,
}


def _flat(value: Any) -> bool:
    return isinstance(value, Mapping) and len(value) > 1


def _each(rows: Mapping[str, Figures]) -> list[tuple[str, Figures]]:
    return list(rows.items())


def _table(corner: str, rows: Sequence[tuple[str, Figures]]) -> str:
    """One row for each mapping; columns in the order in which they first come."""
    columns = list(dict.fromkeys(key for _, found in rows for key in found))
    body = [[name, *(found.get(column, "") for column in columns)] for name, found in rows]
    return _grid([corner, *columns], body)


def _grid(head: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(str(cell) for cell in head) + " |"]
    lines.append("|---" + "|--:" * (len(head) - 1) + "|")
    lines += ["| " + " | ".join(_short(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text if len(text) <= 300 else f"{text[:300]} ..."
