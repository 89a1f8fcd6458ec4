"""One call to one server: a deadline, the same bytes once more, and a name for every failure."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Generic, TypeVar

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from edgespec_runtime.remote.account import Account
from edgespec_runtime.remote.causes import in_words
from edgespec_runtime.remote.channels import Endpoint
from edgespec_runtime.verifiers.base import Meanwhile
from edgespec_runtime.wire.refusal import DOMAIN, Reason

Reply = TypeVar("Reply")
PAUSE_S = 0.05
"""Before the same bytes go out again; half to one and a half of it."""


class Kind(Enum):
    """What a failure says about how to go on."""

    AGAIN = auto()
    """No answer, or one that cannot be read: the same bytes may be sent again."""
    REOPEN = auto()
    """The server's session is not the client's: open it anew."""
    PICTURES = auto()
    """The server no longer has a picture: open again and send it."""
    ELSEWHERE = auto()
    """Not here and now."""
    BROKEN = auto()
    """The target failed on this very session."""
    UNFIT = auto()
    """This server cannot serve this client at all."""
    WRONG = auto()
    """The request can be answered nowhere."""


class Failure(Exception):
    """A call that brought no usable answer; ``retry_s`` is how long the server asks to wait."""

    def __init__(self, kind: Kind, message: str, retry_s: float = 0.0) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.retry_s = retry_s


_KINDS = {
    Reason.NEED_IMAGE: Kind.PICTURES,
    Reason.QUOTA: Kind.ELSEWHERE,
    Reason.BUSY: Kind.ELSEWHERE,
    Reason.DRAINING: Kind.ELSEWHERE,
    Reason.BROKEN: Kind.BROKEN,
    Reason.MODEL_MISMATCH: Kind.UNFIT,
    Reason.UNAUTHENTICATED: Kind.UNFIT,
    Reason.INVALID: Kind.WRONG,
}
# Statuses that gRPC itself or something on the way gave; codes not named here are AGAIN.
_CODES = {
    grpc.StatusCode.NOT_FOUND: Kind.REOPEN,
    grpc.StatusCode.FAILED_PRECONDITION: Kind.REOPEN,
    grpc.StatusCode.ABORTED: Kind.REOPEN,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Kind.ELSEWHERE,
    grpc.StatusCode.UNIMPLEMENTED: Kind.UNFIT,
    grpc.StatusCode.PERMISSION_DENIED: Kind.UNFIT,
    grpc.StatusCode.UNAUTHENTICATED: Kind.UNFIT,
    grpc.StatusCode.INVALID_ARGUMENT: Kind.WRONG,
    grpc.StatusCode.OUT_OF_RANGE: Kind.WRONG,
}


def classify(error: Any) -> Failure:
    """The failure that a ``grpc.RpcError`` stands for."""
    code, details = error.code(), error.details() or ""
    info = _error_info(error)
    if info is not None:
        reason = _REASONS.get(info.reason)
        kind = _CODES.get(code, Kind.AGAIN) if reason is None else _KINDS.get(reason, Kind.REOPEN)
        wait = info.metadata.get("retry_after_ms", "")
        return Failure(kind, details, int(wait) / 1e3 if wait.isdecimal() else 0.0)
    said = in_words(details)
    if said == details:
        said = f"{_name(code)}: {details}".rstrip(": ")
    return Failure(_CODES.get(code, Kind.AGAIN), said)


_REASONS = {reason.value: reason for reason in Reason}


def _name(code: Any) -> str:
    return str(code.name).lower().replace("_", " ") if code is not None else "no status"


def _error_info(error: Any) -> Any:
    """The ErrorInfo of our domain in a status's details, None where there is none."""
    try:
        status = rpc_status.from_call(error)
    except (ValueError, DecodeError):  # details that do not belong to the status, or no details
        return None
    info = error_details_pb2.ErrorInfo()
    for detail in status.details if status is not None else ():
        try:
            if detail.Unpack(info) and info.domain == DOMAIN:
                return info
        except DecodeError:
            continue
    return None


@dataclass(frozen=True)
class Call(Generic[Reply]):
    """What is asked of a server; sending it again asks the same."""

    method: str
    session_id: bytes
    data: bytes
    parse: Callable[[bytes], Reply]
    deadline_s: Callable[[int], float]
    """Longest wait, by attempt."""


@dataclass(frozen=True)
class Answer(Generic[Reply]):
    """A reply and what it took."""

    reply: Reply
    took_s: float
    """From its request to its arrival."""
    up: int
    """Bytes."""
    down: int


@dataclass(frozen=True)
class Transport:
    """Makes calls. Clock, sleep and chance are arguments for tests."""

    account: Account
    clock: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = time.sleep
    chance: Callable[[], float] = random.random

    def ask(
        self, endpoint: Endpoint, call: Call[Reply], meanwhile: Meanwhile | None = None
    ) -> Answer[Reply]:
        """The answer; the same bytes are sent once more where none came. Raises Failure."""
        try:
            return self._once(endpoint, call, call.deadline_s(0), meanwhile)
        except Failure as failure:
            if failure.kind is not Kind.AGAIN:
                raise
        self.account.retries += 1
        self.sleep(PAUSE_S * (0.5 + self.chance()))
        return self._once(endpoint, call, call.deadline_s(1))

    def _once(
        self,
        endpoint: Endpoint,
        call: Call[Reply],
        deadline_s: float,
        meanwhile: Meanwhile | None = None,
    ) -> Answer[Reply]:
        self.account.bytes_up += len(call.data)
        arrived: list[float] = []
        sent = self.clock()
        future = endpoint.unary(call.method).future(
            call.data, timeout=deadline_s, metadata=endpoint.metadata(call.session_id)
        )
        future.add_done_callback(lambda _: arrived.append(self.clock()))
        busy_s = 0.0
        try:
            if meanwhile is not None:
                begun = self.clock()
                meanwhile(future.done)
                busy_s = self.clock() - begun
            reply = future.result()
        except grpc.FutureCancelledError:
            raise Failure(Kind.AGAIN, "the call was cancelled") from None
        except grpc.RpcError as error:
            raise classify(error) from None
        finally:
            future.cancel()
            self.account.wait_s += self.clock() - sent - busy_s
        if reply is None:  # what gRPC makes of a message whose frame it cannot read
            raise Failure(Kind.AGAIN, "the reply cannot be read")
        # The callback runs on another thread and may be a moment late.
        came = arrived[0] if arrived else self.clock()
        self.account.bytes_down += len(reply)
        try:
            return Answer(call.parse(reply), came - sent, len(call.data), len(reply))
        except DecodeError:
            raise Failure(Kind.AGAIN, "the reply cannot be decoded") from None
