"""A model's servers: shared by its requests, so that each connects and asks only once."""

from __future__ import annotations

import threading
from concurrent.futures import Future, wait
from typing import Any

import grpc

from edgespec_runtime.remote.channels import Endpoint
from edgespec_runtime.remote.settings import RemoteSettings

FAREWELL_S = 1.0
"""Longest wait for sessions to be closed."""


class Servers:
    """Endpoints in the order of preference, the one that answered last first."""

    def __init__(self, settings: RemoteSettings) -> None:
        self.settings = settings
        self._endpoints = [Endpoint(address, settings) for address in settings.endpoints]
        self._preferred = self._endpoints[0]
        self._farewells: set[Any] = set()
        self._lock = threading.Lock()

    def ordered(self) -> list[Endpoint]:
        """The endpoints, beginning with the preferred one."""
        at = self._endpoints.index(self._preferred)
        return self._endpoints[at:] + self._endpoints[:at]

    def prefer(self, endpoint: Endpoint) -> None:
        """Later requests begin there."""
        self._preferred = endpoint

    def farewell(self, endpoint: Endpoint, session_id: bytes, data: bytes) -> None:
        """Sends a Close without waiting for its answer. Never raises: a lease ends the session
        anyway."""
        try:
            future = endpoint.unary("Close").future(
                data, timeout=FAREWELL_S, metadata=endpoint.metadata(session_id)
            )
        except (grpc.RpcError, ValueError, RuntimeError):  # the channel or the process is closing
            return
        ended: Future[None] = Future()
        with self._lock:
            self._farewells.add(ended)
        future.add_done_callback(lambda _: self._ended(ended))

    def close(self) -> None:
        """Waits a moment for sessions to be closed, then ends all connections."""
        with self._lock:
            farewells = list(self._farewells)
        wait(farewells, timeout=FAREWELL_S)
        for endpoint in self._endpoints:
            endpoint.close()

    def _ended(self, ended: Future[None]) -> None:
        with self._lock:
            self._farewells.discard(ended)
        ended.set_result(None)
