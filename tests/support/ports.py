"""Ports of this machine that nobody else is given."""

from __future__ import annotations

import socket


def held(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """A socket that is bound to a port (0: any) and never listens, for as long as it is open. The
    kernel gives that port to nobody who asks for a free one, connections to it are refused, and a
    server that names it may still listen there: several may be bound to it (SO_REUSEADDR, as
    servers set it; SO_REUSEPORT as well, as HAProxy does), as long as one of them listens."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    holder.bind((host, port))
    return holder


def address(holder: socket.socket) -> str:
    """``host:port`` of a socket."""
    host, port = holder.getsockname()[:2]
    return f"{host}:{port}"
