"""A backend whose target follows a rule that needs no model: for what the front does around it.

The token behind n committed ones is ``rule(n)``. Sessions keep the rules of ``wire.state``.
"""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import AsyncGenerator, Awaitable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import grpc

from edgespec.tree import TokenTree
from edgespec_runtime.server.backend import Gauges
from edgespec_runtime.server.front import SERVICE, Front
from edgespec_runtime.server.health import Health
from edgespec_runtime.server.logs import open_log
from edgespec_runtime.server.metrics import Meter
from edgespec_runtime.server.quotas import Accounts
from edgespec_runtime.server.serving import options, told
from edgespec_runtime.server.settings import Address, ServeSettings
from edgespec_runtime.server.tenants import Tenants
from edgespec_runtime.wire import verifier_pb2 as pb
from edgespec_runtime.wire.prefix import context_digest, request_digest
from edgespec_runtime.wire.refusal import Reason, Refusal
from edgespec_runtime.wire.state import Claim, SessionState, opening

VOCAB = 96
T = TypeVar("T")


def rule(position: int) -> int:
    return (7 * position + 3) % VOCAB


def scripted_info() -> pb.InfoReply:
    prints = pb.Fingerprints(target=b"t" * 32, tokenizer=b"k" * 32, preprocess=b"p" * 32)
    limits = pb.Limits(vocab=VOCAB, context=512, nodes=128, depth=32, images=4)
    return pb.InfoReply(protocol=1, fingerprints=prints, limits=limits, embeddings=True)


class ScriptedBackend:
    """``hold``: rounds wait until it is set; ``broken``: raised by every round."""

    def __init__(self) -> None:
        self.hold = asyncio.Event()
        self.hold.set()
        self.broken: Exception | None = None
        self.stopped = False
        self.waiting = 0
        self.left = 0
        """Streams that were closed."""
        self._sessions: dict[tuple[str, bytes], SessionState] = {}
        self._rounds = 0

    async def info(self) -> pb.InfoReply:
        return scripted_info()

    async def open(self, tenant: str, request: pb.OpenRequest) -> pb.OpenReply:
        key = (tenant, request.session_id)
        digest = request_digest(request.SerializeToString())
        opening(self._sessions.get(key), request.epoch, digest)
        state = SessionState(request.epoch, context_digest(request), request.accepted_ids)
        first = None if request.accepted_ids else rule(0)
        state.opened(digest, first, b"")
        self._sessions[key] = state
        reply = pb.OpenReply(epoch=request.epoch, lease_ms=60_000, committed_len=len(state.tokens))
        reply.prefix_hash = state.prefix_hash
        if first is not None:
            reply.first = first
        return reply

    async def verify(self, tenant: str, request: pb.VerifyRequest) -> pb.VerifyReply:
        state = self._state(tenant, request.session_id)
        claim = _claim(request)
        if (again := state.admit(claim)) is not None:
            return pb.VerifyReply.FromString(again)
        await self._turn()
        tree = TokenTree.build(request.tree.token_ids, request.tree.parents)
        path: list[int] = []
        row = 0
        while (child := tree.child(row, rule(len(state.tokens) + len(path)))) is not None:
            path.append(child)
            row = child
        bonus = rule(len(state.tokens) + len(path))
        tokens = [tree.tokens[node - 1] for node in path] + [bonus]
        length, value = state.after(tokens)
        reply = pb.VerifyReply(
            round=request.round, path=path, bonus=bonus, committed_len=length, prefix_hash=value
        )
        state.committed(claim, tokens, reply.SerializeToString())
        self._rounds += 1
        return reply

    async def proceed(
        self, tenant: str, request: pb.ContinueRequest
    ) -> AsyncGenerator[pb.VerifyReply, None]:
        state = self._state(tenant, request.session_id)
        state.admit(_claim(request))
        try:
            for _ in range(request.max_tokens):
                await self._turn()
                bonus = rule(len(state.tokens))
                state.streamed([bonus])
                yield pb.VerifyReply(
                    round=state.round,
                    bonus=bonus,
                    committed_len=len(state.tokens),
                    prefix_hash=state.prefix_hash,
                )
                if bonus in request.stop_ids:
                    return
        finally:
            self.left += 1

    async def close(self, tenant: str, request: pb.CloseRequest) -> pb.CloseReply:
        self._sessions.pop((tenant, request.session_id), None)
        return pb.CloseReply()

    async def gauges(self) -> Gauges:
        return Gauges(len(self._sessions), 0, 0, self.waiting, 0, 0, self._rounds, 0, self._rounds)

    async def stop(self) -> None:
        self.stopped = True

    async def _turn(self) -> None:
        self.waiting += 1
        try:
            await self.hold.wait()
        finally:
            self.waiting -= 1
        if self.broken is not None:
            raise self.broken

    def _state(self, tenant: str, session_id: bytes) -> SessionState:
        try:
            return self._sessions[tenant, session_id]
        except KeyError:
            raise Refusal(Reason.REOPEN, "the session is not open here") from None


def _claim(request: pb.VerifyRequest | pb.ContinueRequest) -> Claim:
    digest = request_digest(request.SerializeToString())
    return Claim(request.epoch, request.round, request.committed_len, request.prefix_hash, digest)


class ScriptedServer:
    """The front over a ScriptedBackend, in this process and on a loop of its own."""

    def __init__(self, settings: ServeSettings) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.log = io.StringIO()
        self.address = self.run(self._start(settings))

    async def _start(self, settings: ServeSettings) -> str:
        self.backend = ScriptedBackend()
        self.meter = Meter()
        info = told(await self.backend.info(), settings)
        self.front = Front(
            self.backend,
            info,
            Tenants(settings.identity, print),
            Accounts(settings.quota),
            self.meter,
            open_log(self.log, "debug"),
            settings.bounds,
        )
        self.health = Health(SERVICE)
        await self.health.start()
        handlers = (self.front, self.health)
        self._server = grpc.aio.server(handlers=handlers, options=options(settings.bounds, info))
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return f"127.0.0.1:{port}"

    def run(self, work: Awaitable[T]) -> T:
        """Does something in the server's loop and waits for it."""

        async def whole() -> T:
            return await work

        return asyncio.run_coroutine_threadsafe(whole(), self._loop).result(30)

    def hold(self, held: bool = True) -> None:
        """Rounds wait, or go on."""
        hold = self.backend.hold
        self._loop.call_soon_threadsafe(hold.clear if held else hold.set)

    def close(self) -> None:
        self.run(self._server.stop(0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@contextmanager
def scripted_server(settings: ServeSettings | None = None) -> Iterator[ScriptedServer]:
    server = ScriptedServer(settings or ServeSettings(Address("127.0.0.1", 0)))
    try:
        yield server
    finally:
        server.close()
