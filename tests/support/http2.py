"""HTTP/2 frames by hand (RFC 9113), for what no client library would send."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
ACK, END_STREAM, END_HEADERS = 1, 1, 4


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def headers(path: str, extra: Sequence[tuple[str, str]] = ()) -> bytes:
    """A gRPC request's header block: literals that need no table (RFC 7541, 6.2.2)."""
    fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *extra,
    ]
    return b"".join(b"\0" + _string(name) + _string(value) for name, value in fields)


def message(data: bytes, compressed: bool = False) -> bytes:
    """gRPC's five bytes before a message."""
    return struct.pack(">BI", compressed, len(data)) + data


def _string(text: str) -> bytes:
    data = text.encode()
    if len(data) < 127:
        return bytes([len(data)]) + data
    rest, size = len(data) - 127, b"\x7f"  # an integer with a prefix of seven bits
    while rest >= 128:
        size += bytes([rest % 128 + 128])
        rest //= 128
    return size + bytes([rest]) + data


def parts(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


@contextmanager
def connected(address: str, *, hello: bool = True) -> Iterator[socket.socket]:
    """A TCP connection; with ``hello`` HTTP/2 has begun on it."""
    with socket.create_connection(parts(address), timeout=60) as wire:
        if hello:
            wire.sendall(PREFACE + frame(SETTINGS, 0, 0))
        yield wire


def until_closed(wire: socket.socket) -> bytes:
    """Everything that still comes, until the other side closes. Raises TimeoutError if it does
    not."""
    received = b""
    try:
        while data := wire.recv(1 << 16):
            received += data
    except ConnectionResetError:
        pass
    return received
