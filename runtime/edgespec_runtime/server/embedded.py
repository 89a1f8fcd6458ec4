"""The verifier in this process: sessions of one target over one engine.

A request that was begun is finished even if its caller has left: the round is committed, and its
reply is there for the retry.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from edgespec import __version__
from edgespec.bundle import read_bundle
from edgespec.latency import DeviceProfile, profile_for
from edgespec_runtime.engines import open_engine
from edgespec_runtime.engines.choice import chosen
from edgespec_runtime.server.admission import Admission
from edgespec_runtime.server.backend import Gauges
from edgespec_runtime.server.capacity import Capacity
from edgespec_runtime.server.contexts import Contexts
from edgespec_runtime.server.curve import measured, profiled
from edgespec_runtime.server.pictures import FORMATS
from edgespec_runtime.server.scheduler import Scheduler
from edgespec_runtime.server.slots import Slots
from edgespec_runtime.server.target import Target, load_target
from edgespec_runtime.server.terms import Rules
from edgespec_runtime.server.turns import Turns
from edgespec_runtime.server.width import measured_width
from edgespec_runtime.wire import verifier_pb2 as pb
from edgespec_runtime.wire.refusal import Reason, Refusal

PROTOCOL = 1
T = TypeVar("T")


def open_backend(
    bundle: str | Path,
    *,
    engine: str = "ort",
    threads: int = 0,
    capacity: Capacity | None = None,
    profile: str | Path | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> EmbeddedBackend:
    """Loads the target of a bundle. ``profile``: what ``edgespec profile`` measured here; without
    one, verifications are clocked for a second. Leases go by ``clock``, in seconds.

    Raises BundleError, EngineError, and ConfigError for a capacity without room for one session.
    """
    found = chosen(read_bundle(bundle), engine)
    capacity = capacity or Capacity()
    runner = open_engine(engine, threads=threads, huge_pages=True)
    target = load_target(found, runner, together=capacity.together)
    known = profile_for(profile, found) if profile else None
    return EmbeddedBackend(target, capacity, known, clock)


class EmbeddedBackend:
    """See ``backend.VerifierBackend``. Its methods belong to one event loop."""

    def __init__(
        self,
        target: Target,
        capacity: Capacity,
        profile: DeviceProfile | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._target, self._capacity = target, capacity
        self._rules = Rules(target, capacity)
        rows = self._rules.context + self._rules.nodes
        slots = capacity.slots_of(rows, target.row_bytes)
        self._slots = Slots(target.cache_shape, slots, rows)
        self._pool = target.step.open_pool()
        self._curve = (
            profiled(profile)
            if profile
            else measured(target, self._pool, self._slots.all[0], self._rules.nodes)
        )
        self._scheduler = Scheduler(self._pool, self._width())
        self._contexts = Contexts(target, capacity, self._scheduler)
        self._admission = Admission(
            self._slots, self._contexts.pictures, self._scheduler, capacity.lease_s, clock
        )
        self._table = self._admission.table
        self._turns = Turns(
            target, self._pool, self._rules, self._slots, self._contexts, self._admission,
            self._scheduler, capacity.lease_s,
        )  # fmt: skip
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping = False

    def _width(self) -> int:
        """Verifications of one engine call at most."""
        if self._capacity.batching == "engine":
            return self._capacity.batch
        slots, hidden = self._slots.all, self._target.hidden
        return measured_width(self._pool, slots, hidden, self._capacity.batch)

    async def info(self) -> pb.InfoReply:
        return pb.InfoReply(
            protocol=PROTOCOL,
            version=__version__,
            fingerprints=self._target.fingerprints,
            limits=self._rules.limits,
            verify=self._curve,
            feature_width=self._target.feature_width,
            image_formats=FORMATS,
            embeddings=self._capacity.embeddings,
        )

    async def open(self, tenant: str, request: pb.OpenRequest) -> pb.OpenReply:
        return await self._whole(self._turns.open(tenant, request))

    async def verify(self, tenant: str, request: pb.VerifyRequest) -> pb.VerifyReply:
        return await self._whole(self._turns.verify(tenant, request))

    async def proceed(
        self, tenant: str, request: pb.ContinueRequest
    ) -> AsyncGenerator[pb.VerifyReply, None]:
        """See ``VerifierBackend.proceed``. A round starts when it is asked for: where the caller
        leaves, at most the one under way is finished. Between rounds the session is open to
        others; an epoch or a round of somebody else's ends the stream."""
        asked = pb.ContinueRequest()
        asked.CopyFrom(request)
        session = self._table.find((tenant, request.session_id))
        session.streams += 1
        try:
            for _ in range(request.max_tokens):
                reply = await self._whole(self._turns.proceed(tenant, asked))
                yield reply
                if reply.bonus in request.stop_ids or session.full:
                    return
                asked.round = reply.round + 1
                asked.committed_len, asked.prefix_hash = reply.committed_len, reply.prefix_hash
        finally:
            session.streams -= 1

    async def close(self, tenant: str, request: pb.CloseRequest) -> pb.CloseReply:
        return await self._whole(self._turns.close(tenant, request))

    async def gauges(self) -> Gauges:
        self._table.sweep()
        return Gauges(
            sessions=len(self._table),
            kv_bytes=self._slots.held * self._slots.slot_bytes,
            image_bytes=self._contexts.pictures.bytes,
            queued=self._scheduler.queued,
            evictions=self._admission.evictions,
            replays=self._turns.replays,
            rounds=self._turns.rounds,
            tokens=self._turns.tokens,
            batches=self._scheduler.batches,
        )

    async def stop(self) -> None:
        self._stopping = True
        while self._tasks:
            await asyncio.wait(self._tasks)
        await asyncio.to_thread(self._scheduler.stop)
        self._contexts.stop()

    async def _whole(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs ``work`` to its end, whether its caller waits for it or not."""
        if self._stopping:
            work.close()
            raise Refusal(Reason.DRAINING, "the server is about to stop")
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # looked at, as nobody else may be waiting for it
