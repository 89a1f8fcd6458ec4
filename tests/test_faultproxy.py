"""The fault proxy does what it says: to time, to bytes, to connections."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.faultproxy import FaultProxy, Line, Weather
from tests.support.ports import address, held

ROOT = Path(__file__).resolve().parent.parent
WAIT_S = 120.0


class Echo:
    """Sends back what it gets, one thread per connection."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._threads.append(threading.Thread(target=self._echo, args=(connection,)))
            self._threads[-1].start()

    def _echo(self, connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(1 << 16):
                    connection.sendall(data)
            except OSError:
                pass  # reset by the test


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[FaultProxy]:
    with FaultProxy(echo.address) as running:
        yield running


def connect(proxy: FaultProxy) -> socket.socket:
    host, port = proxy.address.split(":")
    connection = socket.create_connection((host, int(port)), timeout=WAIT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (part := connection.recv(size - len(data))):
        data += part
    return data


def nothing_comes(connection: socket.socket) -> bool:
    """Not for a tenth of a second."""
    connection.settimeout(0.1)
    try:
        connection.recv(1)
    except TimeoutError:
        return True
    finally:
        connection.settimeout(WAIT_S)
    return False


def trip_ms(connection: socket.socket, data: bytes = b"ping") -> float:
    """Of the whole of ``data``, there and back."""
    started = time.perf_counter()
    connection.sendall(data)
    assert receive(connection, len(data)) == data
    return (time.perf_counter() - started) * 1e3


def test_bytes_pass_unchanged_and_are_counted(proxy: FaultProxy) -> None:
    data = bytes(range(256)) * 4096
    with connect(proxy) as connection:
        threading.Thread(target=connection.sendall, args=(data,)).start()
        assert receive(connection, len(data)) == data
    counted = proxy.counters
    assert (counted.up_bytes, counted.down_bytes, counted.flipped) == (len(data), len(data), 0)
    assert counted.connections == 1


def test_latency_is_added_both_ways(proxy: FaultProxy) -> None:
    proxy.set(latency_ms=15.0)
    with connect(proxy) as connection:
        best = min(trip_ms(connection) for _ in range(5))
    assert best >= 30.0  # how much more a busy machine adds is no property of the proxy
    proxy.clear()
    with connect(proxy) as connection:
        assert min(trip_ms(connection) for _ in range(5)) < best


def test_latency_shifts_what_follows_and_does_not_hold_it_up() -> None:
    line, weather = Line(lambda w: w.up_bytes_s, seed=0), Weather(latency_ms=100.0)
    due = [line.due(100, weather, now=0.001 * i) for i in range(10)]
    assert due == pytest.approx([0.1 + 0.001 * i for i in range(10)])


def test_many_packets_take_one_latency(proxy: FaultProxy) -> None:
    proxy.set(latency_ms=20.0)
    took = []
    with connect(proxy) as connection:
        for _ in range(5):
            started = time.perf_counter()
            for _ in range(20):
                connection.sendall(b"0123456789")
                time.sleep(0.002)
            assert len(receive(connection, 200)) == 200
            took.append(time.perf_counter() - started)
    assert min(took) < 20 * 0.040  # one after the other they would take 800 ms, every time


def test_a_throttle_is_one_link_that_connections_share() -> None:
    line, weather = Line(lambda w: w.up_bytes_s, seed=0), Weather(up_bytes_s=10_000.0)
    assert line.due(1000, weather, now=0.0) == pytest.approx(0.1)
    assert line.due(1000, weather, now=0.0) == pytest.approx(0.2)
    assert line.due(1000, weather, now=5.0) == pytest.approx(5.1)  # idle time is not saved up
    other_way = Line(lambda w: w.down_bytes_s, seed=0)
    assert other_way.due(1000, weather, now=0.0) == 0.0


def test_a_throttled_direction_takes_its_time(proxy: FaultProxy) -> None:
    proxy.set(up_bytes_s=100_000.0)
    with connect(proxy) as connection:
        assert trip_ms(connection, bytes(20_000)) >= 195.0


def test_jitter_keeps_order(proxy: FaultProxy) -> None:
    proxy.set(jitter_ms=5.0)
    data = b"".join(i.to_bytes(2, "big") for i in range(500))
    with connect(proxy) as connection:
        for i in range(0, len(data), 20):
            connection.sendall(data[i : i + 20])
        assert receive(connection, len(data)) == data


def test_a_black_hole_swallows_and_gives_back(proxy: FaultProxy) -> None:
    with connect(proxy) as connection:
        trip_ms(connection)
        proxy.set(black_hole=True)
        connection.sendall(b"late")
        assert nothing_comes(connection)
        proxy.clear()
        assert receive(connection, 4) == b"late"


def test_a_server_that_is_mute_still_hears(proxy: FaultProxy) -> None:
    with connect(proxy) as connection:
        proxy.set(mute=True)
        connection.sendall(b"heard")
        eventually(lambda: proxy.counters.up_bytes == 5)
        assert nothing_comes(connection)
        assert proxy.counters.up_bytes == 5 and proxy.counters.down_bytes == 0
        proxy.clear()
        assert receive(connection, 5) == b"heard"


def test_a_forgotten_connection_is_dead_and_a_new_one_works(proxy: FaultProxy) -> None:
    with connect(proxy) as dead, connect(proxy) as other:
        trip_ms(dead)
        trip_ms(other)
        assert proxy.forget() == 2
        dead.sendall(b"gone")
        assert nothing_comes(dead)
        with connect(proxy) as fresh:
            trip_ms(fresh)
        proxy.clear()
        assert nothing_comes(dead)


def test_a_reset_is_seen_as_one(proxy: FaultProxy) -> None:
    with connect(proxy) as connection:
        trip_ms(connection)
        assert proxy.reset() == 1
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


def test_bits_flip_only_when_asked(proxy: FaultProxy) -> None:
    proxy.set(flips=1.0)
    sent = bytes(64)
    with connect(proxy) as connection:
        connection.sendall(sent)
        got = receive(connection, 64)
    ones = sum(byte.bit_count() for byte in got)
    assert len(got) == 64 and 1 <= ones <= proxy.counters.flipped


def test_refused_connections_are_refused_until_served_again(proxy: FaultProxy) -> None:
    with connect(proxy) as kept:
        trip_ms(kept)
        proxy.set(refuse=True)
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
        trip_ms(kept)
    proxy.set(refuse=False)
    with connect(proxy) as connection:
        trip_ms(connection)


def test_an_end_is_passed_on_late(proxy: FaultProxy) -> None:
    proxy.set(slow_close_s=0.15)
    with connect(proxy) as connection:
        trip_ms(connection)
        started = time.perf_counter()
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""  # through to the server, and back
        assert time.perf_counter() - started >= 0.3


def test_a_server_that_is_gone_and_one_in_its_place(proxy: FaultProxy, echo: Echo) -> None:
    with held() as nobody:
        proxy.redirect(address(nobody))
        with connect(proxy) as connection:
            assert _ended(connection)
    proxy.redirect(echo.address)
    with connect(proxy) as connection:
        trip_ms(connection)


def _ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_in_a_process_of_its_own_it_takes_orders(echo: Echo) -> None:
    command = [sys.executable, "-m", "tests.support.faultproxy", "--upstream", echo.address]
    with subprocess.Popen(
        [*command, "--latency-ms", "5"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        host, port = json.loads(process.stdout.readline())["listening"].split(":")
        with socket.create_connection((host, int(port)), timeout=WAIT_S) as connection:
            assert trip_ms(connection) >= 10.0
            process.stdin.write(json.dumps({"latency_ms": 20.0}) + "\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["up_bytes"] == 4
            assert trip_ms(connection) >= 40.0
        process.stdin.close()
        assert process.wait(timeout=WAIT_S) == 0
