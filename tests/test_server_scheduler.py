"""The engine's thread: what runs together, what runs in between, and what fails alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from edgespec.tree import EMPTY, TokenTree
from edgespec_runtime.engines.base import Ask, StepSession
from edgespec_runtime.kv import KVCache
from edgespec_runtime.server import scheduler as scheduler_module
from edgespec_runtime.server.scheduler import Done, Scheduler

LIMIT_S = 120.0


class Pool:
    """Records which sessions every call served; each takes ``took()``, and ``bad`` ones fail the
    whole call."""

    engine_s = 0.0

    def __init__(
        self, batch: int, bad: Sequence[int] = (), took: Callable[[], None] = lambda: None
    ) -> None:
        self.batch = batch
        self._took = took
        self.bad = set(bad)
        self.calls: list[Any] = []

    def open(self, cache: KVCache, outputs: tuple[str, ...] = ("logits",)) -> StepSession:
        raise NotImplementedError

    def step(self, asks: Sequence[tuple[StepSession, Ask]]) -> list[list[Any]]:
        names: list[Any] = [session for session, _ in asks]
        self.calls.append(names)
        self._took()
        if self.bad.intersection(names):
            raise RuntimeError(f"broken: {names}")
        return [[np.full(1, name)] for name in names]


class Asker:
    def __init__(self, name: Any, *, settles: bool = True) -> None:
        self.session, self._settles = name, settles
        self.spoilt = False

    def ask(self, tree: TokenTree) -> Ask:
        return Ask(np.empty((0, 0), np.float32), [], np.empty((0, 0), np.bool_))

    def settle(self, tree: TokenTree, outputs: Sequence[Any]) -> int:
        if not self._settles:
            raise ValueError("not finite")
        return int(outputs[0][0])

    def spoil(self) -> None:
        self.spoilt = True


@contextmanager
def scheduler(pool: Pool, width: int) -> Iterator[tuple[Scheduler, threading.Event]]:
    """With an engine that is held until the event is set."""
    running, held, go = Scheduler(pool, width), threading.Event(), threading.Event()

    def hold() -> Iterator[None]:
        held.set()
        go.wait()
        yield None

    running.steps(hold())
    held.wait()
    try:
        yield running, go
    finally:
        go.set()
        running.stop()


def value(future: Future[Done[Any]]) -> Any:
    return future.result(LIMIT_S).value


class Clock:
    """What the engine's thread takes for the time: it goes on when told to, and nothing that the
    machine does takes any."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._now = 0.0
        patch.setattr(scheduler_module, "perf_counter", lambda: self._now)

    def passes(self, seconds: float) -> None:
        self._now += seconds


def test_all_that_waits_runs_together_as_far_as_it_can() -> None:
    pool = Pool(batch=4)
    with scheduler(pool, 3) as (running, go):
        futures = [running.verify(Asker(i), EMPTY) for i in range(7)]
        assert running.queued == 8
        go.set()
        assert [value(future) for future in futures] == list(range(7))
        assert running.batches == 3
    assert pool.calls == [[0, 1, 2], [3, 4, 5], [6]]


def test_a_pool_that_serves_one_is_asked_for_one() -> None:
    pool = Pool(batch=1)
    with scheduler(pool, 8) as (running, go):
        futures = [running.verify(Asker(i), EMPTY) for i in range(3)]
        go.set()
        assert [value(future) for future in futures] == [0, 1, 2]
    assert pool.calls == [[0], [1], [2]]


def test_one_that_fails_a_batch_fails_alone() -> None:
    pool = Pool(batch=4, bad=[1])
    with scheduler(pool, 4) as (running, go):
        askers = [Asker(i, settles=i != 2) for i in range(4)]
        futures = [running.verify(asker, EMPTY) for asker in askers]
        go.set()
        assert (value(futures[0]), value(futures[3])) == (0, 3)
        for future, kind in ((futures[1], RuntimeError), (futures[2], ValueError)):
            with pytest.raises(kind):
                future.result(LIMIT_S)
    assert [asker.spoilt for asker in askers] == [False, True, True, False]
    assert pool.calls == [[0, 1, 2, 3], [0], [1], [2], [3]]


def test_long_work_and_rounds_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, clock = Pool(batch=1), Clock(monkeypatch)

    def prefill() -> Iterator[str]:
        for chunk in "abc":
            pool.calls.append(chunk)
            clock.passes(0.02)  # longer than a round: one chunk a turn
            yield chunk

    with scheduler(pool, 1) as (running, go):
        long = running.steps(prefill())
        rounds = [running.verify(Asker(i), EMPTY) for i in range(5)]
        go.set()
        done = long.result(LIMIT_S)
        assert done.value == "c"
        assert [value(future) for future in rounds] == list(range(5))
    assert [call for call in pool.calls if isinstance(call, str)] == ["a", "b", "c"]
    places = [pool.calls.index(chunk) for chunk in "abc"]
    assert all(later - earlier == 2 for earlier, later in zip(places, places[1:], strict=False))


def test_prefills_get_as_much_time_as_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    pool = Pool(batch=1, took=lambda: clock.passes(0.05))

    def prefill() -> Iterator[str]:
        pool.calls.append("open")
        yield "opened"

    with scheduler(pool, 1) as (running, go):
        opens = [running.steps(prefill()) for _ in range(4)]
        rounds = [running.verify(Asker(i), EMPTY) for i in range(3)]
        go.set()
        assert [value(future) for future in opens] == ["opened"] * 4
        assert [value(future) for future in rounds] == [0, 1, 2]
    assert pool.calls[0] == [0] and pool.calls[1:5] == ["open"] * 4


def test_waiting_and_running_are_told_apart() -> None:
    go_on = threading.Event()

    def slow() -> Iterator[None]:
        go_on.wait(0.05)
        yield None

    with scheduler(Pool(1), 1) as (running, go):
        first, second = running.steps(slow()), running.steps(slow())
        go.set()
        done = second.result(LIMIT_S)
        assert done.compute_us >= 50_000
        assert done.queue_us >= first.result(LIMIT_S).compute_us


def test_long_work_that_fails_does_not_stop_the_engine() -> None:
    def bad() -> Iterator[None]:
        yield None
        raise MemoryError

    with scheduler(Pool(1), 1) as (running, go):
        failing = running.steps(bad())
        after = running.verify(Asker(7), EMPTY)
        go.set()
        with pytest.raises(MemoryError):
            failing.result(LIMIT_S)
        assert value(after) == 7
    assert running.queued == 0


def test_stopping_finishes_what_waits() -> None:
    with scheduler(Pool(1), 2) as (running, go):
        futures = [running.verify(Asker(i), EMPTY) for i in range(3)]
        stopping = threading.Thread(target=running.stop)
        stopping.start()
        go.set()
        stopping.join()
        assert [future.done() for future in futures] == [True] * 3
