"""Raw calls of the wire contract, for tests of servers: no retries, no checks, no cleverness."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from typing import Any

import grpc
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_health.v1 import health_pb2
from grpc_status import rpc_status

from edgespec_runtime.wire import verifier_pb2 as pb
from edgespec_runtime.wire.refusal import DOMAIN

SERVICE = "/edgespec.v1.Verifier/"
HEALTH = "/grpc.health.v1.Health/"
DEADLINE_S = 240.0
REPLIES: dict[str, Any] = {
    "GetInfo": pb.InfoReply,
    "Open": pb.OpenReply,
    "Verify": pb.VerifyReply,
    "Close": pb.CloseReply,
}


class Refused(Exception):
    """A status, and what its ErrorInfo says."""

    def __init__(self, error: grpc.RpcError) -> None:
        call: Any = error
        super().__init__(f"{call.code()}: {call.details()}")
        self.code: grpc.StatusCode = call.code()
        self.details: str = call.details()
        self.reason = ""
        self.retry_after_ms = 0
        status = rpc_status.from_call(call)
        for detail in status.details if status else ():
            info = ErrorInfo()
            if detail.Unpack(info):
                assert info.domain == DOMAIN
                self.reason = info.reason
                self.retry_after_ms = int(info.metadata.get("retry_after_ms", 0))


class Caller:
    """One channel to one server; a context manager."""

    def __init__(
        self,
        address: str,
        *,
        secrets: grpc.ChannelCredentials | None = None,
        token: str | None = None,
        options: Sequence[tuple[str, Any]] = (),
    ) -> None:
        # A channel of its own: by default gRPC shares connections between channels.
        options = [("grpc.use_local_subchannel_pool", 1), *options]
        if secrets is None:
            self.channel = grpc.insecure_channel(address, options)
        else:
            self.channel = grpc.secure_channel(address, secrets, options)
        self._metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        self.info = pb.InfoReply()

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def raw(self, path: str, data: bytes, **extra: Any) -> bytes:
        """Bytes to a method, bytes from it. Raises Refused."""
        metadata = (*self._metadata, *extra.pop("metadata", ()))
        extra.setdefault("timeout", DEADLINE_S)
        method: Any = self.channel.unary_unary(path)
        try:
            answer: bytes = method(data, metadata=metadata, **extra)
        except grpc.RpcError as error:
            raise Refused(error) from None
        return answer

    def call(self, method: str, request: Any, **extra: Any) -> Any:
        """A message to one of the Verifier's unary methods."""
        data = self.raw(SERVICE + method, request.SerializeToString(), **extra)
        return REPLIES[method].FromString(data)

    def health(self, service: str = "edgespec.v1.Verifier") -> int:
        """SERVING or NOT_SERVING."""
        answer = self.raw(HEALTH + "Check", health_request(service))
        return health_pb2.HealthCheckResponse.FromString(answer).status

    def watch(self, service: str = "edgespec.v1.Verifier") -> Generator[int, None, None]:
        """The same at every change."""
        method: Any = self.channel.unary_stream(
            HEALTH + "Watch", response_deserializer=health_pb2.HealthCheckResponse.FromString
        )
        call = method(health_request(service), timeout=DEADLINE_S)
        try:
            for answer in call:
                yield answer.status
        finally:
            call.cancel()

    def get_info(self) -> pb.InfoReply:
        self.info = self.call("GetInfo", pb.InfoRequest(protocol=1))
        return self.info

    def open_request(self, **fields: Any) -> pb.OpenRequest:
        """A plain open of a new session, with ``fields`` changed."""
        if not self.info.limits.vocab:
            self.get_info()
        given: dict[str, Any] = {
            "session_id": os.urandom(16),
            "epoch": 1,
            "fingerprints": self.info.fingerprints,
            "prompt_ids": [5, 6, 7],
            "sampling": pb.Sampling(top_p=1.0, repetition_penalty=1.0),
            "max_new_tokens": 16,
            "max_nodes": self.info.limits.nodes,
            **fields,
        }
        return pb.OpenRequest(**given)

    def open(self, **fields: Any) -> tuple[pb.OpenRequest, Any]:
        request = self.open_request(**fields)
        return request, self.call("Open", request)

    def verify(self, opened: pb.OpenRequest, told: Any, **fields: Any) -> Any:
        """The round after ``told`` (an OpenReply or a VerifyReply), an empty tree by default."""
        return self.call("Verify", verify_request(opened, told, **fields))

    def proceed(
        self, opened: pb.OpenRequest, told: Any, max_tokens: int
    ) -> Generator[Any, None, None]:
        """The replies of a Continue; closing the iterator cancels the call."""
        round_ = getattr(told, "round", 0) + 1
        request = pb.ContinueRequest(
            session_id=opened.session_id,
            epoch=opened.epoch,
            round=round_,
            committed_len=told.committed_len,
            prefix_hash=told.prefix_hash,
            max_tokens=max_tokens,
        )
        method: Any = self.channel.unary_stream(
            SERVICE + "Continue", response_deserializer=pb.VerifyReply.FromString
        )
        call = method(request.SerializeToString(), metadata=self._metadata, timeout=DEADLINE_S)
        try:
            yield from call
        except grpc.RpcError as error:
            raise Refused(error) from None
        finally:
            call.cancel()


def health_request(service: str) -> bytes:
    return health_pb2.HealthCheckRequest(service=service).SerializeToString()


def verify_request(opened: pb.OpenRequest, told: Any, **fields: Any) -> pb.VerifyRequest:
    """A plain step behind what ``told`` says, with ``fields`` changed."""
    given: dict[str, Any] = {
        "session_id": opened.session_id,
        "epoch": opened.epoch,
        "round": getattr(told, "round", 0) + 1,
        "committed_len": told.committed_len,
        "prefix_hash": told.prefix_hash,
        "tree": pb.Tree(),
        **fields,
    }
    return pb.VerifyRequest(**given)
