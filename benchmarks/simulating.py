"""Predicted speeds against measured ones, on this machine.

    edgespec profile --bundle B --out P
    python benchmarks/simulating.py --bundle B --profile P

Records every answer once with the policy `survey`, then measures plain decoding and other policies
interleaved, in an order that is shuffled for every answer; replays the recorded answers under those
policies with the profile; and compares tokens per second after the first token, task by task and
over all. Nothing of the measured runs goes into a prediction. On a machine that others use too,
`--clock cpu --threads 1` leaves out the time in which they had the processor, and `--remeasure`
profiles anew (quickly) before every pass and takes medians: both sides then see the same machine.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
from simulating_times import Table, Times, furthest_off, over_all, show
from sizing_rig import rows_of

import edgespec_runtime
from edgespec.latency import Costs, Curve, DeviceProfile
from edgespec.sizing import parse_policy
from edgespec_runtime.bench.data import Row
from edgespec_runtime.bench.measure import BASELINE, Settings, measure
from edgespec_runtime.bench.methods import Method
from edgespec_runtime.bench.traces import trace
from edgespec_runtime.profiling import measure as profiling
from edgespec_runtime.profiling.measuring.sizes import sizes_of
from edgespec_runtime.simulate.answers import gather
from edgespec_runtime.simulate.lines import Line, parse_line
from edgespec_runtime.simulate.replay import Conditions
from edgespec_runtime.simulate.simulation import PLAIN, fitting, simulate

SURVEY = "survey"
TABLES = ("median_ms", "p95_ms")
POLICIES = (
    "eagle2:nodes=3,depth=3,top_k=1",
    "eagle2:nodes=6,depth=6,top_k=1",
    "eagle2:nodes=12,depth=12,top_k=1",
    "eagle2:nodes=12,depth=6,top_k=2,beam_width=1",
    "eagle2:nodes=8,depth=3,top_k=4",
    "eagle2:nodes=16,depth=4,top_k=4",
    "rolling:nodes=16,steps=4,width=4",
    "sized",
)


def recorded(model: edgespec_runtime.Model, rows: Sequence[Row], temperature: float) -> list[Line]:
    """One run of every row under the recording policy."""
    method = Method(str(model.variant), "model", model.compressor)
    settings = Settings((SURVEY,), (temperature,), repeats=1)
    lines = []
    for turn in measure(model, model.bundle.path.name, [method], rows, settings):
        for side, runs in turn.runs.items():
            if side is not BASELINE:
                text = json.dumps(trace(turn, side, 1, runs[0]))
                lines.append(parse_line(text, turn.row.id))
    return lines


@dataclass
class Measured:
    """Runs of one policy on one answer."""

    tokens: tuple[int, ...]
    rounds: int
    ms: list[float]


def timed(
    model: edgespec_runtime.Model,
    rows: Sequence[Row],
    lines: Sequence[Line],
    policies: Sequence[str],
    passes: int,
    clock: Callable[[], float],
    before: Callable[[], None],
) -> list[dict[str, Measured]]:
    """Per row and policy, milliseconds after the first token in every pass but the first."""
    rng = random.Random(0)
    found: list[dict[str, Measured]] = [{} for _ in rows]
    for done in range(passes + 1):
        before()
        for index in rng.sample(range(len(rows)), len(rows)):
            row, line = rows[index], lines[index]
            for policy in rng.sample(list(policies), len(policies)):
                request = model.stream(
                    list(row.images), row.turns[0], policy=policy, seed=line.seed,
                    temperature=line.temperature,
                )  # fmt: skip
                tokens = [next(request).token]
                started = clock()
                tokens += [record.token for record in request]
                ms = (clock() - started) * 1e3
                rounds = request.stats.rounds
                of_row = found[index].setdefault(policy, Measured(tuple(tokens), rounds, []))
                of_row.ms += [ms] * (done > 0)
        print(f"\rpass {done} of {passes}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return found


def compared(
    lines: Sequence[Line],
    measured: Sequence[Mapping[str, Measured]],
    profile: DeviceProfile,
    policies: Sequence[str],
    passes: int,
) -> Table:
    """Every answer's measured runs beside its replays. A policy that learns has seen all answers
    ``passes`` times by then, as it has in the measured runs."""
    answers, pools = gather(fitting(lines, profile, "profile"))
    wanted = {name: parse_policy(name) for name in policies}
    table: Table = {}
    simulated = list(simulate([*answers] * (passes + 1), pools, wanted, Conditions(profile)))
    for line, real, one in zip(lines, measured, simulated[-len(lines) :], strict=True):
        of_task = table.setdefault(line.task, {})
        for name, replay in ((way.policy, found) for way, found in one.replays.items()):
            own = real[name]
            if own.tokens != line.tokens:
                sys.exit(f"NOT EXACT: {name} on {line.id}")
            if replay.rounds:
                of_task.setdefault(name, Times()).add(
                    Times(
                        replay.tokens_after_first,
                        statistics.median(own.ms),
                        replay.total_ms - replay.ttft_ms,
                        own.rounds,
                        len(replay.rounds),
                    )
                )
    return table


def remeasured(model: edgespec_runtime.Model) -> Costs:
    """What everything costs now."""
    sizes = sizes_of(model.manifest, quick=True, max_nodes=64, max_context=None)
    return profiling.measure(model, sizes, profiling.QUICK).costs


def middle(found: Sequence[Costs]) -> Costs:
    """Point by point the medians of several measurements."""

    def table(tables: Sequence[Any]) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(row) for row in np.median(tables, axis=0).tolist())

    def of(values: Sequence[Any]) -> Any:
        first = values[0]
        if isinstance(first, Curve):
            medians, tails = (table([getattr(v, name) for v in values]) for name in TABLES)
            return Curve(first.sizes, first.contexts, medians, tails)
        return None if first is None else type(first)(statistics.median(values))

    names = [item.name for item in fields(Costs)]
    return Costs(**{name: of([getattr(costs, name) for costs in found]) for name in names})


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--profile", type=Path, required=True)
    parser.add_argument("--policy", action="append", default=[])
    parser.add_argument("--task", action="append", default=[])
    parser.add_argument("--prompts", type=int, default=6, help="per task and set")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--remeasure", action="store_true")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    policies = tuple(arguments.policy) or POLICIES
    if arguments.clock == "cpu" and arguments.threads != 1:
        parser.error("--clock cpu adds up the time of all threads; use it with --threads 1")
    clock = process_time if arguments.clock == "cpu" else perf_counter
    model = edgespec_runtime.load(
        arguments.bundle, profile=arguments.profile, threads=arguments.threads
    )
    assert model.profile is not None
    rows = rows_of(arguments)
    lines = recorded(model, rows, arguments.temperature)
    costs: list[Costs] = []

    def before() -> None:
        if arguments.remeasure:
            costs.append(remeasured(model))

    measured = timed(model, rows, lines, (PLAIN, *policies), arguments.repeats, clock, before)
    profile = replace(model.profile, costs=middle(costs)) if costs else model.profile
    table = compared(lines, measured, profile, policies, arguments.repeats)
    for task, of_policy in sorted(table.items()):
        show(task, of_policy)
    whole = over_all(table)
    show("all tasks", whole)
    speed, speedup = furthest_off(whole)
    print(
        f"\nfurthest off over all tasks: {speed:.1%} in tokens per second, {speedup:.1%} in speedup"
    )
    if arguments.out:
        figures = {
            task: {name: times.as_json() for name, times in of.items()}
            for task, of in {**table, "all": whole}.items()
        }
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
