"""A TCP proxy that does to a connection what networks do: delay, throttle, hold, cut, corrupt.

    python -m tests.support.faultproxy --upstream 127.0.0.1:50051 --latency-ms 10 --uplink-kbps 1000

In a process of its own it prints one JSON line when it listens; every further line of JSON that it
reads on stdin ({"latency_ms": 50}, {"reset": true}) changes it, and is answered by its counters.

Bytes travel on a delay line: latency shifts them, whatever follows is not held up by it. A throttle
is one link that all connections share. What a black hole swallows arrives when it ends, as TCP
would send it again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import selectors
import socket
import struct
import sys
import threading
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass, field, fields, replace
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")
CHUNK = 1 << 16
PACKET = 1460
IN_FLIGHT = 512
"""Packets on a line before the sender has to wait."""
SETTLING_S = 0.005
"""For connections that were just accepted to get as far as being handled: only then they can be
ended."""
Packets = asyncio.Queue[tuple[float, bytes]]
"""When each is due, and its bytes."""


@dataclass(frozen=True)
class Weather:
    """The state of the network. Times hold for one way: a round trip takes them twice."""

    latency_ms: float = 0.0
    jitter_ms: float = 0.0
    """Up to this much more, drawn for every packet; order is kept."""
    up_bytes_s: float = 0.0
    """Client to server; 0: no limit."""
    down_bytes_s: float = 0.0
    flips: float = 0.0
    """Chance of a packet to have one of its bits turned."""
    black_hole: bool = False
    """Nothing passes; connections stay open."""
    mute: bool = False
    """Nothing of what the server says passes; it hears everything."""
    refuse: bool = False
    """Nobody listens."""
    slow_close_s: float = 0.0
    """How long after the last byte an end is passed on."""


@dataclass
class Counters:
    """What passed so far."""

    connections: int = 0
    up_bytes: int = 0
    down_bytes: int = 0
    flipped: int = 0


class Line:
    """One direction: every connection's bytes in order, each packet at its time."""

    def __init__(self, rate: Callable[[Weather], float], seed: int) -> None:
        self._rate = rate
        self._rng = random.Random(seed)
        self._free_at = 0.0  # when the throttled link has sent all that it was given

    def due(self, size: int, weather: Weather, now: float) -> float:
        """When ``size`` bytes given at ``now`` arrive."""
        rate = self._rate(weather)
        self._free_at = max(self._free_at, now) + (size / rate if rate else 0.0)
        sent = self._free_at if rate else now
        return sent + (weather.latency_ms + self._rng.random() * weather.jitter_ms) / 1e3

    def packets(self, data: bytes, weather: Weather) -> list[bytes]:
        """A throttled link sends packets; a free one whatever comes."""
        size = PACKET if self._rate(weather) else CHUNK
        return [data[i : i + size] for i in range(0, len(data), size)]

    def flip(self, data: bytes) -> bytes:
        """``data`` with one bit turned."""
        place, bit = self._rng.randrange(len(data)), 1 << self._rng.randrange(8)
        return data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]

    def unlucky(self, weather: Weather) -> bool:
        return weather.flips > 0 and self._rng.random() < weather.flips


@dataclass(eq=False)
class Connection:
    """Both sockets of one proxied connection."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    forgotten: bool = False
    """Half-open: stays, and nothing ever passes again."""

    def reset(self) -> None:
        """Both sides see RST."""
        for writer in (self.client, self.server):
            sock = writer.get_extra_info("socket")
            with contextlib.suppress(OSError, AttributeError):
                linger = struct.pack("ii", 1, 0)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()


class FaultProxy:
    """Listens on a port of its own in a thread of its own; every method may be called from any
    thread. ``upstream`` and ``listen`` are ``host:port``; port 0 takes any."""

    def __init__(
        self,
        upstream: str,
        listen: str = "127.0.0.1:0",
        weather: Weather | None = None,
        *,
        seed: int = 0,
    ) -> None:
        self.weather = weather or Weather()
        self.counters = Counters()

        self._up = Line(lambda weather: weather.up_bytes_s, seed)
        self._down = Line(lambda weather: weather.down_bytes_s, seed + 1)
        self._upstream = _host_port(upstream)
        # Holds the port while nobody listens: it is bound and never listens itself.
        self._holder = _bound(_host_port(listen))
        host, port = self._holder.getsockname()[:2]
        self.address = f"{host}:{port}"
        self._connections: set[Connection] = set()
        self._handlers: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None
        # select() has timers of microseconds where epoll rounds up to a millisecond.
        self._loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
        self._changed: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        self._call(self._start())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._holder.close()

    def set(self, **changes: Any) -> None:
        """Changes the weather, for what is sent from now on; see ``Weather``."""
        self._call(self._set(replace(self.weather, **changes)))

    def clear(self) -> None:
        """Fine weather."""
        self._call(self._set(Weather()))

    def redirect(self, upstream: str) -> None:
        """Sends new connections elsewhere."""
        self._upstream = _host_port(upstream)

    def reset(self) -> int:
        """Cuts every connection by RST; how many there were."""
        return self._call(self._reset())

    def forget(self) -> int:
        """Leaves every connection half-open for good: nothing passes on it again, and nobody is
        told. New connections are served. How many there were."""
        return self._call(self._forget())

    # Everything below runs in the proxy's thread.

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _call(self, step: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(step, self._loop).result()

    async def _start(self) -> None:
        self._changed = asyncio.Event()
        await self._set(self.weather)

    async def _set(self, weather: Weather) -> None:
        self.weather = weather
        if weather.refuse and self._listener is not None:
            self._listener.close()
            self._listener = None
        elif not weather.refuse and self._listener is None:
            sock = _bound(_host_port(self.address))
            self._listener = await asyncio.start_server(self._accepted, sock=sock)
        self._tell()

    def _tell(self) -> None:
        """Wakes whoever waits for other weather."""
        assert self._changed is not None
        self._changed.set()
        self._changed = asyncio.Event()

    async def _stop(self) -> None:
        if self._listener is not None:
            self._listener.close()
        await asyncio.sleep(SETTLING_S)
        for task in list(self._handlers):
            task.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)

    async def _reset(self) -> int:
        doomed = list(self._connections)
        for connection in doomed:
            connection.reset()
            for task in connection.tasks:
                task.cancel()
        return len(doomed)

    async def _forget(self) -> int:
        for connection in self._connections:
            connection.forgotten = True
        self._tell()
        return len(self._connections)

    async def _accepted(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        try:
            await self._serve(reader, client)
        except asyncio.CancelledError:
            pass  # the proxy is stopping
        finally:
            client.transport.abort()
            self._handlers.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        try:
            answers, server = await asyncio.open_connection(*self._upstream)
        except OSError:
            return
        self.counters.connections += 1
        connection = Connection(client, server)
        up: Packets = asyncio.Queue(IN_FLIGHT)
        down: Packets = asyncio.Queue(IN_FLIGHT)
        connection.tasks = [
            asyncio.create_task(self._take(reader, up, self._up)),
            asyncio.create_task(self._give(connection, up, server, self._up)),
            asyncio.create_task(self._take(answers, down, self._down)),
            asyncio.create_task(self._give(connection, down, client, self._down)),
        ]
        self._connections.add(connection)
        try:
            done, _ = await asyncio.wait(connection.tasks, return_when=asyncio.FIRST_EXCEPTION)
            if any(not task.cancelled() and task.exception() for task in done):
                connection.reset()
        finally:
            self._connections.discard(connection)
            for task in connection.tasks:
                task.cancel()
            await asyncio.gather(*connection.tasks, return_exceptions=True)
            for writer in (client, server):
                writer.transport.abort()

    async def _take(self, reader: asyncio.StreamReader, queue: Packets, line: Line) -> None:
        """Reads to the end and says when each packet is due; an end is an empty one."""
        latest, data = 0.0, b"-"
        while data:
            data = await reader.read(CHUNK)
            weather, now = self.weather, self._loop.time()
            for packet in line.packets(data, weather):
                latest = max(latest, line.due(len(packet), weather, now))
                await queue.put((latest, packet))
        await queue.put((max(latest, now) + self.weather.slow_close_s, b""))

    async def _give(
        self, connection: Connection, queue: Packets, writer: asyncio.StreamWriter, line: Line
    ) -> None:
        """Writes packets when they are due."""
        while True:
            due, data = await queue.get()
            if (wait := due - self._loop.time()) > 0:
                await asyncio.sleep(wait)
            while self._held(line) or connection.forgotten:
                assert self._changed is not None
                await self._changed.wait()
            if not data:
                writer.write_eof()
                return
            if line.unlucky(self.weather):
                data = line.flip(data)
                self.counters.flipped += 1
            self._count(line, len(data))
            writer.write(data)
            await writer.drain()

    def _held(self, line: Line) -> bool:
        return self.weather.black_hole or (self.weather.mute and line is self._down)

    def _count(self, line: Line, size: int) -> None:
        if line is self._up:
            self.counters.up_bytes += size
        else:
            self.counters.down_bytes += size


def _host_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


def _bound(address: tuple[str, int]) -> socket.socket:
    """A socket on a port that several of our own may hold; only one of them listens."""
    # By its protocol asyncio knows that what is accepted is TCP, and turns Nagle's algorithm off: a
    # network has no 40 ms of its own between small messages.
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(address)
    return sock


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--listen", default="127.0.0.1:0", metavar="HOST:PORT")
    parser.add_argument("--upstream", required=True, metavar="HOST:PORT")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="of one way")
    parser.add_argument("--jitter-ms", type=float, default=0.0)
    parser.add_argument("--uplink-kbps", type=float, default=0.0, help="kilobits per second")
    parser.add_argument("--downlink-kbps", type=float, default=0.0)
    given = parser.parse_args()
    weather = Weather(
        latency_ms=given.latency_ms,
        jitter_ms=given.jitter_ms,
        up_bytes_s=given.uplink_kbps * 125,
        down_bytes_s=given.downlink_kbps * 125,
    )
    with FaultProxy(given.upstream, given.listen, weather) as proxy:
        print(json.dumps({"listening": proxy.address}), flush=True)
        for line in sys.stdin:
            _obey(proxy, json.loads(line))
            print(json.dumps(asdict(proxy.counters)), flush=True)
    return 0


def _obey(proxy: FaultProxy, order: dict[str, Any]) -> None:
    known = {f.name for f in fields(Weather)}
    if order.pop("reset", False):
        proxy.reset()
    if order.pop("forget", False):
        proxy.forget()
    if "upstream" in order:
        proxy.redirect(order.pop("upstream"))
    if unknown := order.keys() - known:
        raise SystemExit(f"unknown orders: {', '.join(sorted(unknown))}; known: {sorted(known)}")
    proxy.set(**order)


if __name__ == "__main__":
    sys.exit(main())
