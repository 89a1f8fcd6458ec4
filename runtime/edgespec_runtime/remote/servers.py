"""A model's servers: shared by its requests, so that each connects and asks only once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

import grpc

from edgespec_runtime.remote.channels import Endpoint, check_files
from edgespec_runtime.remote.settings import RemoteSettings

FAREWELL_S = 1.0
"""Longest wait for what is sent without waiting."""


class Servers:
    """Endpoints in the order of preference, the one that answered last first."""

    def __init__(self, settings: RemoteSettings) -> None:
        """Raises ConfigError for files of certificates that are no good."""
        check_files(settings)
        self.settings = settings
        self._endpoints = [Endpoint(address, settings) for address in settings.endpoints]
        self._preferred = self._endpoints[0]
        self._under_way: set[Future[None]] = set()
        self._lock = threading.Lock()

    def ordered(self) -> list[Endpoint]:
        """The endpoints, beginning with the preferred one."""
        at = self._endpoints.index(self._preferred)
        return self._endpoints[at:] + self._endpoints[:at]

    def prefer(self, endpoint: Endpoint) -> None:
        """Later requests begin there."""
        self._preferred = endpoint

    def send(
        self,
        endpoint: Endpoint,
        method: str,
        session_id: bytes,
        data: bytes,
        answered: Callable[[], None] | None = None,
    ) -> None:
        """Makes a call whose reply does not matter, and does not wait for it; ``answered`` is
        called on another thread if one comes. Never raises: what is sent so may be lost."""
        try:
            future = endpoint.unary(method).future(
                data, timeout=FAREWELL_S, metadata=endpoint.metadata(session_id)
            )
        except (grpc.RpcError, ValueError, RuntimeError):  # the channel or the process is closing
            return
        ended: Future[None] = Future()
        with self._lock:
            self._under_way.add(ended)
        future.add_done_callback(lambda call: self._ended(ended, call, answered))

    def close(self) -> None:
        """Waits a moment for sessions to be closed, then ends all connections."""
        with self._lock:
            under_way = list(self._under_way)
        wait(under_way, timeout=FAREWELL_S)
        for endpoint in self._endpoints:
            endpoint.close()

    def _ended(self, ended: Future[None], call: Any, answered: Callable[[], None] | None) -> None:
        if answered is not None and call.code() is grpc.StatusCode.OK:
            answered()
        with self._lock:
            self._under_way.discard(ended)
        ended.set_result(None)
