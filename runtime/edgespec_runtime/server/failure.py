"""What is said of work that failed for no fault of the client's."""

from __future__ import annotations

from edgespec_runtime.wire.refusal import Reason, Refusal

BUSY_MS = 1000
"""After which a client may try again where there was no room."""


def refusal_of(error: Exception) -> Refusal:
    """A refusal as it is; BUSY where memory ran out; else BROKEN."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, MemoryError):
        return Refusal(Reason.BUSY, "the server ran out of memory; try again", BUSY_MS)
    return Refusal(Reason.BROKEN, f"the target failed on this session: {error}")
