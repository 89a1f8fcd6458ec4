"""Sizing by measured cost against fixed settings and other policies, on this machine.

    python benchmarks/sizing.py sweep --bundle B --profile P      every fixed setting, per task
    python benchmarks/sizing.py named --bundle B --profile P      every policy by name, mixed tasks

All sides run interleaved in one process, in an order that is shuffled for every prompt; the first
pass over all prompts warms up and is where sizing learns. Speeds are tokens after the first by time
after the first, the draft's prompt included. Every text is compared with plain decoding's.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import edgespec_runtime
from edgespec_export.family import sample_folder
from edgespec_runtime.bench.data import Row, read_sets, select

DEPTHS = (1, 2, 3, 4, 6, 9, 12, 18, 24)
NAMED = (
    "eagle2",
    "rolling",
)


@dataclass
class Speed:
    """Sums of one side on one task."""

    tokens: int = 0
    rounds: int = 0
    ms: float = 0.0
    per_prompt: dict[str, list[float]] = field(default_factory=dict)

    @property
    def per_s(self) -> float:
        """Tokens per second over all prompts, each with its median time."""
        ms = sum(statistics.median(times) for times in self.per_prompt.values())
        return 1e3 * self.tokens / self.passes / ms if ms else 0.0

    @property
    def passes(self) -> int:
        return max(len(times) for times in self.per_prompt.values())


Table = dict[str, dict[str, Speed]]  # task -> side -> speed


def sweep_settings() -> list[str]:
    """Fixed settings: chains of every depth without and with siblings, beams of 2 and 4."""
    found = [f"eagle2:nodes={d},depth={d},top_k=1" for d in DEPTHS]
    found += [f"eagle2:nodes={2 * d},depth={d},top_k=2,beam_width=1" for d in (2, 3, 6, 9, 12)]
    found += [
        f"eagle2:nodes={n},depth={d},top_k={w}"
        for w in (2, 4)
        for d in (2, 3, 4, 6)
        for n in (w * d // 2, w * d)
    ]
    return found


def run_sides(
    model: edgespec_runtime.Model,
    rows: Sequence[Row],
    sides: dict[str, dict[str, Any]],
    passes: int,
    temperature: float = 0.0,
    before: Callable[[int, int], None] = lambda done, total: None,
) -> Table:
    """``passes`` counted passes over all rows in random order, every side on each."""
    rng, table, texts = random.Random(0), Table(), dict[str, tuple[int, ...]]()
    total, done = (passes + 1) * len(rows), 0
    for counted in range(passes + 1):
        for row in rng.sample(list(rows), len(rows)):
            before(done, total)
            done += 1
            for side in rng.sample(list(sides), len(sides)):
                settings = {"temperature": temperature, "seed": hash(row.id) % 1000}
                answer = model.generate(list(row.images), row.turns[0], **settings, **sides[side])
                key = f"{row.domain}/{row.id}"
                if texts.setdefault(key, answer.token_ids) != answer.token_ids:
                    sys.exit(f"NOT EXACT: {side} on {key}")
                if counted:
                    speed = table.setdefault(row.task, {}).setdefault(side, Speed())
                    stats = answer.stats
                    speed.tokens += len(answer.token_ids) - 1
                    speed.rounds += stats.rounds
                    times = speed.per_prompt.setdefault(key, [])
                    times.append(stats.total_ms - stats.ttft_ms)
            print(f"\r{done}/{total}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return table


def mixed(table: Table) -> dict[str, float]:
    """Tokens per second of every side over all tasks."""
    sides = next(iter(table.values()))
    sums = {}
    for side in sides:
        tokens = sum(of[side].tokens / of[side].passes for of in table.values())
        ms = sum(
            statistics.median(times)
            for of in table.values()
            for times in of[side].per_prompt.values()
        )
        sums[side] = 1e3 * tokens / ms
    return sums


def rows_of(arguments: argparse.Namespace) -> list[Row]:
    paths = [sample_folder() / f"{domain}.jsonl" for domain in ("in_domain", "out_of_domain")]
    single = [row for row in read_sets(paths) if len(row.turns) == 1]
    return select(single, arguments.task, arguments.prompts)


def sweep(arguments: argparse.Namespace) -> dict[str, Any]:
    """The rule against every fixed setting, task by task and over the mix."""
    model = edgespec_runtime.load(arguments.bundle, profile=arguments.profile)
    sides = {name: {"policy": name} for name in ("plain", "sized", *sweep_settings())}
    table = run_sides(model, rows_of(arguments), sides, arguments.passes)
    report: dict[str, Any] = {"tasks": {}}
    print("| task | plain tok/s | sized | best fixed | which | sized / best |")
    print("|---|--:|--:|--:|---|--:|")
    for task, of in sorted(table.items()):
        speeds = {side: speed.per_s for side, speed in of.items()}
        best = max((s for s in speeds if s != "sized"), key=speeds.__getitem__)
        ratio = speeds["sized"] / speeds[best]
        report["tasks"][task] = {"speeds": speeds, "best": best, "ratio": ratio}
        print(
            f"| {task} | {speeds['plain']:.0f} | {speeds['sized']:.0f} | {speeds[best]:.0f} | "
            f"{best} | {ratio:.3f} |"
        )
    whole = mixed(table)
    best = max((s for s in whole if s != "sized"), key=whole.__getitem__)
    report["mixed"] = {"speeds": whole, "best": best, "ratio": whole["sized"] / whole[best]}
    print(
        f"| mixed | {whole['plain']:.0f} | {whole['sized']:.0f} | {whole[best]:.0f} | {best} | "
        f"{report['mixed']['ratio']:.3f} |"
    )
    report["experience"] = model.experience.as_json()
    return report


def named(arguments: argparse.Namespace) -> dict[str, Any]:
    """The rule against every policy by name."""
    model = edgespec_runtime.load(arguments.bundle, profile=arguments.profile)
    sides = {name: {"policy": name} for name in ("plain", "sized", *NAMED)}
    table = run_sides(model, rows_of(arguments), sides, arguments.passes, arguments.temperature)
    whole = mixed(table)
    print("| policy | tok/s | over plain | sized over it |\n|---|--:|--:|--:|")
    for side, speed in sorted(whole.items(), key=lambda item: -item[1]):
        print(
            f"| {side} | {speed:.0f} | {speed / whole['plain']:.2f} | "
            f"{whole['sized'] / speed:.3f} |"
        )
    return {"speeds": whole, "experience": model.experience.as_json()}


COMMANDS = {"sweep": sweep, "named": named}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--task", action="append", default=[])
    parser.add_argument("--prompts", type=int, default=8, help="per task and set")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    report = COMMANDS[arguments.command](arguments)
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
