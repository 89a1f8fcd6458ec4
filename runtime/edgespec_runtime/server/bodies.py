"""Requests of one message, read when their turn comes.

Every method is registered as one of client streams, which is the same on the wire: a stranger is
turned away before a byte of the body is read, and a body that never comes keeps no place for long.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TypeAlias

Bodies: TypeAlias = AsyncIterator[bytes]
VARINT, EIGHT, SIZED, FOUR = 0, 1, 2, 5


async def first_of(bodies: Bodies, within_s: float) -> bytes | None:
    """The message; None where there is none, or none within that time."""
    try:
        return await asyncio.wait_for(anext(bodies), within_s)
    except (StopAsyncIteration, asyncio.TimeoutError):
        return None


def field_count(data: bytes, most: int) -> int:
    """Fields at the top of a protobuf message, counted no further than ``most`` + 1: parsing
    makes an object of every two bytes where somebody wants it to. Raises ValueError for bytes
    that are no message, or hold a group, which nobody sends."""
    at = count = 0
    while at < len(data) and count <= most:
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == VARINT:
            _, at = _varint(data, at)
        elif kind == SIZED:
            size, at = _varint(data, at)
            at += size
        elif kind in (EIGHT, FOUR):
            at += 8 if kind == EIGHT else 4
        else:
            raise ValueError(f"wire type {kind}")
        count += 1
    return count


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift, byte in enumerate(data[at : at + 10]):
        value |= (byte & 127) << 7 * shift
        if byte < 128:
            return value, at + shift + 1
    raise ValueError("a number without an end")
