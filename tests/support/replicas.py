"""Replicas of a server that runs its target under Ray, to be killed and stopped one by one."""

from __future__ import annotations

import random

import psutil

from tests.support.gremlin import WEIGHTS
from tests.support.servers import RunningServer

REPLICA = "ray::ServeReplica:edgespec:verifier"
KINDS = {kind: weight for kind, weight in WEIGHTS.items() if kind != "drain"}
"""What may happen to a server under Ray; draining is the front's, which is the same everywhere."""


def replicas(server: RunningServer) -> list[psutil.Process]:
    """Those that are alive."""
    found = []
    for process in psutil.Process(server.pid).children(recursive=True):
        try:
            if any(REPLICA in word for word in process.cmdline()):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


class Replicas:
    """A gremlin's victim: what is killed or stopped is one replica, and Ray starts another."""

    def __init__(self, server: RunningServer, seed: int = 0) -> None:
        self._server = server
        self._rng = random.Random(seed)
        self._paused: psutil.Process | None = None

    def kill(self) -> None:
        if (victim := self._any()) is not None:
            victim.kill()

    def restart(self) -> None:
        """Ray does."""

    def stop(self) -> int:
        raise AssertionError("a server under Ray is not drained here")

    def pause(self) -> None:
        self._paused = self._any()
        if self._paused is not None:
            self._paused.suspend()

    def resume(self) -> None:
        if self._paused is not None and self._paused.is_running():
            self._paused.resume()

    def _any(self) -> psutil.Process | None:
        alive = replicas(self._server)
        return self._rng.choice(alive) if alive else None
