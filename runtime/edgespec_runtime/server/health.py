"""``grpc.health.v1``, for load balancers: needs no credentials, gives nothing away."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio

from edgespec_runtime.server.bodies import Bodies, first_of

PATH = "/grpc.health.v1.Health/"
MOST = 32
"""Checks at once, and watches: those last as long as their clients like, and must not keep checks
out."""
BODY_S = 3.0
Answer = Callable[[health_pb2.HealthCheckRequest, Any], Awaitable[Any]]


class Health(grpc.GenericRpcHandler):
    """Serving, per service, until ``stop``."""

    def __init__(self, *services: str) -> None:
        self._servicer = aio.HealthServicer()
        self._services = services
        written = health_pb2.HealthCheckResponse.SerializeToString
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            PATH + "Check": grpc.stream_unary_rpc_method_handler(
                _bounded(self._servicer.Check), response_serializer=written
            ),
            PATH + "Watch": grpc.stream_stream_rpc_method_handler(
                _bounded(self._servicer.Watch), response_serializer=written
            ),
        }

    async def start(self) -> None:
        for service in self._services:
            await self._servicer.set(service, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self) -> None:
        """NOT_SERVING from now on."""
        await self._servicer.enter_graceful_shutdown()

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        return self._handlers.get(handler_call_details.method)


def _bounded(answer: Answer) -> Callable[[Bodies, Any], Awaitable[Any]]:
    """At most ``MOST`` at once."""
    under_way = 0

    async def handle(bodies: Bodies, context: Any) -> Any:
        nonlocal under_way
        if under_way >= MOST:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many health checks")
        under_way += 1
        try:
            data = await first_of(bodies, BODY_S)
            return await answer(await _parsed(data, context), context)
        finally:
            under_way -= 1

    return handle


async def _parsed(data: bytes | None, context: Any) -> health_pb2.HealthCheckRequest:
    try:
        if data is not None:
            return health_pb2.HealthCheckRequest.FromString(data)
    except DecodeError:
        pass
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the message is no health check")
    raise AssertionError("aborting raises")
