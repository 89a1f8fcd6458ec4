"""Rounds over all contenders in turn: every prompt by every one of them, in an order that always
changes, so that a machine that slows down does so for all alike. Only one computes at a time.
"""

from __future__ import annotations

import json
import os
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.contenders import Contender
from benchmarks.peers.environments import Skipped, say
from benchmarks.peers.models import Models, environment
from benchmarks.peers.process import Worker
from benchmarks.peers.prompts import Question

TIMEOUT_S = 900.0
WARM_TOKENS = 8
SPARE = 0.15
"""Part of the memory that is kept free: above it, the worker that has waited longest is ended."""


@dataclass(frozen=True)
class Settings:
    """How much is measured."""

    threads: int = 2
    new: int = 128
    """Tokens of an answer at most."""
    repeats: int = 5
    starts: int = 2
    """Times that import and loading are clocked; the fastest counts, with files in memory."""
    seed: int = 0


@dataclass
class Result:
    """What a contender did; of a prompt, one entry per repeat."""

    label: str
    starts: list[dict[str, float]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    peak_mb: float = 0.0
    first_s: dict[str, list[float]] = field(default_factory=dict)
    """Seconds to the first token: the prompt's."""
    decode_s: dict[str, list[float]] = field(default_factory=dict)
    """Seconds from the first tokens to the last one,"""
    decoded: dict[str, int] = field(default_factory=dict)
    """and the tokens that came in them."""
    tokens: dict[str, list[int]] = field(default_factory=dict)
    skipped: str = ""

    @property
    def label_parts(self) -> tuple[str, str, str]:
        peer, precision, mode = self.label.split(":")
        return peer, precision, mode

    def add(self, question: str, answer: dict[str, Any]) -> None:
        """One answer of the worker."""
        times: list[float] = answer["times"]
        self.peak_mb = max(self.peak_mb, answer["peak_mb"])
        at_first = times.count(times[0])
        self.first_s.setdefault(question, []).append(times[0])
        self.decode_s.setdefault(question, []).append(times[-1] - times[0])
        self.decoded[question] = len(times) - at_first
        self.tokens[question] = answer["tokens"]

    @property
    def tokens_per_s(self) -> float:
        """Decoded tokens of all prompts by their median times."""
        seconds = sum(statistics.median(times) for times in self.decode_s.values())
        return sum(self.decoded.values()) / seconds if seconds else 0.0

    @property
    def best_tokens_per_s(self) -> float:
        """The same by their shortest times."""
        seconds = sum(min(times) for times in self.decode_s.values())
        return sum(self.decoded.values()) / seconds if seconds else 0.0

    @property
    def whole_tokens_per_s(self) -> float:
        """All tokens, prompts' time included."""
        seconds = sum(
            statistics.median(a + b for a, b in zip(self.first_s[q], self.decode_s[q], strict=True))
            for q in self.first_s
        )
        return sum(map(len, self.tokens.values())) / seconds if seconds else 0.0


class Stable:
    """Workers by contender: started when first asked for, ended where memory runs short."""

    def __init__(self, models: Models, settings: Settings, logs: Path) -> None:
        self._models, self._settings, self._logs = models, settings, logs
        self._workers: dict[Contender, Worker] = {}

    def __enter__(self) -> Stable:
        return self

    def __exit__(self, *_: object) -> None:
        for contender in list(self._workers):
            self.drop(contender)

    def get(self, contender: Contender, result: Result) -> Worker:
        """The contender's worker. Raises Skipped."""
        worker = self._workers.pop(contender, None)
        if worker is None:
            while self._workers and free_share() < SPARE:
                self.drop(next(iter(self._workers)))
            worker = self._start(contender)
            ready = worker.ready
            result.versions = ready.pop("versions", result.versions)
            result.starts.append(ready)
        self._workers[contender] = worker  # at the end of the row
        return worker

    def drop(self, contender: Contender) -> None:
        """Ends the contender's worker, if it runs."""
        worker = self._workers.pop(contender, None)
        if worker is not None:
            worker.close()

    def _start(self, contender: Contender) -> Worker:
        models, peer = self._models, contender.peer
        python = models.environments.python(peer.name)
        target, drafted = models.target(contender), models.drafted(contender)
        job = {
            "checkpoint": models.checkpoint,
            "model": target,
            "precision": contender.precision,
            "mode": contender.mode,
            "threads": self._settings.threads,
            "draft": models.draft,
            "draft_model": drafted,
        }
        threads = str(self._settings.threads)
        variables = {**environment(peer.name), "OMP_NUM_THREADS": threads}
        command = [str(python), str(peer.script), "serve", json.dumps(job, default=as_path)]
        log = self._logs / f"{contender.label.replace(':', '-')}.log"
        return Worker(command, variables, log, TIMEOUT_S)


def as_path(value: object) -> str | None:
    return None if value is None else str(value)


def measure(
    wanted: Sequence[Contender],
    models: Models,
    questions: Sequence[Question],
    eos: Sequence[int],
    settings: Settings,
    logs: Path,
) -> list[Result]:
    """Starts everyone, warms them up, and runs the rounds. One that fails says why, and the others
    go on."""
    results = {contender: Result(contender.label) for contender in wanted}
    order = random.Random(settings.seed)

    def attempt(contender: Contender, work: Callable[[Worker, Result], None]) -> None:
        result = results[contender]
        if result.skipped:
            return
        try:
            work(stable.get(contender, result), result)
        except Skipped as reason:
            result.skipped = str(reason)
            say(f"{contender.label} is left out: {reason}")
            stable.drop(contender)

    with Stable(models, settings, logs) as stable:
        for contender in wanted:
            for start in range(settings.starts):
                attempt(contender, lambda worker, _: _warm(worker, questions, eos))
                if start + 1 < settings.starts:
                    stable.drop(contender)
        for number in range(settings.repeats):
            say(f"round {number + 1} of {settings.repeats}, load {os.getloadavg()[0]:.1f}")
            for question in questions:
                for contender in order.sample(wanted, len(wanted)):
                    attempt(
                        contender,
                        lambda worker, result, question=question: result.add(  # type: ignore[misc]
                            question.name, _answered(worker, question, settings.new, eos)
                        ),
                    )
    return list(results.values())


def _warm(worker: Worker, questions: Sequence[Question], eos: Sequence[int]) -> None:
    """By the last question: OpenVINO keeps what it computed for one prompt, and begins the next
    where the two part; the first question comes next."""
    _answered(worker, questions[-1], WARM_TOKENS, eos)


def _answered(worker: Worker, question: Question, new: int, eos: Sequence[int]) -> dict[str, Any]:
    answer = worker.run(question.ids, new, eos, question.picture)
    if not answer["tokens"]:
        raise Skipped(f"it answered '{question.name}' with nothing")
    return answer


def free_share() -> float:
    """Part of the memory that is available; 1 where nothing tells."""
    file = Path("/proc/meminfo")
    if not file.is_file():
        return 1.0
    facts = dict(line.split(":") for line in file.read_text().splitlines())
    kilobytes = {name: int(facts[name].split()[0]) for name in ("MemAvailable", "MemTotal")}
    return kilobytes["MemAvailable"] / kilobytes["MemTotal"]


def as_json(results: Sequence[Result]) -> Iterator[dict[str, Any]]:
    """Everything of every contender."""
    for result in results:
        peer, precision, mode = result.label_parts
        yield {
            "peer": peer,
            "precision": precision,
            "mode": mode,
            "tokens_per_s": result.tokens_per_s,
            "best_tokens_per_s": result.best_tokens_per_s,
            "whole_tokens_per_s": result.whole_tokens_per_s,
            **asdict(result),
        }
