"""Does harm to one server and its network, by a schedule that a seed decides."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from tests.support.faultproxy import FaultProxy


class Victim(Protocol):
    """A server process, as ``tests.support.servers`` starts it."""

    def kill(self) -> None:
        """SIGKILL, and waits until it is gone."""

    def stop(self) -> int:
        """SIGTERM, and waits for the end; the exit code."""

    def restart(self) -> None:
        """Starts it again on the same port, and waits until it serves."""

    def pause(self) -> None:
        """SIGSTOP."""

    def resume(self) -> None:
        """SIGCONT."""


@dataclass(frozen=True)
class Fault:
    """One entry of a schedule; ``after_s`` counts from the end of the one before."""

    kind: str
    after_s: float
    for_s: float
    strength: float
    """0..1: how bad, where the kind has degrees."""


WEIGHTS: Mapping[str, float] = {
    "kill": 2.0,
    "pause": 1.5,
    "reset": 2.0,
    "forget": 1.0,
    "lost replies": 2.0,
    "black hole": 1.5,
    "latency": 1.0,
    "throttle": 1.0,
    "bit flips": 2.0,
    "eviction": 1.5,
    "drain": 1.5,
    "slow close": 1.0,
    "refuse": 1.0,
}


def schedule(
    seed: int, pace: float = 1.0, weights: Mapping[str, float] = WEIGHTS
) -> Iterator[Fault]:
    """Faults without end: every kind once in the beginning, by their weights from there on.
    ``pace`` stretches all times."""
    rng = random.Random(seed)
    kinds = list(weights)
    rng.shuffle(kinds)
    while True:
        kind = kinds.pop() if kinds else rng.choices(list(weights), list(weights.values()))[0]
        after, lasting = rng.uniform(0.5, 2.5), rng.uniform(0.2, 2.0)
        yield Fault(kind, after * pace, lasting * pace, rng.random())


class Gremlin(threading.Thread):
    """Runs a schedule against one server behind one proxy until it is told to stop; then, or at
    the end of a fault, all is as it was."""

    def __init__(
        self,
        victim: Victim,
        proxy: FaultProxy,
        faults: Iterator[Fault],
        evict: Callable[[], None],
        enough: Callable[[], bool],
    ) -> None:
        """``evict`` pushes the sessions of others out of the server; ``enough``: whether no more
        faults are wanted."""
        super().__init__(name="gremlin")
        self.done: Counter[str] = Counter()
        """Faults by kind."""
        self.error: Exception | None = None
        """What stopped it before its time."""
        self._victim = victim
        self._proxy = proxy
        self._faults = faults
        self._evict = evict
        self._enough = enough
        self._stopped = threading.Event()

    @property
    def count(self) -> int:
        """Faults so far."""
        return sum(self.done.values())

    def stop(self) -> None:
        """Ends after the fault at hand."""
        self._stopped.set()
        if self.is_alive():
            self.join()

    def run(self) -> None:
        try:
            for fault in self._faults:
                if self._stopped.wait(fault.after_s) or self._enough():
                    return
                self._commit(fault)
                self.done[fault.kind] += 1
        except Exception as error:  # a thread's error is told by whoever started it
            self.error = error

    def _commit(self, fault: Fault) -> None:
        harm: Mapping[str, Callable[[Fault], None]] = {
            "kill": self._kill,
            "pause": self._pause,
            "reset": lambda fault: _nothing(self._proxy.reset()),
            "forget": lambda fault: _nothing(self._proxy.forget()),
            "eviction": lambda fault: self._evict(),
            "drain": self._drain,
            "lost replies": self._lose_replies,
            "slow close": self._close_slowly,
        }
        harm.get(fault.kind, self._weather)(fault)

    def _kill(self, fault: Fault) -> None:
        self._victim.kill()
        self._stopped.wait(fault.for_s / 4)
        self._victim.restart()

    def _pause(self, fault: Fault) -> None:
        self._victim.pause()
        self._stopped.wait(fault.for_s)
        self._victim.resume()

    def _drain(self, fault: Fault) -> None:
        code = self._victim.stop()
        if code != 0:
            raise RuntimeError(f"a drained server ended with exit code {code}")
        self._victim.restart()

    def _lose_replies(self, fault: Fault) -> None:
        """The server commits rounds whose replies never arrive."""
        self._proxy.set(mute=True)
        self._stopped.wait(fault.for_s / 8)
        self._proxy.reset()
        self._proxy.clear()

    def _close_slowly(self, fault: Fault) -> None:
        """A server dies and its clients hear of it late."""
        self._proxy.set(slow_close_s=fault.for_s)
        self._kill(fault)
        self._proxy.clear()

    def _weather(self, fault: Fault) -> None:
        changes: Mapping[str, Mapping[str, float]] = {
            "black hole": {"black_hole": True},
            "refuse": {"refuse": True},
            "latency": {"latency_ms": 200 * fault.strength, "jitter_ms": 50.0},
            "throttle": {"up_bytes_s": 20_000.0, "down_bytes_s": 20_000.0},
            "bit flips": {"flips": 0.005 + 0.05 * fault.strength},
        }
        self._proxy.set(**changes[fault.kind])
        if fault.kind == "refuse":
            self._proxy.reset()  # else nobody would notice
        self._stopped.wait(fault.for_s)
        self._proxy.clear()


def _nothing(_: object) -> None:
    """For calls whose result nobody needs."""
