"""Sessions by tenant and id: one request of a session at a time, leases, and who may be evicted."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from edgespec_runtime.server.answer import Answer
from edgespec_runtime.wire.refusal import Reason, Refusal

Key = tuple[str, bytes]
"""Tenant and session id."""


class Session:
    """One session over all its epochs."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.answer: Answer | None = None
        self.used = 0.0
        """When a request last had its turn, by the table's clock."""
        self.streams = 0
        """Continued answers under way."""

    @property
    def opened(self) -> Answer:
        """The answer. Raises Refusal REOPEN where there is none."""
        if self.answer is None:
            raise not_here()
        return self.answer

    @property
    def full(self) -> bool:
        """Whether the answer has no room for more; so has one that is gone."""
        return self.answer is None or self.answer.full

    @property
    def busy(self) -> bool:
        return self.lock.locked() or self.streams > 0


class Table:
    """``clock``: seconds that only ever grow; ``gone`` is told of every answer that is dropped."""

    def __init__(
        self, lease_s: float, clock: Callable[[], float], gone: Callable[[Answer], None]
    ) -> None:
        self._lease_s, self._clock, self._gone = lease_s, clock, gone
        self._sessions: dict[Key, Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    @asynccontextmanager
    async def turn(self, key: Key, *, create: bool = False) -> AsyncIterator[Session]:
        """The session to itself, in the order of asking. One without an answer afterwards is
        forgotten. Raises Refusal REOPEN where there is none, unless it is to be created."""
        while True:
            session = self.find(key, create=create)
            async with session.lock:
                if self._sessions.get(key) is not session:
                    continue  # it went while this request waited
                try:
                    yield session
                finally:
                    session.used = self._clock()
                    if session.answer is None:
                        del self._sessions[key]
                return

    def find(self, key: Key, *, create: bool = False) -> Session:
        """The session, if its lease holds. Raises Refusal REOPEN."""
        self._expire(key)
        session = self._sessions.get(key)
        if session is None:
            if not create:
                raise not_here()
            session = self._sessions[key] = Session()
            session.used = self._clock()
        return session

    def knows(self, key: Key) -> bool:
        """Whether the session is there."""
        self._expire(key)
        return key in self._sessions

    def sweep(self) -> None:
        """Drops sessions whose lease is over."""
        for key in list(self._sessions):
            self._expire(key)

    def evict(self, asker: str = "") -> bool:
        """Drops an idle session, for one of ``asker``'s if a tenant is named; False where none may
        go.

        Who holds most, the session that is asked for included, loses the one that was idle longest;
        others than the asker only where they hold more than it does. So a tenant that opens
        without end displaces its own sessions, and one that has none finds room.
        """
        held = Counter(tenant for (tenant, _), s in self._sessions.items() if s.answer is not None)
        most = held[asker]
        idle = [
            (-(held[key[0]] + (key[0] == asker)), key[0] != asker, session.used, key)
            for key, session in self._sessions.items()
            if not session.busy and (key[0] == asker or held[key[0]] > most)
        ]
        if not idle:
            return False
        self._drop(min(idle)[-1])
        return True

    def _expire(self, key: Key) -> None:
        session = self._sessions.get(key)
        if session and not session.busy and self._clock() - session.used > self._lease_s:
            self._drop(key)

    def _drop(self, key: Key) -> None:
        answer = self._sessions.pop(key).answer
        if answer is not None:
            self._gone(answer)


def not_here() -> Refusal:
    """What is said of every session that a tenant does not have, whoever else may have it."""
    return Refusal(Reason.REOPEN, "the session is not open here")
