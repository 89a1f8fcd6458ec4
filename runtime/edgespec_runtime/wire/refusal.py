"""Why a server does not do what it was asked, as both sides name it.

A refusal crosses the network as a gRPC status whose details hold a ``google.rpc.ErrorInfo`` of
domain ``edgespec``: its ``reason`` says what to do about it.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

DOMAIN = "edgespec"


class Reason(Enum):
    """What a refusal says, by the name it travels under."""

    REOPEN = "REOPEN"
    """The session is not here (never was, evicted, another tenant's): open it again."""
    STALE_EPOCH = "STALE_EPOCH"
    """A newer open of the session is known."""
    STALE_ROUND = "STALE_ROUND"
    """The round was applied before, and its reply is no longer kept."""
    ROUND_REUSED = "ROUND_REUSED"
    """The last round came again with other content."""
    ROUND_GAP = "ROUND_GAP"
    """A round before this one never came."""
    STATE_MISMATCH = "STATE_MISMATCH"
    """Length or hash of the committed tokens differ."""
    MODEL_MISMATCH = "MODEL_MISMATCH"
    """Another target, tokenizer or preprocessing."""
    NEED_IMAGE = "NEED_IMAGE"
    """A picture was named by its digest and is not here: send it."""
    INVALID = "INVALID"
    """The request breaks a limit or makes no sense; the same again will fail again."""
    UNAUTHENTICATED = "UNAUTHENTICATED"
    """No credentials, or wrong ones."""
    QUOTA = "QUOTA"
    """The tenant has as much as it may have."""
    BUSY = "BUSY"
    """The server has no room now; try again, here or elsewhere."""
    DRAINING = "DRAINING"
    """The server is about to stop: go elsewhere."""
    BROKEN = "BROKEN"
    """The target failed on this session: its numbers are not finite, or the engine gave up."""

    @property
    def status(self) -> str:
        """Name of the gRPC status code it travels with."""
        return _STATUS.get(self, "FAILED_PRECONDITION")


_STATUS = {
    Reason.REOPEN: "NOT_FOUND",
    Reason.INVALID: "INVALID_ARGUMENT",
    Reason.UNAUTHENTICATED: "UNAUTHENTICATED",
    Reason.QUOTA: "RESOURCE_EXHAUSTED",
    Reason.BUSY: "UNAVAILABLE",
    Reason.DRAINING: "UNAVAILABLE",
    Reason.BROKEN: "INTERNAL",
}


class Refusal(Exception):
    """A server's no: the reason, one sentence for the human, and when to try again."""

    def __init__(self, reason: Reason, message: str, retry_after_ms: int = 0) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retry_after_ms = retry_after_ms

    def __reduce__(self) -> tuple[Any, ...]:
        return Refusal, (self.reason, self.message, self.retry_after_ms)  # it crosses processes
