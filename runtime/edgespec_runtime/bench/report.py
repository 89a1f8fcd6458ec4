"""The report for people: a Markdown table that also reads well in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from edgespec_runtime.bench.cells import Cell

Column = tuple[str, Callable[[Cell], str]]


def markdown(cells: Sequence[Cell]) -> str:
    """A caption that states what all lines share, and one line per cell."""
    columns = [*_keys(cells), *FIGURES]
    rows = [[show(cell) for _, show in columns] for cell in cells]
    return f"{caption(cells)}\n\n{table([title for title, _ in columns], rows, len(_keys(cells)))}"


def caption(cells: Sequence[Cell]) -> str:
    """What the figures are, and the settings that all cells share."""
    skipped = sum(cell.skipped for cell in cells)
    left_out = (
        f" Prompts left out because they did not fit the context: {skipped}." if skipped else ""
    )
    return (
        f"Against plain decoding (n = 0) on the same engine, interleaved; {shared(cells)}. "
        "Medians over prompts; accepted length is the mean over rounds and counts the bonus token."
        + left_out
    )


def shared(cells: Sequence[Cell]) -> str:
    """The settings that all cells share, in words."""
    one = cells[0]
    settings = {
        "temperature": f"temperature {one.temperature:g}",
        "policy": f"policy {one.policy}",
        "repeats": f"{one.repeats} repeat{'s' if one.repeats > 1 else ''}",
    }
    return ", ".join(text for title, text in settings.items() if not varies(title, cells))


def label(cell: Cell, cells: Sequence[Cell]) -> str:
    """The method's name, with every setting that tells it from the other cells."""
    parts = [cell.method, cell.compressor if cell.compressor != "none" else ""]
    if varies("policy", cells) and cell.policy != "default":
        parts.append(cell.policy)
    if varies("temperature", cells):
        parts.append(f"T={cell.temperature:g}")
    if _same_but_for_bundle(cells):
        parts.append(cell.bundle)
    return " ".join(filter(None, parts))


def varies(title: str, cells: Sequence[object]) -> bool:
    """Whether cells differ in that field."""
    return len({getattr(cell, title) for cell in cells}) > 1


def _same_but_for_bundle(cells: Sequence[Cell]) -> bool:
    """Whether two bundles hold the same method, so that only their names tell them apart."""
    places = {(cell.method, cell.compressor, cell.bundle) for cell in cells}
    return len({place[:2] for place in places}) < len(places)


def _keys(cells: Sequence[Cell]) -> list[Column]:
    columns: list[Column] = [
        ("set", lambda cell: cell.domain),
        ("task", lambda cell: cell.task),
        ("method", lambda cell: cell.method),
        ("compressor", lambda cell: cell.compressor),
    ]
    if _same_but_for_bundle(cells):
        columns.append(("bundle", lambda cell: cell.bundle))
    if varies("policy", cells):
        columns.append(("policy", lambda cell: cell.policy))
    if varies("temperature", cells):
        columns.append(("T", lambda cell: f"{cell.temperature:g}"))
    return columns


def number(value: float | None, digits: int, unit: str = "") -> str:
    """``value`` with so many digits after the point; "-" for None."""
    return "-" if value is None else f"{value:.{digits}f}{unit}"


def percent(value: float | None, digits: int) -> str:
    """A share of 1 in percent; "-" for None."""
    return number(None if value is None else 100 * value, digits, " %")


def _exact(cell: Cell) -> str:
    share = f"{100 * cell.exact_match:.4g} %"
    return share if cell.exact_match == 1 else f"**NOT EXACT: {share}**"


FIGURES: tuple[Column, ...] = (
    ("n", lambda cell: str(cell.n)),
    ("tokens", lambda cell: number(cell.tokens, 0)),
    ("plain tok/s", lambda cell: number(cell.plain_tokens_per_s, 0)),
    ("tok/s", lambda cell: number(cell.tokens_per_s, 0)),
    ("speedup decode", lambda cell: number(cell.speedup_decode, 2, "x")),
    ("end to end", lambda cell: number(cell.speedup_e2e, 2, "x")),
    ("accepted length", lambda cell: number(cell.accepted_length, 2)),
    ("plain first token ms", lambda cell: number(cell.plain_ttft_ms, 1)),
    ("first token ms", lambda cell: number(cell.ttft_ms, 1)),
    ("draft prefill ms", lambda cell: number(cell.draft_prefill_ms, 1)),
    ("T(1) ms", lambda cell: number(cell.plain_round_ms, 2)),
    ("draft ms", lambda cell: number(cell.draft_ms_per_round, 2)),
    ("verify ms", lambda cell: number(cell.verify_ms_per_round, 2)),
    ("draft overhead", lambda cell: percent(cell.draft_overhead, 0)),
    ("host share", lambda cell: percent(cell.host_share, 0)),
    ("exact", _exact),
)


def table(titles: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> str:
    """Markdown with padded columns; the first ``left`` of them flush left."""
    lines = [list(titles), *map(list, rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]

    def line(texts: Sequence[str]) -> str:
        padded = [
            text.ljust(width) if at < left else text.rjust(width)
            for at, (text, width) in enumerate(zip(texts, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * w if at < left else "-" * (w - 1) + ":" for at, w in enumerate(widths)]
    return "\n".join([line(titles), line(rule), *map(line, lines[1:])])
