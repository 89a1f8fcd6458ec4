"""Training a small Llama on a target's answers: the tokens it computes on, its loss, its course.

Only tokens that occur in questions and answers are trained. The others keep the principal
components of the target's embedding, and a sample of them stands in every step's softmax, so that
the states learn to keep away from them: a step costs what some thousand tokens cost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

from benchmarks.peers.draft_answers import Answer
from benchmarks.peers.environments import say

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Course:
    """How long and how fast: AdamW, linear warm-up, then a cosine."""

    epochs: float = 12.0
    minutes: float | None = None
    """The course ends at this time at the latest, its cosine with it; None: after ``epochs``."""
    batch: int = 16
    """Answers a step."""
    rate: float = 2e-3
    warmup: int = 60
    floor: float = 0.02
    """Part of the rate that is left at the end."""
    decay: float = 0.05
    others: int = 1024
    """Untrained tokens in a step's softmax."""
    seed: int = 0
    dtype: str = "bfloat16"
    """Of products; weights, norms and the loss are float32."""
    threads: int = 2


@dataclass(frozen=True)
class Score:
    """How a draft follows answers, reading the target's own tokens."""

    agreement: float
    """Part of the answer tokens that are its most likely ones."""
    accepted: float
    """Tokens that would be accepted of a chain of ``DEPTH``, the mean over all places."""


DEPTH = 5
TOLD = 50
"""Steps from one line about the course to the next."""
RARE = 0.02
"""Alternatives of a lower probability are not taught."""


class Lesson:
    """Answers as tensors, in places of the vocabulary that is trained."""

    def __init__(self, answer: Answer, place_of: torch.Tensor) -> None:
        import torch

        self.prompt = len(answer.prompt)
        self.ids = place_of[torch.tensor([*answer.prompt, *answer.answer[:-1]])]
        self.likely = place_of[torch.tensor(answer.likely)]
        shares = torch.tensor(answer.shares)
        shares[:, 1:] *= shares[:, 1:] >= RARE
        shares = shares / shares.sum(-1, keepdim=True)
        shares[:, 0] += 1.0  # as much for the token itself as for the whole distribution
        self.shares = shares / 2


def used_ids(answers: Sequence[Answer]) -> list[int]:
    """Every id that questions, answers or likely alternatives hold, ascending."""
    found: set[int] = set()
    for answer in answers:
        found.update(answer.prompt, answer.answer)
        for ids, shares in zip(answer.likely, answer.shares, strict=True):
            found.update(token for token, share in zip(ids, shares, strict=True) if share >= RARE)
    return sorted(found)


class Trainer:
    """Trains ``model`` (a LlamaForCausalLM with tied embeddings) in place."""

    def __init__(self, model: Any, answers: Sequence[Answer], course: Course) -> None:
        import torch

        torch.manual_seed(course.seed)
        torch.set_num_threads(course.threads)
        self._model, self._course = model, course
        rows = model.get_input_embeddings().weight.detach()
        self._used = torch.tensor(used_ids(answers))
        place_of = torch.zeros(len(rows), dtype=torch.long)
        place_of[self._used] = torch.arange(len(self._used))
        unused = torch.ones(len(rows), dtype=torch.bool)
        unused[self._used] = False
        self._others = rows[unused]
        self._table = torch.nn.Parameter(rows[self._used].clone())
        self._lessons = [Lesson(answer, place_of) for answer in answers]
        self._body = model.model.train()
        matrices = [p for p in self._body.layers.parameters() if p.ndim > 1]
        vectors = [p for p in self._body.parameters() if p.ndim == 1]
        groups = [
            {"params": [*matrices, self._table], "weight_decay": course.decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self._optimiser = torch.optim.AdamW(groups, lr=course.rate, betas=(0.9, 0.98))
        self._trained = [p for group in groups for p in group["params"]]  # type: ignore[attr-defined]

    def run(self, held_out: Sequence[Answer] = ()) -> None:
        """The whole course; says now and then how it goes."""
        course, began = self._course, monotonic()
        steps = max(1, round(course.epochs * len(self._lessons) / course.batch))
        losses: list[float] = []
        for step, lessons in zip(range(steps), self._batches(), strict=False):
            minutes = (monotonic() - began) / 60
            done = max(step / steps, minutes / course.minutes if course.minutes else 0.0)
            if done >= 1.0:
                break
            for group in self._optimiser.param_groups:
                group["lr"] = course.rate * factor(step, done, course)
            losses.append(self._step(lessons))
            if (step + 1) % TOLD == 0:
                self._write()
                found = score(self._model, held_out[::2]) if held_out else None
                say(
                    f"step {step + 1} of {steps}, {minutes:.1f} min: loss "
                    f"{sum(losses) / len(losses):.3f}, {describe(found)}"
                )
                losses.clear()
        self._write()

    def _step(self, lessons: Sequence[Lesson]) -> float:
        import torch
        from torch.nn.functional import embedding
        from torch.nn.utils.rnn import pad_sequence

        course = self._course
        there = len(self._others)
        drawn = torch.randint(max(1, there), (course.others if there else 0,))
        likely = torch.cat([lesson.likely for lesson in lessons])
        shares = torch.cat([lesson.shares for lesson in lessons])
        ids = pad_sequence([lesson.ids for lesson in lessons], batch_first=True)
        with torch.autocast("cpu", getattr(torch, course.dtype), course.dtype != "float32"):
            states = self._body(inputs_embeds=embedding(ids, self._table), use_cache=False)[0]
            kept = [
                row[lesson.prompt - 1 : len(lesson.ids)]
                for row, lesson in zip(states, lessons, strict=True)
            ]
            logits = torch.cat(kept) @ torch.cat([self._table, self._others[drawn]]).T
        spoken = logits.float().log_softmax(-1).gather(-1, likely)
        loss = -(shares * spoken).sum(-1).mean()
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimiser.step()
        return float(loss.detach())

    def _batches(self) -> Iterator[list[Lesson]]:
        """All lessons in an order drawn anew for every epoch, without end."""
        import torch

        size = min(self._course.batch, len(self._lessons))
        while True:
            order = torch.randperm(len(self._lessons)).tolist()
            for start in range(0, len(order) - size + 1, size):
                yield [self._lessons[i] for i in order[start : start + size]]

    def _write(self) -> None:
        """Puts the trained rows into the model's own embedding, which is its head too."""
        rows = self._model.get_input_embeddings().weight
        rows.data[self._used] = self._table.detach()


def factor(step: int, done: float, course: Course) -> float:
    """Learning rate relative to the peak where ``done`` of the course (0..1) is over."""
    cosine = course.floor + (1 - course.floor) * 0.5 * (1 + math.cos(math.pi * done))
    return min(1.0, (step + 1) / course.warmup) * cosine


def score(model: Any, answers: Sequence[Answer]) -> Score:
    """How the model, with its whole vocabulary, follows the answers."""
    import torch

    was, matches, runs = model.training, 0, 0.0
    model.eval()
    with torch.inference_mode():
        for answer in answers:
            ids = torch.tensor([[*answer.prompt, *answer.answer[:-1]]])
            logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(answer.answer)).logits
            agree = (logits[0].argmax(-1) == torch.tensor(answer.answer)).float()
            matches += int(agree.sum())
            ahead = torch.cat([agree, torch.zeros(DEPTH - 1)]).unfold(0, DEPTH, 1)
            runs += float(ahead.cumprod(-1).sum())
    model.train(was)
    places = max(1, sum(len(answer.answer) for answer in answers))
    return Score(matches / places, runs / places)


def describe(found: Score | None) -> str:
    if found is None:
        return "nothing held out"
    return f"agreement {found.agreement:.3f}, {found.accepted:.2f} of {DEPTH} accepted"
