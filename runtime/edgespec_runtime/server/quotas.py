"""How much one tenant may have, so that the others are still served."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from edgespec_runtime.server.settings import Quota
from edgespec_runtime.wire.refusal import Reason, Refusal

Clock = Callable[[], float]
BURST_S = 1.0
ROUNDING = 1e-9
PIXEL_BURST_S = 10.0
BUSY_MS = 100
FULL_MS = 1000
READING = 16
"""Requests of one tenant whose bytes may be on their way in at once."""


class Bucket:
    """A token bucket: ``rate`` units a second, ``burst_s`` seconds of it saved up."""

    def __init__(self, rate: float, burst_s: float, clock: Clock) -> None:
        self._rate = rate
        self._most = max(rate * burst_s, 1.0)
        self._level = self._most
        self._clock = clock
        self._seen = clock()

    def wait_s(self, amount: float = 1.0) -> float:
        """0 where ``amount`` could be taken, which is then done; else the seconds until it can.
        More than a full bucket is taken from a full one, and is owed."""
        if self._rate == math.inf:
            return 0.0
        now = self._clock()
        self._level = min(self._most, self._level + (now - self._seen) * self._rate)
        self._seen = now
        lacking = min(amount, self._most) - self._level
        if lacking > ROUNDING:
            return lacking / self._rate
        self._level -= amount
        return 0.0


@dataclass
class Held:
    """A session that the backend holds for a tenant, or is about to."""

    used: float
    """When it was last asked for, by the clock."""
    epoch: int = 0
    """The newest that is open; 0: none."""
    lease_s: float = 0.0
    opening: int = 0
    """Opens under way."""

    def lasts(self, now: float) -> bool:
        """Whether it still counts."""
        return self.opening > 0 or (self.epoch > 0 and now <= self.used + self.lease_s)


class Account:
    """One tenant's sessions and buckets."""

    def __init__(self, tenant: str, quota: Quota, clock: Clock) -> None:
        self.tenant = tenant
        self.reading = asyncio.Semaphore(READING)
        self._in_work = 0
        self._quota = quota
        self._clock = clock
        self._held: dict[bytes, Held] = {}
        self._rounds = Bucket(quota.rounds_per_s, BURST_S, clock)
        self._pixels = Bucket(quota.pixels_per_s, PIXEL_BURST_S, clock)

    @property
    def sessions(self) -> int:
        """Open ones, as far as the front can know."""
        now = self._clock()
        self._held = {key: held for key, held in self._held.items() if held.lasts(now)}
        return len(self._held)

    def asked_within(self, seconds: float) -> int:
        """Of those, sessions that were asked for so lately."""
        now = self._clock()
        return sum(h.lasts(now) and now - h.used <= seconds for h in self._held.values())

    @contextmanager
    def working(self) -> Iterator[None]:
        """Around every request. Raises Refusal QUOTA."""
        if self._in_work >= self._quota.requests:
            raise _full(f"{self._in_work} requests are in work", BUSY_MS)
        self._in_work += 1
        try:
            yield
        finally:
            self._in_work -= 1

    @contextmanager
    def opening(self, session: bytes, pixels: int) -> Iterator[None]:
        """Around an open: takes room for the session, and gives it back where the open fails.
        Raises Refusal QUOTA."""
        others = self.sessions - (session in self._held)
        if others >= self._quota.sessions:
            raise _full(f"{others} sessions are open, {self._quota.sessions} are allowed", FULL_MS)
        _pay(self._pixels.wait_s(pixels), "pixels of pictures")
        held = self._held.setdefault(session, Held(self._clock()))
        held.opening += 1
        try:
            yield
        finally:  # without an epoch it no longer counts
            held.opening -= 1

    def keep(self, session: bytes, epoch: int, lease_s: float) -> None:
        """The session that is being opened is open; it may be dropped when it is idle for longer
        than ``lease_s``."""
        held = self._held[session]
        held.epoch, held.lease_s = max(held.epoch, epoch), lease_s
        held.used = self._clock()

    def used(self, session: bytes) -> None:
        """It lives for another lease."""
        if (held := self._held.get(session)) is not None:
            held.used = self._clock()

    def forget(self, session: bytes, epoch: int) -> None:
        """The session is gone, unless it was opened again since ``epoch``."""
        held = self._held.get(session)
        if held is not None and held.epoch <= epoch:
            held.epoch = 0

    def round(self) -> None:
        """Takes one round. Raises Refusal QUOTA."""
        _pay(self._rounds.wait_s(), "rounds")

    async def paced(self) -> None:
        """Takes one round, and waits for it where it must."""
        while (wait := self._rounds.wait_s()) > 0:
            await asyncio.sleep(wait)


class Accounts:
    """Every tenant's account, by name."""

    def __init__(self, quota: Quota, clock: Clock = time.monotonic) -> None:
        self._quota, self._clock = quota, clock
        self._accounts: dict[str, Account] = {}

    def of(self, tenant: str) -> Account:
        if tenant not in self._accounts:
            self._accounts[tenant] = Account(tenant, self._quota, self._clock)
        return self._accounts[tenant]

    @property
    def sessions(self) -> int:
        return sum(account.sessions for account in self._accounts.values())

    def asked_within(self, seconds: float) -> int:
        """Sessions that were asked for so lately."""
        return sum(account.asked_within(seconds) for account in self._accounts.values())


def _pay(wait_s: float, what: str) -> None:
    if wait_s > 0:
        raise _full(f"too many {what} in too short a time", math.ceil(wait_s * 1000))


def _full(message: str, retry_after_ms: int) -> Refusal:
    return Refusal(Reason.QUOTA, message, retry_after_ms)
