"""Ways to answer the same prompts, run in turn: the figures that hybrid operation is compared by.

Sides run interleaved in an order that is shuffled for every prompt, after a pass that warms up.
Every text is compared with plain decoding's.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sizing_rig import Speed

from edgespec_export.family import sample_folder
from edgespec_runtime import Model
from edgespec_runtime.bench.data import Row, read_sets, select
from edgespec_runtime.records import Generation

Figures = dict[str, Any]


def rows_of(given: argparse.Namespace) -> list[Row]:
    """Questions with one turn, of the family's own samples."""
    paths = [sample_folder() / f"{domain}.jsonl" for domain in ("in_domain", "out_of_domain")]
    return select([row for row in read_sets(paths) if len(row.turns) == 1], (), given.prompts)


class Sides:
    """Ways to answer the same prompts, run in turn."""

    def __init__(self, models: Mapping[str, Model], rows: Sequence[Row], tokens: int) -> None:
        self._models = models
        self._rows = rows
        self._tokens = tokens
        self.right: dict[str, tuple[int, ...]] = {}
        """What plain decoding says, by row."""
        self._rng = random.Random(0)
        self.different = 0
        """Answers that were not plain decoding's."""

    def run(self, passes: int, heard: Callable[[str, Generation], None]) -> dict[str, Speed]:
        """Speeds by side; ``heard`` is told every answer behind the first pass."""
        speeds = {side: Speed() for side in self._models}
        for number in range(passes + 1):
            for row in self._rows:
                sides = list(self._models)
                self._rng.shuffle(sides)
                for side in sides:
                    answer = self._answer(self._models[side], row)
                    self._compare(row, answer)
                    if number:
                        _add(speeds[side], row, answer)
                        heard(side, answer)
        return speeds

    def learn_right(self, local: Model) -> None:
        """Has ``local`` say what is right."""
        for row in self._rows:
            self.right[row.id] = self._answer(local, row, draft="none").token_ids

    def rows_longer_than(self, tokens: int) -> list[Row]:
        """Rows whose answer is long enough for something to happen in the middle."""
        return [row for row in self._rows if len(self.right[row.id]) > tokens]

    def _answer(self, model: Model, row: Row, **settings: Any) -> Generation:
        return model.generate(
            list(row.images), row.turns[0], max_new_tokens=self._tokens, **settings
        )

    def _compare(self, row: Row, answer: Generation) -> None:
        self.different += answer.token_ids != self.right[row.id]


def _add(speed: Speed, row: Row, answer: Generation) -> None:
    stats = answer.stats
    speed.tokens += len(answer.token_ids) - 1
    speed.rounds += stats.rounds
    speed.times.append(stats.total_ms - stats.ttft_ms)
    speed.whole.append(stats.total_ms)
    speed.per_prompt.setdefault(row.id, []).append(stats.total_ms - stats.ttft_ms)


def ignore(side: str, answer: Generation) -> None:
    """For runs of which the speeds are enough."""
