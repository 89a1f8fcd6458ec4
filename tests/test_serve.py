"""The life of a server: it starts, answers, tells what it does, drains, and ends with a reason."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from edgespec.bundle import read_bundle
from edgespec.cli import main
from edgespec.errors import InputError
from edgespec_runtime.server import serving
from edgespec_runtime.server.health import MOST
from edgespec_runtime.server.logs import open_log
from edgespec_runtime.server.serving import drain, serve
from edgespec_runtime.server.settings import Address, Bounds, Quota, ServeSettings
from edgespec_runtime.wire import verifier_pb2 as pb
from edgespec_runtime.wire.prefix import Prefix, context_digest
from tests.support import http2
from tests.support.calls import SERVICE, Caller, Refused
from tests.support.eventually import eventually
from tests.support.scripted import ScriptedBackend, rule, scripted_server
from tests.support.servers import RunningServer, running_server
from tests.test_lean import blocked, run_python

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
LOCAL = Address("127.0.0.1", 0)


def scrape(address: str) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    return {name: float(value) for name, value in pairs}


@pytest.fixture(scope="module")
def server(builtin_bundle: Path) -> Iterator[RunningServer]:
    with running_server(builtin_bundle, "--log-level", "debug", "--grace-s", 0) as running:
        yield running


@pytest.fixture
def caller(server: RunningServer) -> Iterator[Caller]:
    with Caller(server.address) as made:
        made.get_info()
        yield made


def test_the_line_says_what_is_served(server: RunningServer, builtin_bundle: Path) -> None:
    assert set(server.line) == {"listening", "metrics", "target"}
    models = read_bundle(builtin_bundle, check_hashes=False).manifest.models
    with Caller(server.address) as caller:
        info = caller.get_info()
    assert server.line["target"] == info.fingerprints.target.hex()
    assert len(info.fingerprints.target) == 32 and models["target"].fingerprint
    assert info.protocol == 1 and info.limits.vocab == 1536 and info.limits.nodes == 128


def test_one_answer(caller: Caller) -> None:
    """Trees, plain rounds and a stream bring the tokens of plain rounds alone."""
    opened, told = caller.open(max_new_tokens=12)
    plain = [told.first]
    for _ in range(9):
        told = caller.verify(opened, told)
        plain.append(told.bonus)
    opened, told = caller.open(max_new_tokens=12)
    tokens = [told.first]
    tree = pb.Tree(token_ids=[plain[1], 9, plain[2]], parents=[0, 0, 1])
    told = caller.verify(opened, told, tree=tree)
    tokens += [plain[1], plain[2], told.bonus]
    assert list(told.path) == [1, 3] and told.committed_len == 4
    for reply in caller.proceed(opened, told, 6):
        tokens.append(reply.bonus)
        told = reply
    assert tokens == plain
    assert told.prefix_hash == Prefix(context_digest(opened), tokens).value


def test_a_reply_is_given_again(caller: Caller) -> None:
    opened, told = caller.open()
    first, again = caller.verify(opened, told), caller.verify(opened, told)
    assert not first.replayed and again.replayed and again.bonus == first.bonus


def test_closed_sessions_are_not_found(caller: Caller) -> None:
    opened, told = caller.open()
    close = pb.CloseRequest(session_id=opened.session_id, epoch=1)
    caller.call("Close", close)
    caller.call("Close", close)
    with pytest.raises(Refused) as caught:
        caller.verify(opened, told)
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.NOT_FOUND, "REOPEN")


def test_health(caller: Caller) -> None:
    assert caller.health() == caller.health("") == SERVING
    with pytest.raises(Refused) as caught:
        caller.health("another.Service")
    assert caught.value.code is grpc.StatusCode.NOT_FOUND
    with pytest.raises(Refused) as caught:
        caller.raw("/grpc.health.v1.Health/Check", b"\xff")
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


def test_watches_keep_no_check_out() -> None:
    with scripted_server() as server, Caller(server.address) as caller:
        watches = [caller.watch() for _ in range(MOST)]
        assert [next(watch) for watch in watches] == [SERVING] * MOST
        with pytest.raises(grpc.RpcError) as caught:
            next(caller.watch())
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert caller.health() == SERVING
        for watch in watches:
            watch.close()


def test_metrics_count(server: RunningServer, caller: Caller) -> None:
    before = scrape(server.line["metrics"])
    opened, told = caller.open()
    caller.verify(opened, told)
    caller.verify(opened, told)
    with pytest.raises(Refused):
        caller.verify(opened, told, round=9)
    after = scrape(server.line["metrics"])
    grown = {name: value - before.get(name, 0.0) for name, value in after.items()}
    assert grown["edgespec_rounds_total"] == grown["edgespec_accepted_length_count"] == 1
    assert grown["edgespec_compute_seconds_count"] == grown["edgespec_queue_seconds_count"] == 1
    assert grown["edgespec_replays_total"] == 1 and grown["edgespec_sessions"] == 1
    assert grown["edgespec_kv_bytes"] > 0 and after["edgespec_mean_batch"] >= 1
    assert grown['edgespec_refusals_total{method="Verify",reason="ROUND_GAP"}'] == 1
    assert grown['edgespec_request_seconds_count{method="Verify"}'] == 3


def test_logs_follow_a_session_and_keep_its_secrets(server: RunningServer, caller: Caller) -> None:
    start = len(server.lines)
    prompt = [1234, 1235, 1236, 1237]
    session = bytes.fromhex("c0ffee" * 5 + "00")
    opened, told = caller.open(prompt_ids=prompt, session_id=session)
    told = caller.verify(opened, told, tree=pb.Tree(token_ids=[1238], parents=[0]))
    with pytest.raises(Refused):
        caller.verify(opened, told, tree=pb.Tree(token_ids=[1239, 1239], parents=[0, 0]))
    caller.call("Close", pb.CloseRequest(session_id=session, epoch=1))
    lines = server.lines[start:]
    assert [line["event"] for line in lines] == ["open", "round", "refused", "close"]
    assert lines[0]["prompt_tokens"] == 4 and lines[1]["nodes"] == 1
    assert lines[2]["reason"] == "INVALID" and {line["tenant"] for line in lines} == {"local"}
    assert lines[0]["session"] == lines[1]["session"] == lines[3]["session"]
    clocks = ("timestamp", "queue_ms", "compute_ms")  # microseconds may look like a token
    text = json.dumps([{k: v for k, v in line.items() if k not in clocks} for line in lines])
    assert "c0ffee" not in text and not any(str(token) in text for token in range(1234, 1240))


def test_a_drain_lets_sessions_end(builtin_bundle: Path) -> None:
    """Told to stop, a server finishes what is open, takes nothing new, and exits with 0."""
    with running_server(builtin_bundle, "--grace-s", 60) as running, Caller(running.address) as one:
        opened, told = one.open()
        watch = one.watch()
        assert next(watch) == SERVING
        running.process.send_signal(signal.SIGTERM)
        assert next(watch) == NOT_SERVING == one.health() == one.health("")
        with pytest.raises(Refused) as caught:
            one.open()
        assert (caught.value.code, caught.value.reason) == (UNAVAILABLE, "DRAINING")
        told = one.verify(opened, told)
        assert [reply.committed_len for reply in one.proceed(opened, told, 3)] == [3, 4, 5]
        one.call("Close", pb.CloseRequest(session_id=opened.session_id, epoch=1))
        assert running.wait() == 0
        # A library may still have a word to say of the watch that was cut off.
        events = [line["event"] for line in running.lines if line["event"] != "library"]
        assert events[0] == "ready" and events[-1] == "stopped" and "draining" in events


def test_a_drain_does_not_wait_for_ever(builtin_bundle: Path) -> None:
    with (
        running_server(builtin_bundle, "--grace-s", 0.2) as running,
        Caller(running.address) as one,
    ):
        one.open()
        assert running.stop() == 0


def test_a_second_signal_cuts_the_grace_short(builtin_bundle: Path) -> None:
    with (
        running_server(builtin_bundle, "--grace-s", 600) as running,
        Caller(running.address) as one,
    ):
        one.open()
        running.process.send_signal(signal.SIGINT)
        eventually(lambda: one.health() == NOT_SERVING)
        assert running.stop(signal.SIGINT) == 0


def test_a_start_that_fails_leaves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        backend = ScriptedBackend()
        settings = ServeSettings(Address("127.0.0.1", taken.getsockname()[1]), metrics=LOCAL)
        with pytest.raises(InputError, match="in use"):
            asyncio.run(serve(backend, settings, open_log(sys.stderr), lambda *_: None))
        assert backend.stopped
        backend, settings = ScriptedBackend(), ServeSettings(LOCAL, metrics=settings.listen)
        with pytest.raises(InputError, match="--metrics"):
            asyncio.run(serve(backend, settings, open_log(sys.stderr), lambda *_: None))
        assert backend.stopped
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("handler", ["own", "an engine's"])
@pytest.mark.parametrize("place", ["load_target", "Contexts"])
def test_told_to_stop_while_it_loads_it_stops(
    place: str, handler: str, builtin_bundle: Path
) -> None:
    """Before it has loaded anything and when its threads run; Ray sets a handler of its own."""
    words = ["serve", "--bundle", str(builtin_bundle), "--listen", "127.0.0.1:0"]
    code = f"""
import os, signal, sys
from edgespec.cli import main
from edgespec_runtime.server import embedded
def load(*given, **named):
    if {handler != "own"}:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
    print("loads")
    os.kill(os.getpid(), signal.SIGTERM)
    raise AssertionError("it went on")
embedded.{place} = load
code = main({words!r})
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
sys.exit(code)
"""
    result = run_python(code)
    assert result.returncode == 0 and result.stdout == "", result.stderr
    (line,) = result.stderr.splitlines()
    assert json.loads(line)["message"] == "loads"


def test_a_drain_does_not_wait_for_clients_that_vanished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "IDLE_S", 0.05)
    with scripted_server() as server, Caller(server.address) as caller:
        caller.open()
        assert server.front.accounts.sessions == 1
        server.run(draining(server))  # would be 60 s
        assert server.front.accounts.sessions == 1


def test_work_in_flight_is_finished_before_the_end() -> None:
    """A round that runs when the server is told to stop is answered; the drain waits for it."""
    with scripted_server() as server, Caller(server.address) as caller:
        opened, told = caller.open()
        server.hold()
        replies: list[Any] = []
        thread = threading.Thread(target=lambda: replies.append(caller.verify(opened, told)))
        thread.start()
        eventually(lambda: server.backend.waiting == 1)
        drained = threading.Thread(target=lambda: server.run(draining(server)))
        drained.start()
        eventually(lambda: caller.health() == NOT_SERVING)
        assert not replies and drained.is_alive()
        server.hold(False)
        thread.join()
        assert replies[0].bonus == rule(1)
        caller.call("Close", pb.CloseRequest(session_id=opened.session_id, epoch=1))
        drained.join()
        assert server.front.draining


async def draining(server: Any) -> None:
    await drain(server.front, server.health, 60.0, server.front._log, asyncio.Event())


def test_a_failing_target_tells_nothing() -> None:
    with scripted_server() as server, Caller(server.address) as caller:
        opened, told = caller.open()
        server.backend.broken = RuntimeError("secret of token 4711")
        with pytest.raises(Refused) as caught:
            caller.verify(opened, told)
        assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.INTERNAL, "BROKEN")
        assert "secret" not in caught.value.details
        line = json.loads(server.log.getvalue().splitlines()[-1])
        assert line["event"] == "failed" and line["error"] == "RuntimeError"
        assert "scripted.py" in line["where"] and "secret" not in server.log.getvalue()
        server.backend.broken = None
        assert caller.verify(opened, told).bonus == rule(1)


def test_too_much_work_is_turned_away_at_once() -> None:
    settings = ServeSettings(LOCAL, bounds=Bounds(requests=4))
    with scripted_server(settings) as server, Caller(server.address) as caller:
        sessions = [caller.open() for _ in range(5)]
        server.hold()
        held = [threading.Thread(target=caller.verify, args=session) for session in sessions[:4]]
        for thread in held:
            thread.start()
        eventually(lambda: server.backend.waiting == 4)
        with pytest.raises(Refused) as caught:
            caller.verify(*sessions[4])
        assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.UNAVAILABLE, "BUSY")
        assert caught.value.retry_after_ms > 0 and caller.health() == SERVING
        server.hold(False)
        for thread in held:
            thread.join()
        assert caller.verify(*sessions[4]).bonus == rule(1)


def test_a_body_that_never_comes_is_not_waited_for() -> None:
    block = http2.headers(SERVICE + "Verify")
    with scripted_server() as server, http2.connected(server.address) as wire:
        server.front.body_s = 0.2
        wire.sendall(http2.frame(http2.HEADERS, http2.END_HEADERS, 1, block))
        received = b""
        while b"no message came within 0.2 s" not in received:
            assert (data := wire.recv(1 << 16)), received
            received += data
        eventually(lambda: server.front.in_work == 0)


def test_a_stream_that_is_left_ends() -> None:
    with scripted_server() as server, Caller(server.address) as caller:
        opened, told = caller.open()
        stream = caller.proceed(opened, told, 16)
        assert next(stream).bonus == rule(1)
        stream.close()
        eventually(lambda: server.backend.left == 1 and server.front.in_work == 0)


def test_streams_keep_to_the_rate() -> None:
    """A stream is slowed down where a single round would be refused."""
    settings = ServeSettings(LOCAL, quota=Quota(rounds_per_s=50.0))
    with scripted_server(settings) as server, Caller(server.address) as caller:
        opened, told = caller.open(max_new_tokens=80)
        started = time.monotonic()
        assert len(list(caller.proceed(opened, told, 75))) == 75
        assert time.monotonic() - started > 0.4


def test_a_server_comes_back_at_its_port_with_its_settings(
    builtin_bundle: Path, tmp_path: Path
) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("max-nodes: 7\nlease-s: 12\nmetrics: none\nallow-embeddings: true\n")
    with running_server(builtin_bundle, "--config", file) as running:
        address, pid = running.address, running.pid
        running.restart()
        assert running.address == address and running.pid != pid
        assert running.line["metrics"] is None
        with Caller(address) as caller:
            info = caller.get_info()
            assert info.limits.nodes == 7 and info.embeddings
            assert caller.open()[1].lease_ms == 12_000


def test_logs_cannot_be_forged() -> None:
    """A value stays on its line and in its string; keys that nobody meant to log are dropped."""
    stream = io.StringIO()
    log = open_log(stream, "info")
    log.info("open", tenant='a"}\n{"event": "ready"', prompt="my secret", tokens=[1, 2, 3])
    log.info("open", reason="x" * 10_000, method="\x1b[2J\u2028")
    log.debug("round", tenant="a")
    lines = stream.getvalue().split("\n")
    assert len(lines) == 3 and lines[2] == "" and stream.getvalue().isascii()
    first, second = map(json.loads, lines[:2])
    assert first["tenant"].startswith('a"}\n') and "secret" not in lines[0]
    assert first["event"] == "open" and len(second["reason"]) <= 300


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no bundle": (["--bundle", "no-such-bundle"], "does not exist"),
    "no port": (["--listen", "127.0.0.1"], "HOST:PORT"),
    "wrong port": (["--listen", "127.0.0.1:70000"], "65535"),
    "no such host": (["--listen", "no-such-host.invalid:1", "--insecure"], "cannot be listened on"),
    "plaintext": (["--listen", "0.0.0.0:0"], "--insecure"),
    "half a certificate": (["--tls-cert", "x.pem"], "--tls-key"),
    "no certificate": (["--tls-cert", "x.pem", "--tls-key", "y.pem"], "x.pem"),
    "CA alone": (["--tls-client-ca", "x.pem"], "--tls-cert"),
    "clients alone": (["--clients-file", "x"], "--tls-client-ca"),
    "no tokens": (["--tokens-file", "no-such-file"], "no-such-file"),
    "no metrics": (["--metrics", "nowhere"], "HOST:PORT"),
    "no grace": (["--grace-s", "-1"], "--grace-s"),
    "no room": (["--kv-mb", "0.001"], "MB"),
    "no graph for it": (["--batching", "engine"], "export it with --sessions"),
    "no rate": (["--quota-rounds-per-s", "nan"], "--quota-rounds-per-s"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_named(
    case: str, builtin_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, said = MISTAKES[case]
    start = ["serve", "--listen", "127.0.0.1:0", "--threads", "1", "--metrics", "none"]
    assert main([*start, "--bundle", str(builtin_bundle), *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.count("\n") == 1


@pytest.mark.parametrize("flag", ["--listen", "--metrics"])
def test_a_port_in_use_is_named(
    flag: str, builtin_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = ["serve", "--listen", "127.0.0.1:0", "--threads", "1"]
        words += ["--bundle", str(builtin_bundle), flag, f"127.0.0.1:{taken.getsockname()[1]}"]
        assert main(words) == 2
    assert f"edgespec: {flag}" in capsys.readouterr().err


def test_what_needs_no_target_is_told_before_one_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = tmp_path / "tokens.txt"
    tokens.write_text("no digest\n")
    start = ["serve", "--bundle", "no-such-bundle"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main([*start, "--listen", f"127.0.0.1:{taken.getsockname()[1]}"]) == 2
    assert "cannot be listened on" in capsys.readouterr().err
    assert main([*start, "--listen", "127.0.0.1:0", "--tokens-file", str(tokens)]) == 2
    assert "line 1: it must hold a sha256" in capsys.readouterr().err


def test_a_devices_part_is_nothing_to_serve(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "device.bundle")
    assert main(["export", "--target", "builtin", "--part", "device", "--out", out]) == 0
    assert main(["serve", "--bundle", out, "--listen", "127.0.0.1:0"]) == 2
    assert "holds no target; serve the whole bundle" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["grpc", "structlog", "prometheus_client", "grpc_health"])
def test_a_missing_extra_is_named(package: str, builtin_bundle: Path) -> None:
    words = ["serve", "--bundle", str(builtin_bundle)]
    code = blocked((package,)) + f"from edgespec.cli import main\nsys.exit(main({words!r}))\n"
    result = run_python(code)
    assert result.returncode == 2 and "pip install 'edgespec[serve]'" in result.stderr


def test_help_needs_no_extra() -> None:
    code = blocked(("grpc", "structlog", "prometheus_client", "numpy", "onnxruntime"))
    result = run_python(code + "from edgespec.cli import main\nmain(['serve', '--help'])\n")
    assert (
        result.returncode == 0
        and "--tls-client-ca" in result.stdout
        and "example:" in result.stdout
    )
