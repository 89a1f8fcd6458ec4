"""The target's own answers, given pool by pool when they are first needed; nothing is stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgespec.errors import InputError
from edgespec_export.distill.course import Course
from edgespec_export.distill.settings import Settings
from edgespec_export.distill.teacher import Teacher
from edgespec_export.questions import Question

Answer = NDArray[np.int32]
Asked = Sequence[tuple[Question, Answer]]


class Answers:
    """Which questions a step takes, and what the target says to them.

    Answers depend on (seed, pool, number of processes) alone: the members of a pool are fixed and
    answered together, so that a resumed run hears what an uninterrupted one did.
    """

    def __init__(
        self, teacher: Teacher, questions: Sequence[Question], settings: Settings, accelerator: Any
    ) -> None:
        self._teacher, self._questions, self._settings = teacher, questions, settings
        self._accelerator = accelerator
        self._course = Course(len(questions), settings.batch, settings.pool, settings.seed)
        self._pools: dict[int, dict[int, Answer]] = {}

    def step(self, step: int) -> list[tuple[Question, Answer]]:
        """The questions of a step, without those whose answer leaves nothing to draft."""
        pool, chosen = self._course.step(step)
        answers = self._pool(pool)
        return [(self._questions[i], answers[i]) for i in chosen if teachable(answers[i])]

    def given(
        self, questions: Sequence[Question], temperature: float, seed: int = 0
    ) -> list[Answer]:
        """Answers of any questions, a pool's worth at a time."""
        said: list[Answer] = []
        settings = self._settings
        for start in range(0, len(questions), settings.pool):
            some = questions[start : start + settings.pool]
            limit, draw = settings.answer_tokens, settings.seed * 7919 + seed
            rows = self._teacher.answer(some, limit, temperature, draw)
            said += [np.asarray(row, dtype=np.int32) for row in rows]
        return said

    def _pool(self, pool: int) -> dict[int, Answer]:
        if pool not in self._pools:
            members = self._course.members(pool)
            rank, workers = self._accelerator.process_index, self._accelerator.num_processes
            mine = members[rank::workers]
            temperature = self._settings.answer_temperature
            said = self.given([self._questions[i] for i in mine], temperature, seed=pool)
            known = list(zip(mine, said, strict=True))
            if workers > 1:
                from accelerate.utils import gather_object

                known = gather_object(known)
            if not any(teachable(answer) for _, answer in known):
                raise InputError(
                    f"the target ends its answer at once to all {len(known)} questions from "
                    f"'{self._questions[members[0]].prompt[:60]}' on; there is nothing to learn: "
                    "ask for longer answers"
                )
            self._pools[pool] = dict(known)
        return self._pools[pool]


def teachable(answer: Answer) -> bool:
    """Whether an answer has a token to draft: the first one is the prompt's own."""
    return len(answer) > 1
