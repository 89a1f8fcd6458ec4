"""Accepted length against distillation steps: the plot and the table of docs/performance.md.

    python benchmarks/scaling.py docs/distillation.jsonl --plot docs/distillation.svg

Reads what `edgespec distill` leaves in progress.jsonl, one file or several; several stages of one
recipe follow each other where rows carry "stage" (1, 2, ...). Needs the extra [plot].
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

NAMES = {"eaglevlm": "EagleVLM", "vispec": "ViSpec", "specvlm": "SpecVLM"}
COLOURS = {"eaglevlm": "#8a979e", "vispec": "#c07a1c", "specvlm": "#0b6e99"}
Curve = list[tuple[int, float]]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.jsonl")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg|png")
    arguments = parser.parse_args()
    rows = [
        json.loads(line)
        for file in arguments.files
        for line in file.read_text(encoding="utf-8").splitlines()
    ]
    curves, ends = read_curves(rows)
    print(table(curves))
    if arguments.plot:
        draw(curves, ends, arguments.plot)
    return 0


def read_curves(rows: Sequence[Mapping[str, object]]) -> tuple[dict[str, Curve], list[int]]:
    """(curve per student over the steps of all stages, steps at which stages end)."""
    lengths: dict[int, int] = {}
    for row in rows:
        stage = int(str(row.get("stage", 1)))
        lengths[stage] = max(lengths.get(stage, 0), int(str(row["step"])))
    before = {s: sum(n for t, n in lengths.items() if t < s) for s in lengths}
    curves: dict[str, Curve] = {}
    for row in rows:
        stage, step = int(str(row.get("stage", 1))), int(str(row["step"]))
        if stage == 1 or step:  # a later stage begins where the one before ended
            point = (before[stage] + step, float(str(row["accepted_length"])))
            curves.setdefault(str(row["student"]), []).append(point)
    return curves, [before[s] for s in sorted(lengths) if before[s]]


def table(curves: Mapping[str, Curve]) -> str:
    """Markdown: a row per evaluation."""
    steps = sorted({step for curve in curves.values() for step, _ in curve})
    names = list(curves)
    lines = ["| steps | " + " | ".join(NAMES.get(n, n) for n in names) + " |"]
    lines.append("|--:|" + "--:|" * len(names))
    for step in steps:
        values = [next((f"{v:.2f}" for s, v in curves[n] if s == step), "") for n in names]
        lines.append(f"| {step} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def draw(curves: Mapping[str, Curve], ends: Sequence[int], path: Path) -> None:
    """The curves, ends of stages as dotted lines; the same rows give the same bytes."""
    import matplotlib
    from matplotlib.figure import Figure

    from edgespec_runtime.bench.plot import FAINT, STYLE

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.subplots()
        for name, curve in curves.items():
            steps, values = zip(*curve, strict=True)
            label, colour = NAMES.get(name, name), COLOURS.get(name)
            axes.plot(steps, values, "o-", label=label, color=colour, markersize=3.5, linewidth=1.6)
        axes.legend(frameon=False, loc="lower right")
        for end in ends:
            axes.axvline(end, color=FAINT, linestyle=":", linewidth=1)
            axes.annotate("second stage", (end, 1.0), xytext=(4, 0), textcoords="offset points",
                          color=FAINT, fontsize=8)  # fmt: skip
        axes.set_xlabel("distillation steps (8 answers each)")
        axes.set_ylabel("accepted length, bonus counted")
        axes.set_ylim(bottom=0)
        axes.margins(x=0.12)
        axes.grid(axis="y", color="#e4e8ea")
        axes.spines[["top", "right"]].set_visible(False)
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=150, metadata=metadata)


if __name__ == "__main__":
    sys.exit(main())
