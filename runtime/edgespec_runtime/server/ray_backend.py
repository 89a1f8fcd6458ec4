"""Verifiers as replicas of a Ray Serve deployment, behind the same front.

A replica is a whole backend of its own: cache, scheduler, rules of sessions. Ray's consistent-hash
router sends every request of a session to the same one. A session whose replica died, or that a new
replica took over, meets REOPEN and resumes.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import fields
from typing import Any, TypeVar

from google.protobuf.message import Message

from edgespec_runtime.server.backend import Gauges, VerifierBackend
from edgespec_runtime.server.logs import where
from edgespec_runtime.wire import verifier_pb2 as pb
from edgespec_runtime.wire.refusal import Reason, Refusal

LEVELS = ("sessions", "kv_bytes", "image_bytes", "queued")
"""Gauges that a dead replica no longer has; the others count on."""
GAUGES_S = 2.0
RETRY_MS = 200
Reply = TypeVar("Reply", bound=Message)
LOG = logging.getLogger(__name__)
Opener = Callable[[], VerifierBackend]


class Replica:
    """One backend inside Ray. Messages cross as their own bytes; a refusal is a value, not an
    error, so that Ray neither wraps nor logs it."""

    def __init__(self, opener: Opener) -> None:
        self._backend = opener()

    async def info(self) -> bytes | Refusal:
        """What it serves."""
        return await _answer(self._backend.info())

    async def open(self, tenant: str, data: bytes) -> bytes | Refusal:
        """See ``VerifierBackend``, as are the others."""
        return await _answer(self._backend.open(tenant, pb.OpenRequest.FromString(data)))

    async def verify(self, tenant: str, data: bytes) -> bytes | Refusal:
        return await _answer(self._backend.verify(tenant, pb.VerifyRequest.FromString(data)))

    async def close(self, tenant: str, data: bytes) -> bytes | Refusal:
        return await _answer(self._backend.close(tenant, pb.CloseRequest.FromString(data)))

    async def proceed(self, tenant: str, data: bytes) -> AsyncIterator[bytes | Refusal]:
        rounds = self._backend.proceed(tenant, pb.ContinueRequest.FromString(data))
        try:
            async with aclosing(rounds):
                async for reply in rounds:
                    yield reply.SerializeToString()
        except Refusal as refusal:
            yield _told(refusal)

    async def gauges(self) -> tuple[int, Gauges]:
        """With the id of this process."""
        return os.getpid(), await self._backend.gauges()


async def _answer(coming: Any) -> bytes | Refusal:
    try:
        reply: bytes = (await coming).SerializeToString()
    except Refusal as refusal:
        return _told(refusal)
    return reply


def _told(refusal: Refusal) -> Refusal:
    """``refusal``, its cause logged: that stays behind in this process."""
    if (cause := refusal.__cause__) is not None:
        LOG.error("%s at %s", type(cause).__name__, where(cause))
    return refusal


class RayBackend:
    """The replicas as one backend."""

    def __init__(self, handle: Any, secret: bytes, shut_down: Callable[[], None]) -> None:
        """``handle``: of the deployment; ``secret`` makes routing keys, so that no client can aim
        at a replica."""
        self._handle = handle
        self._secret = secret
        self._shut_down = shut_down
        self._info: pb.InfoReply | None = None
        self._known: dict[int, Gauges] = {}

    async def info(self) -> pb.InfoReply:
        if self._info is None:
            self._info = pb.InfoReply.FromString(await self._ask(self._handle.info))
        return self._info

    async def open(self, tenant: str, request: pb.OpenRequest) -> pb.OpenReply:
        return pb.OpenReply.FromString(await self._at(tenant, "open", request))

    async def verify(self, tenant: str, request: pb.VerifyRequest) -> pb.VerifyReply:
        return pb.VerifyReply.FromString(await self._at(tenant, "verify", request))

    async def close(self, tenant: str, request: pb.CloseRequest) -> pb.CloseReply:
        return pb.CloseReply.FromString(await self._at(tenant, "close", request))

    async def proceed(
        self, tenant: str, request: pb.ContinueRequest
    ) -> AsyncGenerator[pb.VerifyReply, None]:
        method = self._method(tenant, "proceed", request).options(stream=True)
        rounds = method.remote(tenant, request.SerializeToString())
        try:
            async for answer in rounds:
                yield pb.VerifyReply.FromString(_reply(answer))
        except Exception as error:
            _translate(error)
            raise
        finally:
            rounds.cancel()

    async def gauges(self) -> Gauges:
        """Of all replicas together; one that does not answer in time counts as gone."""
        calls = self._handle.broadcast("gauges")
        try:
            found = await calls.results_async(timeout_s=GAUGES_S, return_exceptions=True)
        except (TimeoutError, asyncio.TimeoutError):
            found = []
        alive: dict[int, Gauges] = dict(entry for entry in found if isinstance(entry, tuple))
        self._known |= alive
        return Gauges(
            **{
                entry.name: sum(
                    getattr(gauges, entry.name)
                    for gauges in (alive if entry.name in LEVELS else self._known).values()
                )
                for entry in fields(Gauges)
            }
        )

    async def stop(self) -> None:
        """Lets the replicas finish what runs and ends them, and Ray where this server started
        it."""
        await asyncio.to_thread(self._shut_down)

    def _method(self, tenant: str, name: str, request: Any) -> Any:
        key = hmac.new(self._secret, tenant.encode() + b"|" + request.session_id, "sha256")
        return self._handle.options(method_name=name, session_id=key.hexdigest())

    async def _at(self, tenant: str, name: str, request: Message) -> bytes:
        method = self._method(tenant, name, request)
        return await self._ask(method, tenant, request.SerializeToString())

    async def _ask(self, method: Any, *arguments: Any) -> bytes:
        response = method.remote(*arguments)
        try:
            return _reply(await response)
        except asyncio.CancelledError:
            response.cancel()
            raise
        except Exception as error:
            _translate(error)
            raise


def _reply(answer: bytes | Refusal) -> bytes:
    if isinstance(answer, Refusal):
        raise answer
    return answer


def _translate(error: Exception) -> None:
    """Raises the Refusal that an error of Ray's own means; a replica's bug is none."""
    from ray.exceptions import RayActorError, RayError, RayTaskError
    from ray.serve.exceptions import BackPressureError, RayServeException

    if isinstance(error, RayActorError):
        said = "the replica of this session is gone"
    elif isinstance(error, BackPressureError):
        said = "every replica has its queue full"
    elif isinstance(error, (RayError, RayServeException)) and not isinstance(error, RayTaskError):
        said = "no replica can be reached"
    else:
        return
    raise Refusal(Reason.BUSY, said, RETRY_MS) from error
