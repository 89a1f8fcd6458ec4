"""Requests of one message, read when their turn comes.

Every method is registered as one of client streams, which is the same on the wire: a stranger is
turned away before a byte of the body is read, and a body that never comes keeps no place for long.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TypeAlias

Bodies: TypeAlias = AsyncIterator[bytes]


async def first_of(bodies: Bodies, within_s: float) -> bytes | None:
    """The message; None where there is none, or none within that time."""
    try:
        return await asyncio.wait_for(anext(bodies), within_s)
    except (StopAsyncIteration, asyncio.TimeoutError):
        return None
