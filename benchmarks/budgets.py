"""Time limits over a grid: are they kept, and what do they cost?

    python benchmarks/budgets.py --bundle B --profile P --plot docs/budgets.svg

Every prompt is answered once without a limit first; that is where sizing learns.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from sizing_rig import rows_of

import edgespec_runtime
from edgespec.latency import load_profile
from edgespec.sizing.budgets import Budget
from edgespec.sizing.feasible import tail
from edgespec_runtime.bench.data import Row

SHARES = (1.05, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0)
"""Limits, as multiples of a plain round's 95th percentile."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--profile", type=Path, required=True)
    parser.add_argument("--task", action="append", default=[])
    parser.add_argument("--prompts", type=int, default=8, help="per task and set")
    parser.add_argument("--plot", type=Path, help="draw the speed that is left (.svg or .png)")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    report = measured(arguments)
    if arguments.plot:
        draw(report, arguments.plot)
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every kind of time limit over a grid: the share of answers whose 95th percentile keeps it,
    and the speed that is left."""
    model = edgespec_runtime.load(arguments.bundle, profile=arguments.profile)
    rows = rows_of(arguments)
    profile = load_profile(arguments.profile)
    plain = tail(profile.costs.verify, 1, 800) + profile.costs.host_round_ms
    plain += profile.costs.host_token_ms
    for row in rows:
        model.generate(list(row.images), row.turns[0])
    report: dict[str, Any] = {"plain_ms": plain, "limits": []}
    print("| limit | ms | answers within | rounds within | tok/s |\n|---|--:|--:|--:|--:|")
    for kind in ("ms_per_round", "p95_itl_ms"):
        for share in (*SHARES, 1e6):
            limit = plain * share
            kept, fine, all_rounds, tokens, ms = 0, 0, 0, 0, 0.0
            for row in rows:
                answer = timed(model, row, Budget(**{kind: limit}))
                measured = answer.rounds if kind == "ms_per_round" else answer.gaps
                kept += percentile(measured, 0.95) <= limit
                fine += sum(value <= limit for value in answer.rounds)
                all_rounds += len(answer.rounds)
                tokens, ms = tokens + len(answer.gaps), ms + sum(answer.gaps)
            row_of = {
                "kind": kind,
                "limit_ms": limit,
                "answers_within": kept / len(rows),
                "rounds_within": fine / all_rounds,
                "tokens_per_s": 1e3 * tokens / ms,
            }
            report["limits"].append(row_of)
            print(
                f"| {kind} | {limit:.1f} | {row_of['answers_within']:.3f} | "
                f"{row_of['rounds_within']:.3f} | {row_of['tokens_per_s']:.0f} |",
                flush=True,
            )
    return report


def draw(report: dict[str, Any], path: Path) -> None:
    """Speed that is left over the limit, for both kinds; needs the extra [plot]."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.6))
    names = {"ms_per_round": "budget per round", "p95_itl_ms": "budget between tokens (p95)"}
    for kind, marker in (("ms_per_round", "o"), ("p95_itl_ms", "s")):
        limits = [row for row in report["limits"] if row["kind"] == kind]
        free = limits[-1]["tokens_per_s"]
        xs = [row["limit_ms"] for row in limits[:-1]]
        ys = [row["tokens_per_s"] / free for row in limits[:-1]]
        axes.plot(xs, ys, marker=marker, label=names[kind])
    axes.axhline(1.0, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xlabel="budget, ms", ylabel="speed left of that without a budget", ylim=(0, None))
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)


@dataclass
class Timed:
    """One answer: milliseconds of its rounds, and between its tokens."""

    rounds: list[float]
    gaps: list[float]


def timed(model: edgespec_runtime.Model, row: Row, budget: Budget) -> Timed:
    arrivals, rounds = [], []
    for record in model.stream(list(row.images), row.turns[0], budget=budget):
        arrivals.append(perf_counter())
        if len(arrivals) > 1 and record.verify_ms:
            rounds.append(record.draft_ms + record.verify_ms)
    gaps = [(b - a) * 1e3 for a, b in zip(arrivals, arrivals[1:], strict=False)]
    return Timed(rounds or [0.0], gaps or [0.0])


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


if __name__ == "__main__":
    sys.exit(main())
