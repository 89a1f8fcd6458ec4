"""What a request does while its session is its own; the rules are those of ``wire.state``."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from time import perf_counter
from typing import TypeVar

from edgespec.tree import EMPTY
from edgespec_runtime.engines import StepPool
from edgespec_runtime.server.admission import Admission
from edgespec_runtime.server.answer import Answer
from edgespec_runtime.server.contexts import Contexts
from edgespec_runtime.server.failure import refusal_of
from edgespec_runtime.server.replies import answered, claim_of, digest_of, opened, tree_of
from edgespec_runtime.server.scheduler import Done, Scheduler
from edgespec_runtime.server.slots import Slots
from edgespec_runtime.server.table import Session
from edgespec_runtime.server.target import Target
from edgespec_runtime.server.terms import Rules
from edgespec_runtime.wire import verifier_pb2 as pb
from edgespec_runtime.wire.prefix import context_digest
from edgespec_runtime.wire.refusal import Reason, Refusal
from edgespec_runtime.wire.state import SessionState, opening

T = TypeVar("T")
Reply = TypeVar("Reply", pb.OpenReply, pb.VerifyReply)


class Turns:
    """Of all sessions: opened, verified, gone on with and closed, one request of each at a time."""

    def __init__(
        self,
        target: Target,
        pool: StepPool,
        rules: Rules,
        slots: Slots,
        contexts: Contexts,
        admission: Admission,
        scheduler: Scheduler,
        lease_s: float,
    ) -> None:
        self.replays = 0
        """Replies that were handed out again;"""
        self.rounds = 0
        """rounds that were verified,"""
        self.tokens = 0
        """and tokens emitted."""
        self._target, self._pool, self._rules, self._slots = target, pool, rules, slots
        self._contexts, self._admission, self._scheduler = contexts, admission, scheduler
        self._lease_s = lease_s

    async def open(self, tenant: str, request: pb.OpenRequest) -> pb.OpenReply:
        terms = self._rules.terms(request)
        digest = digest_of(request)
        came = perf_counter()
        async with self._admission.table.turn((tenant, request.session_id), create=True) as session:
            waited = perf_counter() - came
            known = session.answer.state if session.answer else None
            kept = opening(known, request.epoch, digest)
            if kept is not None:
                self.replays += 1
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
            reply = opened(answer, done.value, self._lease_s)
            reply.queue_us = done.queue_us + round(1e6 * waited)
            reply.compute_us = max(round(1e6 * (perf_counter() - came)) - reply.queue_us, 0)
            first = reply.first if reply.HasField("first") else None
            state.opened(digest, first, reply.SerializeToString())
            self.tokens += first is not None
            return reply

    async def verify(self, tenant: str, request: pb.VerifyRequest) -> pb.VerifyReply:
        claim = claim_of(request)
        async with self._admission.table.turn((tenant, request.session_id)) as session:
            answer = session.opened
            kept = answer.state.admit(claim)
            if kept is not None:
                self.replays += 1
                return _again(pb.VerifyReply.FromString(kept))
            tree = tree_of(request.tree, answer.terms.max_nodes)
            answer.check_room()
            done = await self._run(session, self._scheduler.verify(answer, tree))
            reply = answered(answer, claim.round, done)
            answer.state.committed(claim, done.value.verdict.tokens, reply.SerializeToString())
            self._count(done.value.verdict.tokens)
            return reply

    async def proceed(self, tenant: str, request: pb.ContinueRequest) -> pb.VerifyReply:
        """A plain round that the server starts by itself."""
        claim = claim_of(request)
        async with self._admission.table.turn((tenant, request.session_id)) as session:
            answer = session.opened
            if answer.state.admit(claim) is not None:
                raise Refusal(Reason.ROUND_REUSED, f"round {claim.round} was verified before")
            answer.check_room()
            done = await self._run(session, self._scheduler.verify(answer, EMPTY))
            reply = answered(answer, claim.round, done)
            answer.state.streamed(done.value.verdict.tokens)
            self._count(done.value.verdict.tokens)
            return reply

    async def close(self, tenant: str, request: pb.CloseRequest) -> pb.CloseReply:
        key = (tenant, request.session_id)
        if self._admission.table.knows(key):
            async with self._admission.table.turn(key, create=True) as session:
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

    def _count(self, tokens: tuple[int, ...]) -> None:
        self.rounds += 1
        self.tokens += len(tokens)


def _again(reply: Reply) -> Reply:
    reply.replayed = True
    return reply
