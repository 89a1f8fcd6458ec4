"""Which server a request asks next, how long it waits before it does, and when it gives up."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence

from edgespec.errors import RemoteError
from edgespec_runtime.remote.channels import Endpoint
from edgespec_runtime.remote.transport import Failure, Kind

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 0.5
WORTH_SAYING_S = 1.0
"""Shorter pauses are not mentioned."""
BELIEVED = 2
"""Times that something is refused for good: once may be the network's doing."""


class Failover:
    """One request's course through the servers. Clock, sleep and chance are arguments for tests."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        notice: Callable[[str], None],
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """``endpoints``: the one to begin with first."""
        self._endpoints = list(endpoints)
        self._at = 0
        self._notice = notice
        self._clock, self._sleep, self._chance = clock, sleep, chance
        self._unfit: Counter[str] = Counter()  # times that a server said so
        self._started = 0.0
        self._patience_s = 0.0
        self._failed: dict[str, Failure] = {}
        self._failures = 0
        self._lost: Counter[str] = (
            Counter()
        )  # times that a server had lost the session or a picture
        self._breaks = self._wrongs = 0
        self._said = False

    @property
    def endpoint(self) -> Endpoint:
        """The server to ask."""
        return self._endpoints[self._at]

    def start(self, patience_s: float) -> None:
        """Something is asked that is worth ``patience_s`` seconds of failures."""
        self._started = self._clock()
        self._patience_s = patience_s
        self._failed, self._failures, self._said = {}, 0, False
        self._lost.clear()
        self._breaks = self._wrongs = 0

    def allow(self, patience_s: float) -> None:
        """From here on, failures for that long are put up with."""
        self._started, self._patience_s = self._clock(), patience_s

    def done(self) -> None:
        """An answer came."""
        if self._said:
            waited = self._clock() - self._started
            self._notice(f"going on with {self.endpoint.address} after {waited:.1f} s")

    def failed(self, failure: Failure) -> None:
        """Takes note of a failure and returns when it is time to ask ``endpoint``, which may be
        another one by then, again. Raises RemoteError where that makes no sense any more."""
        here = self.endpoint
        self._failed[here.address] = failure
        self._failures += 1
        self._breaks += failure.kind is Kind.BROKEN
        self._wrongs += failure.kind is Kind.WRONG
        self._unfit[here.address] += failure.kind is Kind.UNFIT
        self._check(failure)
        # A lost state or picture is nothing against the server, unless it happens again and again.
        lost = failure.kind in (Kind.REOPEN, Kind.PICTURES)
        self._lost[here.address] += lost
        if not lost or self._lost[here.address] % 3 == 0:
            self._move()
        self._say(here, failure)
        if not lost or self._lost[here.address] > 1:
            self._pause()

    def _check(self, failure: Failure) -> None:
        here = self.endpoint.address
        if self._wrongs >= BELIEVED:
            raise RemoteError(f"{here} refuses the request: {failure.message}")
        useless = all(self._is_unfit(endpoint) for endpoint in self._endpoints)
        if useless or self._breaks > len(self._endpoints):
            raise RemoteError(f"no server can answer: {self._reasons()}")
        if self._clock() - self._started > self._patience_s:
            raise RemoteError(
                f"no server has answered for {self._clock() - self._started:.0f} s: "
                f"{self._reasons()}"
            )

    def _reasons(self) -> str:
        return "; ".join(f"{name}: {failure.message}" for name, failure in self._failed.items())

    def _move(self) -> None:
        for _ in self._endpoints:
            self._at = (self._at + 1) % len(self._endpoints)
            if not self._is_unfit(self.endpoint):
                return

    def _is_unfit(self, endpoint: Endpoint) -> bool:
        return self._unfit[endpoint.address] >= BELIEVED

    def _say(self, asked: Endpoint, failure: Failure) -> None:
        waited = self._clock() - self._started
        if self.endpoint is asked and (waited < WORTH_SAYING_S or self._said):
            return
        self._said = True
        what = f"{asked.address}: {failure.message}"
        if failure.kind is Kind.AGAIN:
            what = f"no answer from {asked.address} for {waited:.1f} s: {failure.message}"
        whom = "again" if self.endpoint is asked else self.endpoint.address
        self._notice(f"{what}; trying {whom}")

    def _pause(self) -> None:
        """None before a server that has not failed yet."""
        if self.endpoint.address not in self._failed:
            return
        pause = min(FIRST_PAUSE_S * 2 ** min(self._failures - 1, 10), LONGEST_PAUSE_S)
        asked = max(self._failed[self.endpoint.address].retry_s, pause * (0.5 + self._chance()))
        left = self._started + self._patience_s - self._clock()
        self._sleep(max(min(asked, left), FIRST_PAUSE_S))
