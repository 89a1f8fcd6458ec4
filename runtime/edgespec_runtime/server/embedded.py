"""The verifier in this process: sessions of one target over one engine.

The rules of a session are those of ``wire.state``. A request that was begun is finished even if its
caller has left: the round is committed, and its reply is there for the retry.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from concurrent.futures import Future
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

from edgespec import __version__
from edgespec.bundle import read_bundle
from edgespec.latency import DeviceProfile, profile_for
from edgespec.tree import EMPTY
from edgespec_runtime.engines import open_engine
from edgespec_runtime.engines.choice import chosen
from edgespec_runtime.server.admission import Admission
from edgespec_runtime.server.answer import Answer
from edgespec_runtime.server.backend import Gauges
from edgespec_runtime.server.capacity import Capacity
from edgespec_runtime.server.contexts import Contexts
from edgespec_runtime.server.curve import measured, profiled
from edgespec_runtime.server.failure import refusal_of
from edgespec_runtime.server.pictures import FORMATS
from edgespec_runtime.server.replies import answered, claim_of, digest_of, opened, tree_of
from edgespec_runtime.server.scheduler import Done, Scheduler
from edgespec_runtime.server.slots import Slots
from edgespec_runtime.server.table import Session
from edgespec_runtime.server.target import Target, load_target
from edgespec_runtime.server.terms import Rules
from edgespec_runtime.server.width import measured_width
from edgespec_runtime.wire import verifier_pb2 as pb
from edgespec_runtime.wire.prefix import context_digest
from edgespec_runtime.wire.refusal import Reason, Refusal
from edgespec_runtime.wire.state import SessionState, opening

PROTOCOL = 1
T = TypeVar("T")
Reply = TypeVar("Reply", pb.OpenReply, pb.VerifyReply)


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
    runner = open_engine(engine, threads=threads)
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
        pictures = self._contexts.pictures
        self._admission = Admission(self._slots, pictures, self._scheduler, capacity.lease_s, clock)
        self._table = self._admission.table
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping = False
        self._replays = self._rounds = self._tokens = 0

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
        return await self._whole(self._open(tenant, request))

    async def verify(self, tenant: str, request: pb.VerifyRequest) -> pb.VerifyReply:
        return await self._whole(self._verify(tenant, request))

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
                reply = await self._whole(self._proceed(tenant, asked))
                yield reply
                if reply.bonus in request.stop_ids or self._is_full(session):
                    return
                asked.round = reply.round + 1
                asked.committed_len, asked.prefix_hash = reply.committed_len, reply.prefix_hash
        finally:
            session.streams -= 1

    async def close(self, tenant: str, request: pb.CloseRequest) -> pb.CloseReply:
        return await self._whole(self._close(tenant, request))

    async def gauges(self) -> Gauges:
        self._table.sweep()
        return Gauges(
            sessions=len(self._table),
            kv_bytes=self._slots.held * self._slots.slot_bytes,
            image_bytes=self._contexts.pictures.bytes,
            queued=self._scheduler.queued,
            evictions=self._admission.evictions,
            replays=self._replays,
            rounds=self._rounds,
            tokens=self._tokens,
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

    async def _open(self, tenant: str, request: pb.OpenRequest) -> pb.OpenReply:
        terms = self._rules.terms(request)
        digest = digest_of(request)
        came = perf_counter()
        async with self._table.turn((tenant, request.session_id), create=True) as session:
            waited = perf_counter() - came
            known = session.answer.state if session.answer else None
            kept = opening(known, request.epoch, digest)
            if kept is not None:
                self._replays += 1
                return _again(pb.OpenReply.FromString(kept))
            context = await self._contexts.read(tenant, request)
            state = SessionState(request.epoch, context_digest(request), request.accepted_ids)
            slot = self._admission.admit(tenant, session)
            ids = context.ids.tolist()
            try:
                answer = Answer(self._target, self._pool, slot, state, ids, terms)
            except Exception as error:
                self._slots.give_back(slot)
                raise refusal_of(error) from error
            session.answer = answer
            steps = answer.start(context, tenant, self._slots.all)
            done = await self._run(session, self._scheduler.steps(steps))
            reply = opened(answer, done.value, self._capacity.lease_s)
            reply.queue_us = done.queue_us + round(1e6 * waited)
            reply.compute_us = max(round(1e6 * (perf_counter() - came)) - reply.queue_us, 0)
            first = reply.first if reply.HasField("first") else None
            state.opened(digest, first, reply.SerializeToString())
            self._tokens += first is not None
            return reply

    async def _verify(self, tenant: str, request: pb.VerifyRequest) -> pb.VerifyReply:
        claim = claim_of(request)
        async with self._table.turn((tenant, request.session_id)) as session:
            answer = session.opened
            kept = answer.state.admit(claim)
            if kept is not None:
                self._replays += 1
                return _again(pb.VerifyReply.FromString(kept))
            tree = tree_of(request.tree, answer.terms.max_nodes)
            answer.check_room()
            done = await self._run(session, self._scheduler.verify(answer, tree))
            reply = answered(answer, claim.round, done)
            answer.state.committed(claim, done.value.verdict.tokens, reply.SerializeToString())
            self._count(done.value.verdict.tokens)
            return reply

    async def _proceed(self, tenant: str, request: pb.ContinueRequest) -> pb.VerifyReply:
        """A plain round that the server starts by itself."""
        claim = claim_of(request)
        async with self._table.turn((tenant, request.session_id)) as session:
            answer = session.opened
            if answer.state.admit(claim) is not None:
                raise Refusal(Reason.ROUND_REUSED, f"round {claim.round} was verified before")
            answer.check_room()
            done = await self._run(session, self._scheduler.verify(answer, EMPTY))
            reply = answered(answer, claim.round, done)
            answer.state.streamed(done.value.verdict.tokens)
            self._count(done.value.verdict.tokens)
            return reply

    async def _close(self, tenant: str, request: pb.CloseRequest) -> pb.CloseReply:
        key = (tenant, request.session_id)
        if self._table.knows(key):
            async with self._table.turn(key, create=True) as session:
                if session.answer and request.epoch >= session.answer.state.epoch:
                    self._admission.end(session)
        return pb.CloseReply()

    async def _run(self, session: Session, future: Future[Done[T]]) -> Done[T]:
        """What the engine made of an answer's work. Failing work takes the answer with it.

        Raises Refusal BROKEN, or BUSY where memory ran out.
        """
        try:
            return await asyncio.wrap_future(future)
        except Exception as error:
            self._admission.end(session, error)
            raise refusal_of(error) from error

    def _is_full(self, session: Session) -> bool:
        return session.answer is None or session.answer.full

    def _count(self, tokens: tuple[int, ...]) -> None:
        self._rounds += 1
        self._tokens += len(tokens)


def _again(reply: Reply) -> Reply:
    reply.replayed = True
    return reply
