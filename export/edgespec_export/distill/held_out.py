"""Questions kept back: what drafts in training would earn on the target's answers to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgespec.errors import InputError
from edgespec_export.distill.answers import Answers, Asked, teachable
from edgespec_export.distill.evaluate import Earned, evaluate
from edgespec_export.distill.teacher import Sample
from edgespec_export.questions import Question


@dataclass(frozen=True)
class HeldOut:
    """Divided among the processes; without questions nothing is evaluated."""

    questions: Sequence[Question]
    batch: int
    """Questions studied at a time."""
    accelerator: Any

    def answered(self, answers: Answers) -> Asked:
        """This process's share of the questions; their answers are always greedy."""
        rank, workers = self.accelerator.process_index, self.accelerator.num_processes
        mine = self.questions[rank::workers]
        given = answers.given(mine, temperature=0.0)
        return [(q, a) for q, a in zip(mine, given, strict=True) if teachable(a)]

    def earned(
        self,
        students: Mapping[str, Any],
        asked: Asked,
        study: Callable[[Asked], list[Sample]],
    ) -> dict[str, Earned]:
        """Of every student, over all processes' shares; ``asked``: this one's, ``study``: what the
        target shows of them. They are studied anew each time: kept, their logits would fill the
        memory.

        Raises InputError where no answer has a token to draft."""
        earned = dict.fromkeys(students, Earned())
        if not self.questions:
            return earned
        for start in range(0, len(asked), self.batch):
            samples = study(asked[start : start + self.batch])
            for name, student in students.items():
                earned[name] += evaluate(student, samples)
        if self.accelerator.num_processes > 1:
            from accelerate.utils import gather_object

            parts = gather_object([earned])
            earned = {name: sum((p[name] for p in parts), Earned()) for name in earned}
        if not all(e.tokens for e in earned.values()):
            raise InputError(
                "the target ends its answers to all held-out questions at once; there is nothing "
                "to evaluate: hold out questions with longer answers"
            )
        return earned
