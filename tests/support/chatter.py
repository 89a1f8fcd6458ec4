"""Clients that ask one question after the other, and write down what they were told."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias
from unittest.mock import patch

from PIL.Image import Image

from edgespec.acceptance import Verdict
from edgespec.errors import RemoteError
from edgespec.tree import TokenTree
from edgespec_runtime import Model
from edgespec_runtime.remote.checks import BadReply
from edgespec_runtime.remote.session import Session
from edgespec_runtime.wire import verifier_pb2 as pb
from tests.support.checkpoints import picture, words
from tests.support.history import Commit, Tokens, Told

Reply: TypeAlias = "pb.OpenReply | pb.VerifyReply"


@dataclass(frozen=True)
class Question:
    """A request. Its answer is a function of it, whoever computes it."""

    key: str
    prompt: str
    image: Image | None
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int

    def settings(self) -> dict[str, Any]:
        """Arguments of ``Model.stream``."""
        return {
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
        }


def questions(
    count: int, *, image_size: int = 32, tokens: int = 96, seed: int = 0
) -> list[Question]:
    """Greedy and sampled, with a picture and without; some share prompt and picture, so that
    servers find rows of others to use again."""
    made = []
    for number in range(count):
        shared = seed + number - number % 4 if number % 3 == 0 else seed + number
        greedy = number % 2 == 0
        made.append(
            Question(
                key=f"q{number}",
                prompt=words(4 + shared % 40, shared),
                image=picture(image_size, shared) if number % 3 == 0 else None,
                max_new_tokens=tokens // 2 + (number * 7) % (tokens + 1),
                temperature=0.0 if greedy else (0.7, 1.0, 1.5)[number % 3],
                top_p=1.0 if greedy or number % 4 == 1 else 0.95,
                seed=number,
            )
        )
    return made


def oracle(model: Model, asked: Sequence[Question]) -> dict[str, Tokens]:
    """Every question's answer by plain decoding on this machine."""
    return {
        question.key: model.generate(
            question.image, question.prompt, draft="none", **question.settings()
        ).token_ids
        for question in asked
    }


class Ledger:
    """What all clients wrote down."""

    def __init__(self) -> None:
        self.commits: list[Commit] = []
        self.told: dict[str, Told] = {}
        self.errors: list[str] = []
        """What users were told in place of text."""
        self.counts: Counter[str] = Counter()
        """What clients met on the way: retries, reopens, ..."""
        self.waits_s: list[float] = []
        """How long every round took that was asked for, its retries and reopens included."""
        self.tokens = 0
        """Committed so far."""
        self._lock = threading.Lock()
        self._own = threading.local()

    def begin(self, answer: str) -> None:
        """What this thread commits from here on is of ``answer``."""
        self._own.answer = answer

    def commit(self, session: Session, verdict: Verdict, replayed: bool) -> None:
        """Writes down what a session has just committed."""
        made = Commit(
            answer=self._own.answer,
            session=session.id.hex(),
            epoch=session.epoch,
            round=session._round,
            committed_len=len(session.tokens),
            tokens=verdict.tokens,
            ended_s=time.monotonic(),
        )
        with self._lock:
            if verdict.tokens:
                self.commits.append(made)
            self.tokens += len(verdict.tokens)
            self.counts["replays"] += replayed

    def count(self, **counts: int) -> None:
        with self._lock:
            self.counts.update(counts)

    def waited(self, seconds: float) -> None:
        with self._lock:
            self.waits_s.append(seconds)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Every session of this process commits here as well, meanwhile."""
        opened, verified = Session.opened, Session.verified

        def hear_open(session: Session, reply: pb.OpenReply, *rest: Any) -> Verdict:
            return self._hear(session, reply, lambda: opened(session, reply, *rest))

        def hear_round(session: Session, tree: TokenTree, reply: pb.VerifyReply, *rest: Any) -> Any:
            return self._hear(session, reply, lambda: verified(session, tree, reply, *rest))

        with (
            patch.object(Session, "opened", hear_open),
            patch.object(Session, "verified", hear_round),
        ):
            yield

    def _hear(self, session: Session, reply: Reply, take: Callable[[], Verdict]) -> Verdict:
        try:
            verdict = take()
        except BadReply:
            self.count(rejected=1)
            raise
        self.commit(session, verdict, reply.replayed)
        return verdict


class Chatter(threading.Thread):
    """One client: asks until it is told to stop, and ends the answer at hand."""

    def __init__(
        self, name: str, model: Model, asked: Sequence[Question], ledger: Ledger, *, seed: int
    ) -> None:
        super().__init__(name=name)
        self.error: Exception | None = None
        """What is no fault of the network's."""
        self._model = model
        self._asked = asked
        self._ledger = ledger
        self._rng = random.Random(seed)
        self._stopped = threading.Event()

    def stop(self) -> None:
        self._stopped.set()

    def run(self) -> None:
        try:
            number = 0
            while not self._stopped.is_set():
                self._ask(f"{self.name}.{number}", self._rng.choice(self._asked))
                number += 1
        except Exception as error:  # a thread's error is told by whoever started it
            self.error = error

    def _ask(self, answer: str, question: Question) -> None:
        ledger = self._ledger
        ledger.begin(answer)
        tokens: list[int] = []
        request = self._model.stream(question.image, question.prompt, **question.settings())
        request.listen(lambda outcome: ledger.waited(outcome.verify_ms / 1e3))
        ended = False
        try:
            tokens += (record.token for record in request)
            ended = True
        except RemoteError as error:
            ledger.errors.append(f"{answer}: {error}")
        ledger.told[answer] = Told(question.key, tuple(tokens), ended)
        account = request.remote or {}
        ledger.count(
            answers=1,
            **{name: account[name] for name in ("rounds", "streamed", "reopens", "retries")},
        )
