"""Replies of a server that goes on by itself, taken one at a time, each with a deadline."""

from __future__ import annotations

import threading
from queue import Empty, SimpleQueue
from typing import Any

import grpc

from edgespec_runtime.remote.transport import Failure, Kind, classify


class ReplyStream:
    """A call whose replies a thread collects; the thread ends with the call."""

    def __init__(self, call: Any) -> None:
        """``call``: what a unary-stream method of gRPC returned."""
        self._call = call
        self._arrived: SimpleQueue[bytes | Failure | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._collect, name="edgespec-stream", daemon=True)
        self._thread.start()

    def next(self, deadline_s: float) -> bytes | None:
        """The next reply, or None where the stream has ended. Raises Failure."""
        try:
            found = self._arrived.get(timeout=deadline_s)
        except Empty:
            self.close()
            raise Failure(Kind.REOPEN, "the stream has stalled") from None
        if isinstance(found, Failure):
            raise found
        return found

    def close(self) -> None:
        """Ends the call; replies that were not taken are dropped."""
        self._call.cancel()
        self._thread.join()

    def _collect(self) -> None:
        try:
            for reply in self._call:
                self._arrived.put(reply)
            self._arrived.put(None)
        except grpc.RpcError as error:
            failure = classify(error)
            # Rounds of a stream cannot be asked for again: the session is opened anew.
            kind = Kind.REOPEN if failure.kind is Kind.AGAIN else failure.kind
            self._arrived.put(Failure(kind, failure.message, failure.retry_s))
