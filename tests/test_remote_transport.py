"""Calls that fail, over real connections: what is sent again, where to, after how long."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from edgespec.errors import ConfigError, RemoteError
from edgespec_runtime.remote.account import Account
from edgespec_runtime.remote.channels import Endpoint
from edgespec_runtime.remote.failover import LONGEST_PAUSE_S, Failover
from edgespec_runtime.remote.pace import FLOOR_S, Pace
from edgespec_runtime.remote.servers import Servers
from edgespec_runtime.remote.settings import RemoteSettings, is_loopback, parse_endpoints
from edgespec_runtime.remote.stream import ReplyStream
from edgespec_runtime.remote.transport import Answer, Call, Failure, Kind, Transport
from edgespec_runtime.wire import verifier_pb2 as pb
from edgespec_runtime.wire.refusal import Reason
from tests.support.middleman import Middleman, Step, Visit, fail, middleman, refuse

REPLY = pb.VerifyReply(round=1, bonus=7)
GOOD: Step = lambda visit: REPLY.SerializeToString()  # noqa: E731
GARBLED: Step = lambda visit: b"\xff\xff\xff"  # noqa: E731
Code = grpc.StatusCode
WAIT_S = 60.0


@pytest.fixture(scope="module")
def server() -> Iterator[Middleman]:
    with middleman() as found:
        found.always("Verify", GOOD)
        yield found


@pytest.fixture
def endpoint(server: Middleman) -> Iterator[Endpoint]:
    server.visits.clear()
    found = Endpoint(server.address, RemoteSettings((server.address,)))
    yield found
    found.close()


def transport(pauses: list[float] | None = None) -> Transport:
    kept = [] if pauses is None else pauses
    return Transport(Account(), sleep=kept.append, chance=lambda: 0.5)


def verify(endpoint: Endpoint, asking: Transport, **more: Any) -> Answer[pb.VerifyReply]:
    given = Call("Verify", b"s" * 16, b"the bytes", pb.VerifyReply.FromString, lambda _: WAIT_S)
    call = replace(given, **{k: v for k, v in more.items() if k != "meanwhile"})
    return asking.ask(endpoint, call, more.get("meanwhile"))


def test_a_call_brings_its_reply_and_what_it_took(endpoint: Endpoint, server: Middleman) -> None:
    asking = transport()
    answer = verify(endpoint, asking)
    assert answer.reply == REPLY and 0 < answer.took_s < WAIT_S
    assert (answer.up, answer.down) == (9, len(REPLY.SerializeToString()))
    assert (asking.account.bytes_up, asking.account.bytes_down) == (answer.up, answer.down)
    (visit,) = server.seen("Verify")
    assert visit.metadata["x-session-id"] == (b"s" * 16).hex()
    assert "authorization" not in visit.metadata


@pytest.mark.parametrize(
    "step",
    [
        fail(Code.UNAVAILABLE),
        fail(Code.INTERNAL),
        fail(Code.UNKNOWN),
        fail(Code.CANCELLED),
        GARBLED,
    ],
)
def test_the_same_bytes_are_sent_once_more(
    step: Step, endpoint: Endpoint, server: Middleman
) -> None:
    server.script("Verify", step)
    pauses: list[float] = []
    asking = transport(pauses)
    assert verify(endpoint, asking).reply == REPLY
    assert [visit.data for visit in server.seen("Verify")] == [b"the bytes"] * 2
    assert asking.account.retries == 1 and pauses == [0.05]
    server.script("Verify", step, step)
    with pytest.raises(Failure) as failed:
        verify(endpoint, asking)
    assert failed.value.kind is Kind.AGAIN and len(server.seen("Verify")) == 4


def test_a_deadline_that_passes_is_a_call_that_failed(
    endpoint: Endpoint, server: Middleman
) -> None:
    def slow(visit: Visit) -> bytes:
        """Late for the first call, which on a slow machine may even end before it gets here."""
        if visit.context.time_remaining() > 1:
            return GOOD(visit)
        while visit.context.is_active():
            time.sleep(0.001)
        return b""

    server.script("Verify", slow)
    deadlines: list[int] = []

    def deadline(attempt: int) -> float:
        deadlines.append(attempt)
        return (0.1, WAIT_S)[attempt]

    assert verify(endpoint, transport(), deadline_s=deadline).reply == REPLY
    assert deadlines == [0, 1]


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        (Reason.REOPEN, Kind.REOPEN),
        (Reason.STALE_EPOCH, Kind.REOPEN),
        (Reason.STALE_ROUND, Kind.REOPEN),
        (Reason.ROUND_REUSED, Kind.REOPEN),
        (Reason.ROUND_GAP, Kind.REOPEN),
        (Reason.STATE_MISMATCH, Kind.REOPEN),
        (Reason.NEED_IMAGE, Kind.PICTURES),
        (Reason.MODEL_MISMATCH, Kind.UNFIT),
        (Reason.UNAUTHENTICATED, Kind.UNFIT),
        (Reason.INVALID, Kind.WRONG),
        (Reason.QUOTA, Kind.ELSEWHERE),
        (Reason.BUSY, Kind.ELSEWHERE),
        (Reason.DRAINING, Kind.ELSEWHERE),
        (Reason.BROKEN, Kind.BROKEN),
    ],
)
def test_refusals_are_known_by_their_reason_and_not_repeated(
    reason: Reason, kind: Kind, endpoint: Endpoint, server: Middleman
) -> None:
    server.script("Verify", refuse(reason, "because", retry_after_ms=1500))
    with pytest.raises(Failure, match="^because$") as failed:
        verify(endpoint, transport())
    assert (failed.value.kind, failed.value.retry_s) == (kind, 1.5)
    assert len(server.seen("Verify")) == 1


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (Code.NOT_FOUND, Kind.REOPEN),
        (Code.FAILED_PRECONDITION, Kind.REOPEN),
        (Code.RESOURCE_EXHAUSTED, Kind.ELSEWHERE),
        (Code.UNIMPLEMENTED, Kind.UNFIT),
        (Code.PERMISSION_DENIED, Kind.UNFIT),
        (Code.INVALID_ARGUMENT, Kind.WRONG),
    ],
)
def test_statuses_without_a_reason_are_judged_by_their_code(
    code: grpc.StatusCode, kind: Kind, endpoint: Endpoint, server: Middleman
) -> None:
    server.script("Verify", fail(code, "who knows"))
    with pytest.raises(Failure, match="who knows") as failed:
        verify(endpoint, transport())
    assert failed.value.kind is kind


def test_nobody_there_is_noticed_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        nowhere = Endpoint(address, RemoteSettings((address,)))
        with pytest.raises(Failure) as failed:
            verify(nowhere, transport())
        nowhere.close()
    assert failed.value.kind is Kind.AGAIN
    assert failed.value.message.startswith("nothing listens there")


@dataclass(frozen=True)
class Folder:
    """Certificates on disk: ca.pem, other.pem (another authority), server.pem and server.key."""

    path: Path
    server: grpc.ServerCredentials

    def __call__(self, name: str) -> str:
        return str(self.path / name)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    path = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(path / "ca.pem")
    trustme.CA().cert_pem.write_to_path(path / "other.pem")
    own = authority.issue_cert("127.0.0.1")
    key, chain = own.private_key_pem, own.cert_chain_pems[0]
    key.write_to_path(path / "server.key")
    chain.write_to_path(path / "server.pem")
    asks = authority.cert_pem.bytes()
    served = grpc.ssl_server_credentials([(key.bytes(), chain.bytes())], asks, True)
    return Folder(path, served)


@pytest.fixture(scope="module")
def tls_port(certificates: Folder) -> Iterator[int]:
    """Of a server that wants TLS and a certificate of its clients, and answers nothing."""
    with ThreadPoolExecutor(1) as pool:
        found = grpc.server(pool)
        port = found.add_secure_port("127.0.0.1:0", certificates.server)
        found.start()
        yield port
        found.stop(0).wait()


@pytest.mark.parametrize(
    ("host", "given", "words"),
    [
        ("127.0.0.1", {}, "it closed the connection at once, as servers do that want TLS"),
        ("127.0.0.1", {"tls_ca": "other.pem"}, "its certificate is not of the given authority"),
        ("localhost", {"tls_ca": "ca.pem"}, "its certificate is for another name"),
        ("127.0.0.1", {"tls_ca": "ca.pem"}, "or a certificate of this device"),
    ],
)
def test_connections_that_come_to_nothing_say_why(
    certificates: Folder, tls_port: int, host: str, given: dict[str, Any], words: str
) -> None:
    address = f"{host}:{tls_port}"
    files: dict[str, Any] = {name: certificates(file) for name, file in given.items()}
    asked = Endpoint(address, RemoteSettings((address,), **files))
    with pytest.raises(Failure, match=words) as failed:
        verify(asked, transport())
    asked.close()
    assert failed.value.kind is Kind.AGAIN


def test_tls_to_a_server_without(certificates: Folder, server: Middleman) -> None:
    settings = RemoteSettings((server.address,), tls_ca=certificates("ca.pem"))
    asked = Endpoint(server.address, settings)
    with pytest.raises(Failure, match="does not speak TLS"):
        verify(asked, transport())
    asked.close()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tls_ca": "server.key"}, r"server.key' \(--tls-ca\) holds no certificate"),
        ({"tls_ca": "nothing.pem"}, "nothing.pem' cannot be read: No such file"),
        (
            {"tls_ca": "ca.pem", "tls_cert": "other.pem", "tls_key": "server.key"},
            "other.pem' and '.*server.key' are no certificate and its key",
        ),
    ],
)
def test_certificates_that_are_no_good_are_told_before_anything_is_sent(
    certificates: Folder, given: dict[str, str], words: str
) -> None:
    files: dict[str, Any] = {name: certificates(file) for name, file in given.items()}
    with pytest.raises(ConfigError, match=words):
        Servers(RemoteSettings(("127.0.0.1:9",), **files))
    Servers(RemoteSettings(("127.0.0.1:9",), tls_ca=certificates("ca.pem"))).close()


def test_what_is_done_meanwhile_is_done_once_and_can_see_the_answer_come(
    endpoint: Endpoint, server: Middleman
) -> None:
    seen: list[bool] = []

    def meanwhile(answered: Callable[[], bool]) -> None:
        seen.append(answered())
        while not answered():
            time.sleep(0.001)

    def waits(visit: Visit) -> bytes:
        while not seen:
            time.sleep(0.001)
        visit.context.abort(Code.UNAVAILABLE, "after all")
        raise AssertionError

    server.script("Verify", waits)
    answer = verify(endpoint, transport(), meanwhile=meanwhile)
    assert seen == [False] and answer.reply == REPLY


def test_an_error_in_what_is_done_meanwhile_ends_the_call(
    endpoint: Endpoint, server: Middleman
) -> None:
    ended: list[bool] = []

    def waits(visit: Visit) -> bytes:
        visit.context.add_callback(lambda: ended.append(True))
        while not ended:
            time.sleep(0.001)
        return b""

    def broken(answered: Callable[[], bool]) -> None:
        raise KeyError("draft")

    server.script("Verify", waits)
    with pytest.raises(KeyError):
        verify(endpoint, transport(), meanwhile=broken)


# --- Streams --------------------------------------------------------------------------------------


class Replies:
    """A stream of gRPC's, scripted."""

    def __init__(self, *items: Any) -> None:
        self._items = iter(items)
        self.cancelled = False

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            if isinstance(item, Exception):
                raise item
            if item is None:
                while not self.cancelled:  # nothing comes any more
                    time.sleep(0.001)
                return
            yield item

    def cancel(self) -> None:
        self.cancelled = True


def test_a_stream_hands_out_its_replies_in_order_and_ends() -> None:
    stream = ReplyStream(Replies(b"1", b"2"))
    assert [stream.next(WAIT_S) for _ in range(3)] == [b"1", b"2", None]
    stream.close()


def test_a_stream_that_stalls_is_given_up() -> None:
    call = Replies(b"1", None)
    stream = ReplyStream(call)
    assert stream.next(WAIT_S) == b"1"
    with pytest.raises(Failure, match="stalled") as failed:
        stream.next(0.01)
    assert failed.value.kind is Kind.REOPEN and call.cancelled


# --- Where to next --------------------------------------------------------------------------------


class Course:
    """A failover over servers that are never called, on a clock of its own."""

    def __init__(self, *names: str, patience_s: float = 60.0) -> None:
        self.now = 0.0
        self.pauses: list[float] = []
        self.said: list[str] = []
        addresses = tuple(f"{name}:1" for name in names)
        settings = RemoteSettings(addresses, insecure=True)
        endpoints = [Endpoint(address, settings) for address in addresses]
        self.failover = Failover(
            endpoints, self.said.append, lambda: self.now, self._sleep, lambda: 0.5
        )
        self.failover.start(patience_s)

    def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def fail(self, kind: Kind, retry_s: float = 0.0, took_s: float = 0.0) -> str:
        """The server that is asked next."""
        self.now += took_s
        self.failover.failed(Failure(kind, f"{kind.name} it said", retry_s))
        return self.failover.endpoint.address


def test_another_server_is_asked_at_once_and_the_same_one_after_a_pause() -> None:
    two = Course("a", "b")
    assert two.fail(Kind.AGAIN, took_s=2.1) == "b:1" and not two.pauses
    assert two.said == ["no answer from a:1 for 2.1 s: AGAIN it said; trying b:1"]
    two.failover.done()
    assert two.said[1:] == ["going on with b:1 after 2.1 s"]
    two.failover.start(60)
    assert two.fail(Kind.ELSEWHERE) == "a:1" and not two.pauses
    assert two.fail(Kind.ELSEWHERE) == "b:1" and len(two.pauses) == 1
    assert two.said[2] == "b:1: ELSEWHERE it said; trying a:1"


def test_pauses_grow_up_to_a_limit_and_patience_ends() -> None:
    one = Course("a", patience_s=20.0)
    with pytest.raises(RemoteError, match="no server has answered for 2[0-9] s: a:1: AGAIN it"):
        for _ in range(100):
            one.fail(Kind.AGAIN)
    growing = one.pauses[:6]
    assert growing == sorted(growing) and max(one.pauses) <= LONGEST_PAUSE_S
    assert 20 <= one.now < 21
    assert len(one.said) == 1  # one line, not one for every try


def test_a_server_is_given_the_time_that_it_asks_for() -> None:
    one = Course("a")
    one.fail(Kind.ELSEWHERE, retry_s=7.5)
    assert one.pauses == [7.5]
    short = Course("a", patience_s=5.0)
    short.fail(Kind.ELSEWHERE, retry_s=7.5)
    assert short.pauses == [5.0]


def test_a_lost_session_is_opened_where_it_was_unless_it_is_lost_again_and_again() -> None:
    two = Course("a", "b")
    assert two.fail(Kind.REOPEN) == "a:1" and not two.pauses and not two.said
    assert two.fail(Kind.REOPEN) == "a:1" and len(two.pauses) == 1
    assert two.fail(Kind.REOPEN) == "b:1"


def test_servers_that_cannot_serve_are_left_out_for_good_when_they_say_it_twice() -> None:
    two = Course("a", "b")
    assert two.fail(Kind.UNFIT) == "b:1"
    assert two.fail(Kind.AGAIN) == "a:1"  # once may have been the network
    assert two.fail(Kind.UNFIT) == "b:1"
    assert two.fail(Kind.AGAIN) == "b:1"
    two.failover.start(60)
    assert two.fail(Kind.UNFIT) == "b:1"
    with pytest.raises(RemoteError, match="no server can answer: b:1: UNFIT it said"):
        two.fail(Kind.UNFIT)


def test_what_servers_refuse_for_good_is_told_when_they_do_it_twice() -> None:
    two = Course("a", "b")
    assert two.fail(Kind.WRONG) == "b:1"
    with pytest.raises(RemoteError, match="b:1 refuses the request: WRONG it said"):
        two.fail(Kind.WRONG)
    two.failover.start(60)
    two.fail(Kind.WRONG)  # another request, counted from the beginning


def test_a_target_that_breaks_everywhere_is_given_up() -> None:
    two = Course("a", "b")
    assert two.fail(Kind.BROKEN) == "b:1"
    assert two.fail(Kind.BROKEN) == "a:1"
    with pytest.raises(RemoteError, match="BROKEN it said"):
        two.fail(Kind.BROKEN)


def test_patience_is_counted_from_the_request_not_from_the_last_answer() -> None:
    one = Course("a", patience_s=5.0)
    one.now = 1000.0  # the consumer took its time
    one.failover.start(5.0)
    assert one.fail(Kind.AGAIN) == "a:1"


# --- Deadlines ------------------------------------------------------------------------------------


def test_deadlines_follow_what_rounds_take() -> None:
    pace = Pace(5.0)
    assert pace.deadline_s() == 5.0
    for _ in range(8):
        pace.took(0.01)
    assert pace.deadline_s() == FLOOR_S and pace.deadline_s(1) == 2 * FLOOR_S
    for _ in range(40):
        pace.took(1.0)
    assert 3.0 <= pace.deadline_s() <= 5.0 and pace.deadline_s(5) == 5.0
    spread = Pace(5.0)
    for wait in (0.2, 0.3, 0.4, 0.5, 0.2, 0.3, 0.4, 0.5):
        spread.took(wait)
    steady = Pace(5.0)
    for _ in range(8):
        steady.took(0.35)
    assert spread.deadline_s() > steady.deadline_s()


# --- Settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"endpoints": ()}, "no server is named"),
        ({"endpoints": ("orin",)}, "host:port"),
        ({"endpoints": ("orin:0",)}, "host:port"),
        ({"endpoints": ("http://orin:1",)}, "host:port"),
        ({"endpoints": ("::1:5",)}, "host:port"),
        ({"endpoints": ("localhost:1", "localhost:1")}, "twice"),
        ({"endpoints": ("orin:1",)}, "plaintext"),
        ({"endpoints": ("orin:1",), "insecure": True, "token": "x"}, "plaintext; use TLS"),
        ({"tls_cert": "c"}, "together"),
        ({"tls_cert": "c", "tls_key": "k"}, "needs TLS"),
        ({"token": "a b"}, "spaces"),
        ({"mode": "fast"}, "auto, hybrid, remote"),
        ({"local": "yes"}, "none, draft, target"),
        ({"features": "float8"}, "float16, int8"),
        ({"patience_s": 0.0}, "patience_s"),
        ({"deadline_ms": float("nan")}, "deadline_ms"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        RemoteSettings(**{"endpoints": ("localhost:1",), **settings})


def test_settings_that_can_be() -> None:
    assert parse_endpoints("a:1, b:2,") == ("a:1", "b:2")
    for address in ("localhost:1", "127.0.0.3:1", "[::1]:1"):
        assert is_loopback(address) and RemoteSettings((address,), token="secret")
    assert not is_loopback("192.168.1.2:1") and not is_loopback("orin:1")
    secret = RemoteSettings(("orin:1",), tls_ca="ca.pem", token="secret")
    assert secret.tls and "secret" not in repr(secret)


def test_files_that_are_no_certificates_are_named(tmp_path: Path) -> None:
    for content, words in ((None, "cannot be read"), ("x", "no PEM file")):
        path = tmp_path / "ca.pem"
        if content is not None:
            path.write_text(content)
        endpoint = Endpoint("orin:1", RemoteSettings(("orin:1",), tls_ca=path))
        with pytest.raises(ConfigError, match=words):
            endpoint.unary("Verify")
