"""The one thing a device talks to: gRPC in, a ``VerifierBackend`` behind.

Requests arrive as raw bytes and in this order: who asks, how much is in work, then the bytes, then
their meaning, then the tenant's quota, then the backend. A ``Refusal`` anywhere becomes a status
with an ErrorInfo; anything unexpected becomes INTERNAL without a word of detail.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any, TypeVar

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status
from structlog.typing import FilteringBoundLogger

from edgespec_runtime.server import checks
from edgespec_runtime.server.backend import VerifierBackend
from edgespec_runtime.server.bodies import Bodies, read
from edgespec_runtime.server.logs import session_label, where
from edgespec_runtime.server.metrics import Meter
from edgespec_runtime.server.quotas import BUSY_MS, Account, Accounts
from edgespec_runtime.server.settings import Bounds
from edgespec_runtime.server.tenants import Tenants
from edgespec_runtime.wire import verifier_pb2 as pb
from edgespec_runtime.wire.refusal import DOMAIN, Reason, Refusal

SERVICE = "edgespec.v1.Verifier"
FAILED = Refusal(Reason.BROKEN, "the server failed at this request")

Context = grpc.aio.ServicerContext[Any, Any]
M = TypeVar("M", bound=Message)


class Front(grpc.GenericRpcHandler):
    """The Verifier service. ``draining`` turns new sessions away."""

    body_s = 15.0
    """How long a request's body may be on its way."""

    def __init__(
        self,
        backend: VerifierBackend,
        info: pb.InfoReply,
        tenants: Tenants,
        accounts: Accounts,
        meter: Meter,
        log: FilteringBoundLogger,
        bounds: Bounds,
    ) -> None:
        """``info``: what GetInfo says; its limits are those that are enforced."""
        self.draining = False
        self.in_work = 0
        """Requests that have not been answered."""
        self.accounts = accounts
        self._backend = backend
        self._info = info
        self._tenants = tenants
        self._meter = meter
        self._log = log
        self._bounds = bounds
        self._handlers = {
            f"/{SERVICE}/GetInfo": self._unary("GetInfo", pb.InfoRequest, self._get_info),
            f"/{SERVICE}/Open": self._unary("Open", pb.OpenRequest, self._open),
            f"/{SERVICE}/Verify": self._unary("Verify", pb.VerifyRequest, self._verify),
            f"/{SERVICE}/Continue": grpc.stream_stream_rpc_method_handler(self._continue),
            f"/{SERVICE}/Close": self._unary("Close", pb.CloseRequest, self._close),
        }

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        return self._handlers.get(handler_call_details.method)

    def _unary(
        self, method: str, kind: type[M], answer: Callable[[Account, M], Awaitable[Message]]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        async def handle(bodies: Bodies, context: Context) -> bytes:
            async with self._watched(method, context) as account:
                request = await read(kind, bodies, account.reading, self.body_s)
                reply = await answer(account, request)
                return reply.SerializeToString()
            raise AssertionError("aborting raises")

        return grpc.stream_unary_rpc_method_handler(handle)

    async def _continue(self, bodies: Bodies, context: Context) -> AsyncIterator[bytes]:
        async with self._watched("Continue", context) as account:
            request = await read(pb.ContinueRequest, bodies, account.reading, self.body_s)
            checks.check_continue(request, self._info.limits)
            names, authorization = _names(context), _authorization(context)
            replies = self._backend.proceed(account.tenant, request)
            # Closed here: a client that left ends the rounds now, not when memory is tidied up.
            with _forgetting(account, request):
                async with aclosing(replies):
                    async for reply in replies:
                        # A stream may outlast its client's credentials.
                        self._tenants.check(account.tenant, names, authorization)
                        self._told(account, request.session_id, reply, 0)
                        yield reply.SerializeToString()
                        await account.paced()

    async def _get_info(self, account: Account, request: pb.InfoRequest) -> pb.InfoReply:
        checks.check_info(request)
        return self._info

    async def _open(self, account: Account, request: pb.OpenRequest) -> pb.OpenReply:
        if self.draining:
            raise Refusal(Reason.DRAINING, "the server is about to stop; open elsewhere")
        pixels = checks.check_open(request, self._info)
        session = request.session_id
        with account.opening(session, pixels):
            reply = await self._backend.open(account.tenant, request)
            account.keep(session, request.epoch, reply.lease_ms / 1000)
        self._log.info(
            "open",
            tenant=account.tenant,
            session=session_label(session),
            prompt_tokens=len(request.prompt_ids),
            accepted=len(request.accepted_ids),
            pictures=len(request.pictures),
            bytes=request.ByteSize(),
            reused_rows=reply.reused_rows,
            replayed=reply.replayed,
            queue_ms=reply.queue_us / 1000,
            compute_ms=reply.compute_us / 1000,
        )
        return reply

    async def _verify(self, account: Account, request: pb.VerifyRequest) -> pb.VerifyReply:
        checks.check_verify(request, self._info.limits)
        account.round()
        with _forgetting(account, request):
            reply = await self._backend.verify(account.tenant, request)
        self._told(account, request.session_id, reply, len(request.tree.token_ids))
        return reply

    async def _close(self, account: Account, request: pb.CloseRequest) -> pb.CloseReply:
        checks.check_close(request)
        reply = await self._backend.close(account.tenant, request)
        account.forget(request.session_id, request.epoch)
        self._log.info("close", tenant=account.tenant, session=session_label(request.session_id))
        return reply

    def _told(self, account: Account, session: bytes, reply: pb.VerifyReply, nodes: int) -> None:
        """Counts and logs a round."""
        account.used(session)
        if not reply.replayed:
            self._meter.round(len(reply.path) + 1, reply.queue_us, reply.compute_us)
        self._log.debug(
            "round",
            tenant=account.tenant,
            session=session_label(session),
            round=reply.round,
            nodes=nodes,
            accepted=len(reply.path) + 1,
            queue_ms=reply.queue_us / 1000,
            compute_ms=reply.compute_us / 1000,
            replayed=reply.replayed,
        )

    @asynccontextmanager
    async def _watched(self, method: str, context: Context) -> AsyncIterator[Account]:
        """Around every call: who asks, room for the call, and a status for whatever is raised."""
        started = time.monotonic()
        tenant = ""
        self.in_work += 1
        try:
            tenant = self._tenants.of(_names(context), _authorization(context))
            if self.in_work > self._bounds.requests:
                raise Refusal(Reason.BUSY, "too many requests are in work", BUSY_MS)
            account = self.accounts.of(tenant)
            with account.working():
                yield account
            self._meter.took(method, time.monotonic() - started)
        except Exception as error:
            refusal = self._refused(tenant, method, error)
            self._meter.took(method, time.monotonic() - started)
            await context.abort_with_status(status_of(refusal))
        finally:
            self.in_work -= 1

    def _refused(self, tenant: str, method: str, error: Exception) -> Refusal:
        """What the client is told; what went wrong inside is for the log alone."""
        broken = not isinstance(error, Refusal) or error.reason is Reason.BROKEN
        refusal = error if isinstance(error, Refusal) and not broken else FAILED
        reason = refusal.reason.value
        self._meter.refused(method, reason)
        if broken:
            cause = error.__cause__ or error
            told = {"error": type(cause).__name__, "where": where(cause)}
            self._log.error("failed", tenant=tenant, method=method, **told)
        else:
            self._log.info("refused", tenant=tenant, method=method, reason=reason)
        return refusal


@contextmanager
def _forgetting(account: Account, request: pb.VerifyRequest | pb.ContinueRequest) -> Iterator[None]:
    """A session that turns out to be gone no longer counts."""
    try:
        yield
    except Refusal as refusal:
        if refusal.reason is Reason.REOPEN:
            account.forget(request.session_id, request.epoch)
        raise


def status_of(refusal: Refusal) -> grpc.Status:
    """A refusal as it crosses the network."""
    metadata = {"retry_after_ms": str(refusal.retry_after_ms)} if refusal.retry_after_ms else {}
    detail = AnyMessage()
    detail.Pack(ErrorInfo(reason=refusal.reason.value, domain=DOMAIN, metadata=metadata))
    code = grpc.StatusCode[refusal.reason.status].value[0]
    return rpc_status.to_status(Status(code=code, message=refusal.message, details=[detail]))


def _names(context: Context) -> list[str]:
    """Names in the client's certificate, which TLS has checked."""
    found = context.auth_context().get("x509_subject_alternative_name", [])
    return [name.decode("utf-8", "replace") for name in found]


def _authorization(context: Context) -> list[str]:
    metadata = context.invocation_metadata() or ()
    return [str(value) for key, value in metadata if key == "authorization"]
