"""Which questions a distillation asks, and when."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgespec.errors import ConfigError
from edgespec_export.questions import Question

HELD_OUT_SHARE, HELD_OUT_MOST = 0.05, 48
"""What is put aside for evaluation where no file is given."""


def split_questions(
    questions: Sequence[Question], held_out: Sequence[Question]
) -> tuple[list[Question], list[Question]]:
    """(to learn, to evaluate): where nothing is held out, the last 5 %, at least 1 and at most 48.

    Raises ConfigError where nothing is left to learn from.
    """
    if held_out:
        return list(questions), list(held_out)
    if len(questions) < 2:
        raise ConfigError("one question cannot be learnt and held out as well; give --held-out")
    count = min(HELD_OUT_MOST, max(1, round(HELD_OUT_SHARE * len(questions))))
    return list(questions[:-count]), list(questions[-count:])


def digest_of(questions: Sequence[Question]) -> str:
    """sha256 over prompts and picture names, which a resumed run must find as they were."""
    rows = [(q.image.name if q.image else None, q.prompt) for q in questions]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


@dataclass(frozen=True)
class Course:
    """Which questions each step takes: a function of (seed, step) alone.

    Questions are taught in pools of fixed members, whose answers the target gives together; pools
    and the questions in them are shuffled anew every epoch.
    """

    count: int
    batch: int
    pool: int
    seed: int

    @property
    def pools(self) -> int:
        return max(1, self.count // self.pool)

    def members(self, pool: int) -> range:
        """Questions of a pool; the last pool takes the remainder as well."""
        end = self.count if pool + 1 == self.pools else (pool + 1) * self.pool
        return range(pool * self.pool, end)

    def step(self, step: int) -> tuple[int, list[int]]:
        """(pool, questions) of a step."""
        steps = [-(-len(self.members(pool)) // self.batch) for pool in range(self.pools)]
        epoch, left = divmod(step, sum(steps))
        for pool in np.random.default_rng([self.seed, 1, epoch]).permutation(self.pools).tolist():
            if left < steps[pool]:
                members = self.members(pool)
                order = np.random.default_rng([self.seed, 2, epoch, pool]).permutation(members)
                return pool, order[left * self.batch : (left + 1) * self.batch].tolist()
            left -= steps[pool]
        raise AssertionError("a step beyond its epoch")
