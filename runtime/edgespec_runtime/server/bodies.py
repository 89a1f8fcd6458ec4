"""Requests of one message, read when their turn comes.

Every method is registered as one of client streams, which is the same on the wire: a stranger is
turned away before a byte of the body is read, and a body that never comes keeps no place for long.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TypeAlias, TypeVar

from google.protobuf.message import DecodeError, Message

from edgespec_runtime.wire import verifier_pb2 as pb
from edgespec_runtime.wire.refusal import Reason, Refusal

Bodies: TypeAlias = AsyncIterator[bytes]
M = TypeVar("M", bound=Message)
MOST_FIELDS = 256
MOST_BYTES: dict[type[Message], int] = {
    pb.InfoRequest: 1 << 10,
    pb.VerifyRequest: 1 << 18,
    pb.ContinueRequest: 1 << 14,
    pb.CloseRequest: 1 << 10,
}
"""Opens bring pictures; nothing else is large."""
VARINT, EIGHT, SIZED, FOUR = 0, 1, 2, 5


async def read(kind: type[M], bodies: Bodies, turn: asyncio.Semaphore, within_s: float) -> M:
    """The call's one message, read when it is its ``turn``. Raises Refusal INVALID where none comes
    in time, and for bytes that are none."""
    async with turn:
        data = await first_of(bodies, within_s)
    if data is None:
        raise Refusal(Reason.INVALID, f"no message came within {within_s:g} s")
    most = MOST_BYTES.get(kind, len(data))
    if len(data) > most:
        raise Refusal(Reason.INVALID, f"the message has {len(data)} bytes; {most} are enough")
    try:
        if field_count(data, MOST_FIELDS) > MOST_FIELDS:
            raise Refusal(Reason.INVALID, f"the message has more than {MOST_FIELDS} fields")
        return kind.FromString(data)
    except (ValueError, DecodeError):
        raise Refusal(Reason.INVALID, f"the message is no {kind.DESCRIPTOR.name}") from None


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
