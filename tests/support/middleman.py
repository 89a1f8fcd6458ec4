"""A gRPC server between a client and a real one: hands calls on, and does what a script says."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from edgespec_runtime.wire.refusal import DOMAIN, Reason

SERVICE = "/edgespec.v1.Verifier/"


@dataclass(frozen=True)
class Visit:
    """One call as it came."""

    method: str
    data: bytes
    metadata: dict[str, str]
    context: Any
    forward: Callable[[], bytes]
    """The real server's reply."""
    spoil: Callable[[bytes], bytes]
    """The same to other bytes."""


Step = Callable[[Visit], bytes]


def pass_on(visit: Visit) -> bytes:
    return visit.forward()


def fail(code: grpc.StatusCode, message: str = "scripted") -> Step:
    """A bare status, as gRPC itself or a balancer gives it."""

    def step(visit: Visit) -> bytes:
        visit.context.abort(code, message)
        raise AssertionError

    return step


def lose(code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> Step:
    """The server does it, its reply is lost."""

    def step(visit: Visit) -> bytes:
        visit.forward()
        visit.context.abort(code, "lost on the way")
        raise AssertionError

    return step


def bend(change: Callable[[bytes], bytes]) -> Step:
    """The reply arrives changed."""
    return lambda visit: change(visit.forward())


def refuse(reason: Reason, message: str = "scripted", retry_after_ms: int = 0) -> Step:
    """A refusal in our own words."""

    def step(visit: Visit) -> bytes:
        metadata = {"retry_after_ms": str(retry_after_ms)} if retry_after_ms else {}
        info = error_details_pb2.ErrorInfo(reason=reason.value, domain=DOMAIN, metadata=metadata)
        detail = any_pb2.Any()
        detail.Pack(info)
        code = getattr(grpc.StatusCode, reason.status)
        status = status_pb2.Status(code=code.value[0], message=message, details=[detail])
        visit.context.abort_with_status(rpc_status.to_status(status))
        raise AssertionError

    return step


class Middleman(grpc.GenericRpcHandler):
    """``upstream`` may be empty: then every call needs a step."""

    def __init__(self, upstream: str = "") -> None:
        self.visits: list[Visit] = []
        self._steps: defaultdict[str, deque[Step]] = defaultdict(deque)
        self._always: dict[str, Step] = {}
        self._channel = grpc.insecure_channel(upstream, [("grpc.use_local_subchannel_pool", 1)])
        # Else a free port may be one that another server of this machine listens at.
        self._server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers((self,))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def script(self, method: str, *steps: Step) -> None:
        """What to do with the next calls of ``method``; those after them are handed on."""
        self._steps[method].extend(steps)

    def always(self, method: str, step: Step) -> None:
        """What to do with every call of ``method`` behind those of its script."""
        self._always[method] = step

    def seen(self, method: str) -> list[Visit]:
        return [visit for visit in self.visits if visit.method == method]

    def close(self) -> None:
        self._server.stop(0).wait()
        self._channel.close()

    def service(self, details: Any) -> Any:
        method = details.method.removeprefix(SERVICE)
        if method == "Continue":
            return grpc.unary_stream_rpc_method_handler(self._continue)
        return grpc.unary_unary_rpc_method_handler(
            lambda data, context: self._unary(method, data, context)
        )

    def _unary(self, method: str, data: bytes, context: Any) -> bytes:
        metadata = [(k, v) for k, v in context.invocation_metadata() if k == "x-session-id"]
        call: Any = self._channel.unary_unary(SERVICE + method)
        ask = partial(_as_told, call, metadata=metadata, context=context)
        return self._step(method)(self._visit(method, data, context, ask))

    def _continue(self, data: bytes, context: Any) -> Iterator[bytes]:
        """Every reply of a stream is a call of "Reply"; its step may end the stream."""
        self._visit("Continue", data, context, lambda _: b"")
        method: Any = self._channel.unary_stream(SERVICE + "Continue")
        call = method(data)
        context.add_callback(call.cancel)
        try:
            for reply in call:
                visit = self._visit("Reply", data, context, lambda _, came=reply: bytes(came))
                yield self._step("Reply")(visit)
        except grpc.RpcError as error:
            told: Any = error
            context.abort(told.code(), told.details())
        finally:
            call.cancel()

    def _visit(self, method: str, data: bytes, context: Any, ask: Any) -> Visit:
        headers = dict(context.invocation_metadata())
        visit = Visit(method, data, headers, context, partial(ask, data), ask)
        self.visits.append(visit)
        return visit

    def _step(self, method: str) -> Step:
        steps = self._steps[method]
        return steps.popleft() if steps else self._always.get(method, pass_on)


def _as_told(call: Any, data: bytes, metadata: Any, context: Any) -> bytes:
    """The real reply, or the real refusal with its details."""
    try:
        return bytes(call(data, metadata=metadata, timeout=240))
    except grpc.RpcError as error:
        told: Any = error
        context.set_trailing_metadata(told.trailing_metadata())
        context.abort(told.code(), told.details())
        raise AssertionError from None


@contextmanager
def middleman(upstream: str = "") -> Iterator[Middleman]:
    server = Middleman(upstream)
    try:
        yield server
    finally:
        server.close()
