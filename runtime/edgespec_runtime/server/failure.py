"""What is said of work that failed for no fault of the client's."""

from __future__ import annotations

from edgespec.errors import EngineError
from edgespec_runtime.wire.refusal import Reason, Refusal

BUSY_MS = 1000
"""After which a client may try again where there was no room."""

_SIGNS = ("allocate memory", "bad allocation", "bad_alloc", "out of memory")


def ran_out(error: Exception) -> bool:
    """Whether memory did; engines say so in their own words."""
    told = isinstance(error, EngineError) and any(s in str(error).lower() for s in _SIGNS)
    return told or isinstance(error, MemoryError)


def refusal_of(error: Exception) -> Refusal:
    """A refusal as it is; BUSY where memory ran out; else BROKEN. Raised from ``error``, which is
    logged."""
    if isinstance(error, Refusal):
        return error
    if ran_out(error):
        return Refusal(Reason.BUSY, "the server ran out of memory; try again", BUSY_MS)
    # Its text is for logs alone: it may say what was asked, or how this server is built.
    return Refusal(Reason.BROKEN, "the target failed on this session")
