"""The engine's one thread: verifications as they come, and prefills a chunk at a time in between.

Whenever the engine is free it takes every verification that waits, as many as one call serves;
nothing waits for a batch to fill. After each such call prefills run, the oldest first, a chunk at a
time and for as long as that call took: neither kind of work starves.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Generic, Protocol, TypeVar

from edgespec.tree import TokenTree
from edgespec_runtime.engines.base import Array, Ask, StepPool, StepSession

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Asker(Protocol[T_co]):
    """Who has trees verified; called on the engine's thread."""

    @property
    def session(self) -> StepSession:
        """Whose cache its rows go to, one of the scheduler's pool."""

    def ask(self, tree: TokenTree) -> Ask:
        """What verifying ``tree`` needs of the engine; changes nothing."""

    def settle(self, tree: TokenTree, outputs: Sequence[Array]) -> T_co:
        """Commits what the engine's answer accepts."""

    def spoil(self) -> None:
        """Learns that a verification failed."""


@dataclass(frozen=True)
class Done(Generic[T]):
    """A finished piece of work, and how long it waited and ran."""

    value: T
    queue_us: int
    compute_us: int


@dataclass(eq=False)
class _Verification:
    asker: Asker[Any]
    tree: TokenTree
    came: float = field(default_factory=perf_counter)
    done: Future[Done[Any]] = field(default_factory=Future)

    def __post_init__(self) -> None:
        self.done.set_running_or_notify_cancel()  # what was asked for is done, wanted or not

    def fail(self, error: Exception) -> None:
        self.asker.spoil()
        self.done.set_exception(error)


@dataclass(eq=False)
class _Steps:
    """Work of several steps; the last item is its result."""

    steps: Iterator[Any]
    came: float = field(default_factory=perf_counter)
    ran: float = 0.0
    last: Any = None
    done: Future[Done[Any]] = field(default_factory=Future)

    def __post_init__(self) -> None:
        self.done.set_running_or_notify_cancel()


class Scheduler:
    """Futures are resolved with ``Done``, or with what the work raised."""

    def __init__(self, pool: StepPool, width: int) -> None:
        """``width``: most verifications of one engine call, where the pool takes so many."""
        self.batches = 0
        """Engine calls that verified, so far."""
        self._pool = pool
        self._width = min(width, pool.batch)
        self._rounds: deque[_Verification] = deque()
        self._long: deque[_Steps] = deque()
        self._stopped = False
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @property
    def queued(self) -> int:
        """Pieces of work that wait."""
        return len(self._rounds) + len(self._long)

    def verify(self, asker: Asker[T], tree: TokenTree) -> Future[Done[T]]:
        """One round, settled."""
        asked = _Verification(asker, tree)
        with self._wake:
            self._rounds.append(asked)
            self._wake.notify()
        return asked.done

    def steps(self, steps: Iterator[Any]) -> Future[Done[Any]]:
        """Longer work, other than verifications: its result is the last item of ``steps``."""
        asked = _Steps(steps)
        with self._wake:
            self._long.append(asked)
            self._wake.notify()
        return asked.done

    def stop(self) -> None:
        """Finishes what waits and ends the thread."""
        with self._wake:
            self._stopped = True
            self._wake.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._rounds or self._long or self._stopped)
                most = min(self._width, len(self._rounds))
                batch = [self._rounds.popleft() for _ in range(most)]
                if not batch and not self._long:
                    return
            started = perf_counter()
            if batch:
                self._verify(batch)
            self._prefill(perf_counter() - started)

    def _prefill(self, seconds: float) -> None:
        """A chunk of what waits longest, and more until ``seconds`` are over."""
        end = perf_counter() + seconds
        while self._long:  # only this thread takes from it
            self._advance(self._long[0])
            if perf_counter() >= end:
                return

    def _verify(self, batch: list[_Verification]) -> None:
        started = perf_counter()
        try:
            asks = [(asked.asker.session, asked.asker.ask(asked.tree)) for asked in batch]
            self.batches += 1
            outputs = self._pool.step(asks)
        except Exception as error:
            if len(batch) == 1:
                batch[0].fail(error)
                return
            for asked in batch:  # one of them spoils the call: each for itself
                self._verify([asked])
            return
        for asked, output in zip(batch, outputs, strict=True):
            try:
                settled = asked.asker.settle(asked.tree, output)
            except Exception as error:
                asked.fail(error)
            else:
                ran = perf_counter() - started
                asked.done.set_result(Done(settled, _us(started - asked.came), _us(ran)))

    def _advance(self, long: _Steps) -> None:
        started = perf_counter()
        try:
            long.last = next(long.steps)
            long.ran += perf_counter() - started
            return
        except StopIteration:
            waited = perf_counter() - long.came - long.ran
            long.done.set_result(Done(long.last, _us(waited), _us(long.ran)))
        except Exception as error:
            long.done.set_exception(error)
        self._long.popleft()


def _us(seconds: float) -> int:
    return max(round(seconds * 1e6), 0)
