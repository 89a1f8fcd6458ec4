"""What the figures of sizing are measured on: sides that answer the same prompts in turn.

All sides run interleaved in one process, in an order that is shuffled for every prompt; the first
pass over all prompts warms up and is where sizing learns. Speeds are tokens after the first by time
after the first, the draft's prompt included. Every text is compared with plain decoding's.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import edgespec_runtime
from edgespec_export.family import sample_folder
from edgespec_runtime.bench.data import Row, read_sets, select


@dataclass
class Speed:
    """Sums of one side on one task."""

    tokens: int = 0
    rounds: int = 0
    times: list[float] = field(default_factory=list)
    """After the first token, of every answer."""
    whole: list[float] = field(default_factory=list)
    """From the call, of every answer."""
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


def run_sides(
    model: edgespec_runtime.Model,
    rows: Sequence[Row],
    sides: dict[str, dict[str, Any]],
    passes: int,
    temperature: float = 0.0,
    before: Callable[[int, int], None] = lambda done, total: None,
    warm_up: bool = True,
) -> Table:
    """``passes`` counted passes over all rows in random order, every side on each, behind one
    that is not; without ``warm_up`` just the engine is warmed, by plain decoding."""
    rng, table, texts = random.Random(0), Table(), dict[str, tuple[int, ...]]()
    first = 0 if warm_up else 1
    total, done = (passes + 1 - first) * len(rows), 0
    for row in rows[:5]:
        model.generate(list(row.images), row.turns[0], policy="plain")
    for counted in range(first, passes + 1):
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
                    speed.times.append(times[-1])
                    speed.whole.append(stats.total_ms)
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
