"""The report as a picture: a panel per set and task, a pair of bars per method."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgespec_runtime.bench.cells import Cell
from edgespec_runtime.bench.report import label, shared

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ENDINGS = (".svg", ".png")
END_TO_END, DECODE = "#0b6e99", "#8cc4d9"  # one hue in two strengths: told apart in grey, too
BAD, INK, FAINT = "#c0392b", "#22313a", "#8a979e"
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.parse_math": False,  # a task may be called anything
    "svg.fonttype": "none",  # text stays text: small files, and one can search them
    "svg.hashsalt": "edgespec",  # the same cells give the same bytes
}
CLEAR = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}  # words are not struck through
DASHES = (0, (4, 3))
BAR = 0.38
WIDTH, ROW, FRAME = 4.2, 0.52, 0.75  # inches: a panel, one method in it, its title and axis


@dataclass(frozen=True)
class Panel:
    """One set and task."""

    title: str
    cells: tuple[Cell, ...]


def draw(cells: Sequence[Cell], path: Path) -> None:
    """Writes the picture; the ending of ``path`` (.svg or .png) says what kind."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    panels = _panels(cells)
    columns = min(len(panels), 3 if len(panels) > 4 else 2)
    rows = math.ceil(len(panels) / columns)
    tallest = max(len(panel.cells) for panel in panels)
    height = rows * (tallest * ROW + FRAME) + 1.1
    with matplotlib.rc_context(STYLE):
        layout = ConstrainedLayoutEngine(h_pad=0.07, w_pad=0.1)
        figure = Figure(figsize=(columns * WIDTH + 1.2, height), layout=layout)
        grid = figure.subplots(rows, columns, sharex=True, squeeze=False)
        limit = _limit(cells)
        alike = len({tuple(_labels(panel, cells)) for panel in panels}) == 1
        for index, axes in enumerate(grid.flat):
            if index < len(panels):
                _panel(axes, panels[index], cells, limit, tallest)
                if index % columns and alike:
                    axes.tick_params(labelleft=False)
            else:
                axes.set_axis_off()
        _frame(figure, columns, shared(cells))
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=150, metadata=metadata)


def _panels(cells: Sequence[Cell]) -> list[Panel]:
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.domain, cell.task), []).append(cell)
    return [
        Panel(f"{domain.replace('_', ' ')} · {task}", tuple(group))
        for (domain, task), group in groups.items()
    ]


def _labels(panel: Panel, cells: Sequence[Cell]) -> list[str]:
    """Names of the rows; long settings are broken after their commas."""
    names = [label(cell, cells).replace(",", ", ") for cell in panel.cells]
    return [textwrap.fill(name, 26, break_long_words=False) for name in names]


def _limit(cells: Sequence[Cell]) -> float:
    """Right end of the axis: the longest bar with room for its figures."""
    return max(1.2, *(max(cell.speedup_e2e, cell.speedup_decode or 0) for cell in cells)) * 1.42


def _panel(axes: Axes, panel: Panel, cells: Sequence[Cell], limit: float, tallest: int) -> None:
    for row, cell in enumerate(panel.cells):
        _bar(axes, row - BAR / 2, cell.speedup_decode, DECODE)
        _bar(axes, row + BAR / 2, cell.speedup_e2e, END_TO_END)
        if cell.accepted_length is not None:
            text = f"τ {cell.accepted_length:.2f}"
            axes.text(limit, row, text, ha="right", va="center", bbox=CLEAR)
        if cell.exact_match < 1:
            axes.text(
                limit, row + 0.36, f"NOT EXACT {100 * cell.exact_match:.3g} %",
                ha="right", va="center", color=BAD, fontsize=7, fontweight="bold", bbox=CLEAR,
            )  # fmt: skip
    axes.axvline(1.0, color=INK, linewidth=0.9, linestyle=DASHES, zorder=1.5)
    axes.set_title(panel.title, loc="left", fontsize=10, fontweight="bold")
    counts = sorted({cell.n for cell in panel.cells})
    axes.set_title(f"n = {'-'.join(map(str, counts))}", loc="right", fontsize=8, color=FAINT)
    axes.set_yticks(range(len(panel.cells)), _labels(panel, cells))
    axes.set_ylim(tallest - 0.4, -0.6)  # the first method on top, bars equally thick everywhere
    axes.set_xlim(0, limit)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelbottom=True, color=FAINT)
    axes.xaxis.set_major_formatter("{x:g}x")
    axes.xaxis.grid(True, color="#e6eaec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)


def _bar(axes: Axes, at: float, value: float | None, colour: str) -> None:
    if value is None:
        return
    axes.barh(at, value, height=BAR * 0.92, color=colour)
    words = f"{value:.2f}x"
    axes.annotate(
        words, (value, at), (4, 0), textcoords="offset points", va="center", fontsize=8, bbox=CLEAR
    )


def _frame(figure: Figure, columns: int, settings: str) -> None:
    """Title, legend and the words that the figures need."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    line = Line2D([], [], color=INK, linewidth=0.9, linestyle=DASHES, label="plain decoding")
    entries = [
        Patch(color=DECODE, label="decoding only"),
        Patch(color=END_TO_END, label="end to end, prefill included"),
        line,
    ]
    figure.legend(
        handles=entries,
        title="Speedup over plain decoding",
        title_fontproperties={"size": 13, "weight": "bold"},
        alignment="left",
        loc="outside upper left",
        ncols=3,
        frameon=False,
        fontsize=8,
    )
    words = f"τ: tokens per round, bonus counted. Medians over prompts; {settings}."
    wrapped = textwrap.fill(words, 75 * columns)
    figure.supxlabel(wrapped, x=0.01, ha="left", fontsize=8, color=FAINT)
