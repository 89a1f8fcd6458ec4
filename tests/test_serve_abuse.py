"""What is thrown at a server, and what it says; others are served all the while.

One real server for the whole module. At the end it is the same process, nothing failed inside it,
and every line of its log is one it meant to write.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgespec.bundle import read_bundle
from edgespec_runtime.wire import verifier_pb2 as pb
from tests.support import http2
from tests.support.calls import SERVICE, Caller, Refused, verify_request
from tests.support.pictures import animated_png, bomb, encoded, png_of
from tests.support.servers import RunningServer, running_server

INVALID = grpc.StatusCode.INVALID_ARGUMENT
FULL = grpc.StatusCode.RESOURCE_EXHAUSTED
METHODS = ("GetInfo", "Open", "Verify", "Continue", "Close")
EVENTS = ("ready", "open", "close", "refused")
GONE = "ExecuteBatchError"
"""gRPC's own word, as a library's warning, for a reply whose client went away just then (4 in
73 bursts of 1500 calls, a third of them cancelled)."""
MB = 1 << 20


@pytest.fixture(scope="module")
def server(builtin_bundle: Path) -> Iterator[RunningServer]:
    flags = ("--max-image-pixels", 4_000_000, "--grace-s", 0, "--kv-mb", 64)
    with running_server(builtin_bundle, *flags) as running:
        pid = running.pid
        yield running
        assert running.pid == pid and running.process.poll() is None
        strange = [line for line in running.lines if line["event"] not in EVENTS]
        assert not [line for line in strange if line.get("error") != GONE]


@pytest.fixture(scope="module")
def caller(server: RunningServer) -> Iterator[Caller]:
    with Caller(server.address, options=[("grpc.max_send_message_length", -1)]) as made:
        made.get_info()
        yield made


@pytest.fixture(scope="module")
def image_token(builtin_bundle: Path) -> int:
    return int(read_bundle(builtin_bundle, check_hashes=False).manifest.text["image_token_id"])


@pytest.fixture(autouse=True)
def others_are_served(server: RunningServer) -> Iterator[None]:
    """Before and after every test somebody else gets an answer."""
    yield
    serves(server)


def serves(server: RunningServer) -> None:
    with Caller(server.address) as other:
        opened, told = other.open()
        assert other.verify(opened, told).round == 1
        other.call("Close", pb.CloseRequest(session_id=opened.session_id, epoch=1))


def refused(caller: Caller, method: str, data: bytes, **extra: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        caller.raw(SERVICE + method, data, **extra)
    return caught.value


def peak_mb(server: RunningServer) -> float:
    """The most memory that the process ever had resident."""
    status = Path(f"/proc/{server.pid}/status").read_text(encoding="ascii")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return int(found[1]) / 1024


TREES: dict[str, tuple[list[int], list[int]]] = {
    "one node too many": ([1] * 129, list(range(129))),
    "a million nodes": ([1] * 1_000_000, list(range(1_000_000))),
    "a hundred thousand": ([1] * 100_000, list(range(100_000))),
    "too deep": ([1] * 33, list(range(33))),
    "lengths differ": ([1, 2], [0]),
    "self": ([1, 2], [0, 2]),
    "forward": ([1, 2, 3], [0, 3, 0]),
    "cycle": ([1, 2], [2, 1]),
    "siblings": ([4, 4], [0, 0]),
    "token": ([1536], [0]),
    "largest token": ([2**32 - 1], [0]),
}


@pytest.mark.parametrize("case", TREES)
def test_trees_that_are_none(caller: Caller, case: str) -> None:
    tokens, parents = TREES[case]
    opened, told = caller.open()
    tree = pb.Tree(token_ids=tokens, parents=parents)
    data = verify_request(opened, told, tree=tree).SerializeToString()
    error = refused(caller, "Verify", data)
    assert (error.code, error.reason) == (INVALID, "INVALID")
    assert caller.verify(opened, told).round == 1  # the session goes on


OPENS: dict[str, dict[str, Any]] = {
    "no prompt": {"prompt_ids": []},
    "prompt token": {"prompt_ids": [1536]},
    "prompt beyond the context": {"prompt_ids": [1] * 1025},
    "prompt and answer beyond the context": {"prompt_ids": [1] * 1000, "max_new_tokens": 100},
    "vast prompt": {"prompt_ids": [1] * 1_000_000},
    "vast answer": {"max_new_tokens": 2**32 - 1},
    "NaN": {"sampling": pb.Sampling(temperature=float("nan"), top_p=1, repetition_penalty=1)},
    "negative": {"sampling": pb.Sampling(temperature=-1, top_p=1, repetition_penalty=1)},
    "top_p": {"sampling": pb.Sampling(temperature=1, top_p=1.1, repetition_penalty=1)},
    "penalty": {"sampling": pb.Sampling(temperature=1, top_p=1, repetition_penalty=-1)},
    "session id": {"session_id": b"short"},
    "epoch": {"epoch": 0},
    "accepted": {"accepted_ids": [2**31]},
    "a picture without a place": {"pictures": [pb.Picture(file=encoded("JPEG"))]},
    "embeddings": {"pictures": [pb.Picture(embeddings=pb.Embeddings(rows=1, width=1))]},
}


@pytest.mark.parametrize("case", OPENS)
def test_opens_that_make_no_sense(caller: Caller, case: str) -> None:
    error = refused(caller, "Open", caller.open_request(**OPENS[case]).SerializeToString())
    assert (error.code, error.reason) == (INVALID, "INVALID")


def test_a_captured_session_is_worth_nothing(caller: Caller) -> None:
    """Every message of a session, sent again later: answers of old, or a refusal; the session
    does not move."""
    opened, told = caller.open()
    captured = [("Open", opened.SerializeToString())]
    for _ in range(3):
        request = verify_request(opened, told)
        captured.append(("Verify", request.SerializeToString()))
        told = caller.call("Verify", request)
    reasons = [refused(caller, method, data).reason for method, data in captured[:-1]]
    assert reasons == ["STALE_EPOCH", "STALE_ROUND", "STALE_ROUND"]
    again = pb.VerifyReply.FromString(caller.raw(SERVICE + "Verify", captured[-1][1]))
    assert again.replayed and again.bonus == told.bonus
    assert caller.verify(opened, told).committed_len == told.committed_len + 1


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"prefix_hash": 1}, "STATE_MISMATCH"),
        ({"committed_len": 2}, "STATE_MISMATCH"),
        ({"round": 3}, "ROUND_GAP"),
        ({"epoch": 2}, "STALE_EPOCH"),
    ],
)
def test_rounds_that_do_not_follow(caller: Caller, fields: dict[str, Any], reason: str) -> None:
    opened, told = caller.open()
    error = refused(caller, "Verify", verify_request(opened, told, **fields).SerializeToString())
    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, reason)
    assert caller.verify(opened, told).round == 1


def test_another_model(caller: Caller) -> None:
    request = caller.open_request(fingerprints=pb.Fingerprints(target=bytes(32)))
    error = refused(caller, "Open", request.SerializeToString())
    assert error.code is grpc.StatusCode.FAILED_PRECONDITION
    assert error.reason == "MODEL_MISMATCH"


def shortened(kind: str) -> bytes:
    data = encoded(kind, 64, 64)
    return data[: len(data) // 2]


PICTURES: dict[str, Any] = {
    "bomb": lambda: bomb(50_000),
    "claimed bomb": lambda: png_of(50_000, 50_000, b"x"),
    "above the cap": lambda: encoded("JPEG", 2001, 2000, quality=5),
    "truncated JPEG": lambda: shortened("JPEG"),
    "truncated PNG": lambda: shortened("PNG"),
    "TIFF": lambda: encoded("TIFF"),
    "WebP": lambda: encoded("WEBP"),
    "GIF": lambda: encoded("GIF"),
    "animated PNG": animated_png,
    "8.5 MiB": lambda: encoded("PNG") + bytes(17 * MB // 2),
    "broken pixels": lambda: png_of(9, 9, b"no deflate stream"),
    "nothing": lambda: b"",
}


@pytest.mark.parametrize("case", PICTURES)
def test_pictures_that_mean_harm(
    server: RunningServer, caller: Caller, image_token: int, case: str
) -> None:
    data = PICTURES[case]()
    before = peak_mb(server)
    request = caller.open_request(
        prompt_ids=[1, image_token, 5], pictures=[pb.Picture(file=data)], max_new_tokens=4
    )
    error = refused(caller, "Open", request.SerializeToString())
    assert (error.code, error.reason) == (INVALID, "INVALID")
    assert peak_mb(server) - before < 60  # 50,000 x 50,000 bits are 300 MB


def test_a_picture_just_below_the_cap_is_taken(caller: Caller, image_token: int) -> None:
    file = encoded("JPEG", 2000, 2000, quality=5)
    opened, told = caller.open(
        prompt_ids=[1, image_token, 5], pictures=[pb.Picture(file=file)], max_new_tokens=4
    )
    assert caller.verify(opened, told).committed_len == 2


@pytest.mark.parametrize("method", METHODS)
def test_messages_beyond_the_limit(server: RunningServer, caller: Caller, method: str) -> None:
    caller.raw(SERVICE + "GetInfo", b"\x08\x01")
    before = peak_mb(server)
    assert refused(caller, method, bytes(100 * MB)).code is FULL
    assert peak_mb(server) - before < 30


def test_a_gzip_bomb(server: RunningServer, caller: Caller) -> None:
    before = peak_mb(server)
    error = refused(caller, "Open", bytes(100 * MB), compression=grpc.Compression.Gzip)
    assert error.code is FULL and peak_mb(server) - before < 30


def test_messages_that_unfold_when_they_are_parsed(server: RunningServer, caller: Caller) -> None:
    """Two bytes on the wire are one picture: 9 MiB would become half a gigabyte of objects."""
    before = peak_mb(server)
    assert refused(caller, "Open", b"\x2a\x00" * 4_500_000).reason == "INVALID"
    assert refused(caller, "Verify", b"\x32\x00" * 4_500_000).reason == "INVALID"
    ids = pb.VerifyRequest(tree=pb.Tree(token_ids=[1] * 9_000_000)).SerializeToString()
    assert refused(caller, "Verify", ids).reason == "INVALID"
    assert peak_mb(server) - before < 60


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=40)
@given(data=st.binary(max_size=300))
def test_garbage_is_no_message(caller: Caller, method: str, data: bytes) -> None:
    """Whatever bytes come, it is the client's fault, and no exception's text is told."""
    try:
        caller.raw(SERVICE + method, data)
    except Refused as error:
        assert error.code in (INVALID, grpc.StatusCode.NOT_FOUND), error
        assert error.reason in ("INVALID", "REOPEN")
        assert "Error" not in error.details and "Traceback" not in error.details
    else:
        assert method == "GetInfo"


@settings(max_examples=60)
@given(flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 255)), max_size=6))
def test_damaged_opens(caller: Caller, flips: list[tuple[int, int]]) -> None:
    """Flipped bytes open a session, or are refused for a reason that has a name."""
    data = bytearray(caller.open_request(max_new_tokens=2).SerializeToString())
    for at, bits in flips:
        data[at % len(data)] ^= bits
    try:
        reply = pb.OpenReply.FromString(caller.raw(SERVICE + "Open", bytes(data)))
    except Refused as error:
        assert error.reason in ("INVALID", "MODEL_MISMATCH", "NEED_IMAGE"), error
    else:
        assert reply.committed_len >= 1


@pytest.mark.parametrize(
    "path", ["/edgespec.v1.Verifier/Nope", "/edgespec.v2.Verifier/Open", "/", "/a/b/c"]
)
def test_unknown_methods(caller: Caller, path: str) -> None:
    with pytest.raises(Refused) as caught:
        caller.raw(path, b"")
    assert caught.value.code is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("size", [20_000, 65_536])
def test_large_metadata(caller: Caller, size: int) -> None:
    error = refused(caller, "GetInfo", b"\x08\x01", metadata=(("x-large", "a" * size),))
    assert error.code is FULL


def test_health_checks_that_never_come(server: RunningServer) -> None:
    """Health checks need no credentials: 360 calls without a body keep nobody else out."""
    block = http2.headers("/grpc.health.v1.Health/Check")
    calls = [http2.frame(http2.HEADERS, http2.END_HEADERS, s, block) for s in range(1, 120, 2)]
    with contextlib.ExitStack() as stack:
        for _ in range(6):
            wire = stack.enter_context(http2.connected(server.address))
            wire.sendall(b"".join(calls))
        serves(server)


def test_rapid_reset(server: RunningServer) -> None:
    """CVE-2023-44487: calls that are cancelled as soon as they are made."""
    block = http2.headers(SERVICE + "Verify")
    cancel = b"\0\0\0\x08"
    with http2.connected(server.address) as wire, contextlib.suppress(OSError):
        for first in range(1, 10_000, 200):
            wire.sendall(
                b"".join(
                    http2.frame(http2.HEADERS, http2.END_HEADERS, stream, block)
                    + http2.frame(http2.RESET, 0, stream, cancel)
                    for stream in range(first, first + 200, 2)
                )
            )
    serves(server)


def test_a_ping_flood_is_cut_off(server: RunningServer) -> None:
    with http2.connected(server.address) as wire:
        with contextlib.suppress(OSError):
            wire.sendall(http2.frame(http2.PING, 0, 0, bytes(8)) * 1000)
        received = http2.until_closed(wire)
    assert b"too_many_pings" in received


def test_a_ping_a_second_is_not(server: RunningServer) -> None:
    """Six in a row, a little faster than a client that asks every second. Each goes out when the
    one before was answered and its time is over: to a server that stalls they are no flood."""
    received = b""
    with http2.connected(server.address) as wire:
        for number in range(6):
            time.sleep(0.52 if number else 0.0)
            payload = number.to_bytes(8, "big")
            wire.sendall(http2.frame(http2.PING, 0, 0, payload))
            while http2.frame(http2.PING, http2.ACK, 0, payload) not in received:
                assert (data := wire.recv(1 << 16)), received
                received += data
    assert b"too_many_pings" not in received


@pytest.mark.parametrize(
    "start", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01", b"\0" * 64]
)
def test_connections_that_speak_something_else(server: RunningServer, start: bytes) -> None:
    with contextlib.ExitStack() as stack:
        wires = [
            stack.enter_context(http2.connected(server.address, hello=False)) for _ in range(50)
        ]
        for wire in wires:
            wire.sendall(start)
        serves(server)


def test_a_burst_is_shed(server: RunningServer) -> None:
    """1500 opens at once over many connections: each is answered or told to come back."""

    async def one(channel: grpc.aio.Channel, data: bytes) -> str:
        call: Any = channel.unary_unary(SERVICE + "Open")
        try:
            await call(data, timeout=60)
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "OK"

    async def burst(requests: list[bytes]) -> list[str]:
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [grpc.aio.insecure_channel(server.address, options) for _ in range(16)]
        try:
            calls = [one(channels[i % 16], data) for i, data in enumerate(requests)]
            return await asyncio.gather(*calls)
        finally:
            for channel in channels:
                await channel.close()

    with Caller(server.address) as caller:
        caller.get_info()
        request = caller.open_request(session_id=os.urandom(16)).SerializeToString()
    names = asyncio.run(burst([request] * 1500))
    # CANCELLED is the transport's word for the first call beyond what a connection may carry.
    assert set(names) <= {"OK", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "CANCELLED"}
    assert names.count("OK") > 100
