"""``grpc.health.v1``, for load balancers: needs no credentials, gives nothing away."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio

WATCHERS = 32
"""Watches last for ever; so many may be open at once."""
PATH = "/grpc.health.v1.Health/"


class Health(grpc.GenericRpcHandler):
    """Serving, per service, until ``stop``."""

    def __init__(self, *services: str) -> None:
        self._servicer = aio.HealthServicer()
        self._services = services
        self._watchers = 0

    async def start(self) -> None:
        for service in self._services:
            await self._servicer.set(service, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self) -> None:
        """NOT_SERVING from now on."""
        await self._servicer.enter_graceful_shutdown()

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        written = health_pb2.HealthCheckResponse.SerializeToString
        if handler_call_details.method == PATH + "Check":
            return grpc.unary_unary_rpc_method_handler(self._check, response_serializer=written)
        if handler_call_details.method == PATH + "Watch":
            return grpc.unary_stream_rpc_method_handler(self._watch, response_serializer=written)
        return None

    async def _check(self, data: bytes, context: Any) -> Any:
        return await self._servicer.Check(await _parsed(data, context), context)

    async def _watch(self, data: bytes, context: Any) -> None:
        request = await _parsed(data, context)
        if self._watchers >= WATCHERS:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watches are open")
        self._watchers += 1
        try:
            await self._servicer.Watch(request, context)
        finally:
            self._watchers -= 1


async def _parsed(data: bytes, context: Any) -> health_pb2.HealthCheckRequest:
    try:
        return health_pb2.HealthCheckRequest.FromString(data)
    except DecodeError:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the message is no health check")
        raise
