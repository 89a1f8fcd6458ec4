"""Who is let in, as whom, and how much they get: certificates, tokens, tenants, quotas."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from edgespec.errors import ConfigError, InputError
from edgespec_runtime.server.quotas import Account, Bucket
from edgespec_runtime.server.reload import Reloaded
from edgespec_runtime.server.settings import Address, Identity, Quota, ServeSettings
from edgespec_runtime.server.tenants import DIGEST, NAME, Tenants, read_table
from edgespec_runtime.wire import verifier_pb2 as pb
from edgespec_runtime.wire.refusal import Reason, Refusal
from tests.support import http2
from tests.support.calls import SERVICE, Caller, Refused
from tests.support.scripted import scripted_server
from tests.support.servers import RunningServer, running_server

LOCAL = Address("127.0.0.1", 0)
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@dataclass(frozen=True)
class Authority:
    """A certificate authority with its files in a folder."""

    folder: Path
    ca: trustme.CA

    @property
    def root(self) -> Path:
        path = self.folder / "ca.pem"
        self.ca.cert_pem.write_to_path(str(path))
        return path

    def issue(self, name: str, *names: str, days: int = 30) -> tuple[Path, Path]:
        """Certificate and key files of ``name``, for ``names``; replaces earlier ones."""
        until = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=days)
        issued = self.ca.issue_cert(*names, not_after=until)
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        key.write_bytes(issued.private_key_pem.bytes())
        return cert, key

    def client(self, *names: str, days: int = 30) -> grpc.ChannelCredentials:
        """Credentials of a client with a certificate for ``names``."""
        cert, key = self.issue(f"client-{names[0]}", *names, days=days)
        return grpc.ssl_channel_credentials(
            self.root.read_bytes(), key.read_bytes(), cert.read_bytes()
        )

    def stranger(self) -> grpc.ChannelCredentials:
        """A client that trusts this authority and has no certificate."""
        return grpc.ssl_channel_credentials(self.root.read_bytes())


def authority(folder: Path) -> Authority:
    folder.mkdir()
    return Authority(folder, trustme.CA())


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("ours") / "ca")


@pytest.fixture(scope="module")
def clients(ours: Authority) -> Path:
    file = ours.folder / "clients.txt"
    file.write_text("# names and tenants\nalice.test acme\nbob.test burger\neve.test acme\n")
    return file


@pytest.fixture(scope="module")
def server(builtin_bundle: Path, ours: Authority, clients: Path) -> Iterator[RunningServer]:
    """mTLS; tests that change files put them back."""
    cert, key = ours.issue("server", "localhost", "127.0.0.1")
    flags = ("--tls-cert", cert, "--tls-key", key, "--tls-client-ca", ours.root)
    with running_server(builtin_bundle, *flags, "--clients-file", clients) as running:
        yield running


def at(server: RunningServer, secrets: grpc.ChannelCredentials | None, **extra: Any) -> Caller:
    return Caller(server.address.replace("127.0.0.1", "localhost"), secrets=secrets, **extra)


def turned_away(caller: Caller) -> Refused:
    with caller, pytest.raises(Refused) as caught:
        caller.get_info()
    return caught.value


def test_a_known_client_is_served(server: RunningServer, ours: Authority) -> None:
    with at(server, ours.client("alice.test")) as caller:
        opened, told = caller.open()
        assert caller.verify(opened, told).round == 1
    assert server.lines[-1]["tenant"] == "acme"


def test_nobody_else_gets_through_the_handshake(
    server: RunningServer, ours: Authority, tmp_path: Path
) -> None:
    foreign = authority(tmp_path / "foreign")
    cert, key = foreign.issue("mallory", "alice.test")
    forged = grpc.ssl_channel_credentials(
        ours.root.read_bytes(), key.read_bytes(), cert.read_bytes()
    )
    expired = ours.client("alice.test", days=-1)
    for secrets in (ours.stranger(), forged, expired, None):
        assert turned_away(at(server, secrets)).code is UNAVAILABLE
    assert turned_away(at(server, foreign.client("alice.test"))).code is UNAVAILABLE


def test_a_certificate_that_is_not_listed_is_nobody(server: RunningServer, ours: Authority) -> None:
    error = turned_away(at(server, ours.client("carol.test")))
    assert (error.code, error.reason) == (UNAUTHENTICATED, "UNAUTHENTICATED")
    assert "carol" not in error.details


def test_sessions_belong_to_their_tenant(server: RunningServer, ours: Authority) -> None:
    """Another tenant with the same session id finds nothing, not even that it exists."""
    with at(server, ours.client("alice.test")) as alice, at(server, ours.client("bob.test")) as bob:
        opened, told = alice.open()
        with pytest.raises(Refused) as theirs:
            bob.verify(opened, told)
        with pytest.raises(Refused) as nobodys:
            bob.verify(bob.open_request(), told)
        assert str(theirs.value) == str(nobodys.value)
        assert theirs.value.code is grpc.StatusCode.NOT_FOUND
        bob.call("Close", pb.CloseRequest(session_id=opened.session_id, epoch=9))
        with at(server, ours.client("eve.test")) as colleague:
            assert colleague.verify(opened, told).round == 1


def test_a_client_is_struck_off_without_a_restart(
    server: RunningServer, ours: Authority, clients: Path
) -> None:
    before = clients.read_text()
    with at(server, ours.client("bob.test")) as bob:
        bob.get_info()
        clients.write_text(before.replace("bob.test burger\n", ""))
        with pytest.raises(Refused) as caught:  # on the connection that was open
            bob.get_info()
        assert caught.value.code is UNAUTHENTICATED
        clients.write_text("a broken line is\n")
        with pytest.raises(Refused):  # the last good list counts
            bob.get_info()
        assert server.lines[-2]["event"] == "kept the old file"
        clients.write_text(before)
        bob.get_info()


def test_the_servers_certificate_is_renewed_without_a_restart(
    server: RunningServer, ours: Authority, tmp_path: Path
) -> None:
    alice = ours.client("alice.test")
    with at(server, alice) as caller:
        caller.get_info()
        theirs = authority(tmp_path / "next")
        cert, key = theirs.issue("server", "localhost")
        own_cert, own_key = ours.folder / "server.pem", ours.folder / "server.key"
        own_key.write_bytes(b"half a file")
        with at(server, alice) as other:  # nonsense is not taken up
            other.get_info()
        own_key.write_bytes(key.read_bytes())
        own_cert.write_bytes(cert.read_bytes())
        assert turned_away(at(server, alice)).code is UNAVAILABLE  # who trusts the old one
        pem = (ours.folder / "client-alice.test.pem", ours.folder / "client-alice.test.key")
        renewed = grpc.ssl_channel_credentials(
            theirs.root.read_bytes(), pem[1].read_bytes(), pem[0].read_bytes()
        )
        with at(server, renewed) as other:
            other.get_info()
        caller.get_info()  # connections stay
        ours.issue("server", "localhost", "127.0.0.1")


def test_others_are_served_during_handshakes_that_never_end(
    server: RunningServer, ours: Authority
) -> None:
    """400 connections that say nothing are all closed, and nobody waits for them."""
    with contextlib.ExitStack() as stack, at(server, ours.client("alice.test")) as caller:
        wires = [
            stack.enter_context(http2.connected(server.address, hello=False)) for _ in range(400)
        ]
        for wire in wires[:200]:
            wire.sendall(b"\x16\x03\x01\x02\x00\x01")  # a client's hello begins
        caller.get_info()
        for wire in wires:
            http2.until_closed(wire)


def test_tokens_over_tls_beyond_loopback(
    builtin_bundle: Path, ours: Authority, tokens: Path
) -> None:
    cert, key = ours.issue("wide", "localhost")
    flags = ("--tls-cert", cert, "--tls-key", key, "--tokens-file", tokens)
    wide = ("--listen", "0.0.0.0:0")
    with running_server(builtin_bundle, *flags, *wide) as running:
        address = running.address.replace("0.0.0.0", "localhost")
        with Caller(address, secrets=ours.stranger(), token="a-token") as caller:
            assert caller.open()[1].committed_len == 1
        nobody = Caller(address, secrets=ours.stranger(), token="wrong")
        assert turned_away(nobody).code is UNAUTHENTICATED
        assert turned_away(Caller(address, token="a-token")).code is UNAVAILABLE  # plaintext


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tokens") / "tokens.txt"
    file.write_text(f"{digest('a-token')} acme\n{digest('b-token')} burger\n")
    return file


@pytest.fixture(scope="module")
def token_server(builtin_bundle: Path, tokens: Path) -> Iterator[RunningServer]:
    with running_server(
        builtin_bundle, "--tokens-file", tokens, "--quota-sessions", 3, "--quota-requests", 8
    ) as running:
        yield running


def test_tokens_name_tenants(token_server: RunningServer) -> None:
    with at(token_server, None, token="a-token") as a, at(token_server, None, token="b-token") as b:
        opened, told = a.open()
        with pytest.raises(Refused) as caught:
            b.verify(opened, told)
        assert caught.value.reason == "REOPEN"
        assert a.verify(opened, told).round == 1
        a.call("Close", pb.CloseRequest(session_id=opened.session_id, epoch=1))


@pytest.mark.parametrize("token", ["wrong", "", "a-token ", "A-TOKEN", digest("a-token")])
def test_wrong_tokens(token_server: RunningServer, token: str) -> None:
    error = turned_away(at(token_server, None, token=token))
    assert (error.code, error.reason) == (UNAUTHENTICATED, "UNAUTHENTICATED")
    assert error.details == "valid credentials are needed (--token-file or --tls-cert)"


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", "Basic a-token"),),
        (("authorization", "a-token"),),
        (("authorization", "Bearer a-token"), ("authorization", "Bearer a-token")),
    ],
)
def test_other_words_than_a_token(
    token_server: RunningServer, metadata: tuple[tuple[str, str], ...]
) -> None:
    with at(token_server, None) as caller, pytest.raises(Refused) as caught:
        caller.raw(SERVICE + "GetInfo", b"\x08\x01", metadata=metadata)
    assert caught.value.code is UNAUTHENTICATED


def test_tokens_are_revoked_without_a_restart(token_server: RunningServer, tokens: Path) -> None:
    before = tokens.read_text()
    with at(token_server, None, token="b-token") as caller:
        caller.get_info()
        tokens.write_text(f"# b's is gone\n{digest('a-token')} acme\n{digest('new')} burger\n")
        with pytest.raises(Refused):
            caller.get_info()
        with at(token_server, None, token="new") as renewed:
            renewed.get_info()
        tokens.write_text(before)
        caller.get_info()
    log = token_server.log
    assert "b-token" not in log and digest("b-token") not in log


@pytest.mark.parametrize("tenant", ["", "acme"])
def test_a_stream_ends_with_its_clients_credentials(tenant: str, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.txt"
    tokens.write_text(f"{digest('b-token')} burger\n")
    settings = ServeSettings(LOCAL, identity=Identity(tokens=tokens), quota=Quota(rounds_per_s=1.0))
    with scripted_server(settings) as server, Caller(server.address, token="b-token") as caller:
        opened, told = caller.open(max_new_tokens=400)
        stream = caller.proceed(opened, told, 399)
        next(stream)
        tokens.write_text(f"{digest('b-token')} {tenant}\n" if tenant else "")
        with pytest.raises(Refused) as caught:
            list(stream)
        assert caught.value.code is UNAUTHENTICATED and server.backend.left == 1


def test_a_flood_of_sessions_is_the_floods_problem(token_server: RunningServer) -> None:
    """Three sessions a tenant: the fourth is refused, another tenant opens, and a close or a
    reopen makes room."""
    with at(token_server, None, token="a-token") as a, at(token_server, None, token="b-token") as b:
        sessions = [a.open()[0] for _ in range(3)]
        for _ in range(20):
            with pytest.raises(Refused) as caught:
                a.open()
            assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert caught.value.reason == "QUOTA" and caught.value.retry_after_ms > 0
        b.call("Close", pb.CloseRequest(session_id=b.open()[0].session_id, epoch=1))
        a.open(session_id=sessions[0].session_id, epoch=2)
        for stale in (1, 2):  # a close of an older epoch frees nothing
            a.call("Close", pb.CloseRequest(session_id=sessions[0].session_id, epoch=stale))
            if stale == 1:
                with pytest.raises(Refused):
                    a.open()
        sessions[0] = a.open()[0]
        for session in sessions:
            a.call("Close", pb.CloseRequest(session_id=session.session_id, epoch=1))


def test_calls_without_a_body_block_their_own_tenant_only(token_server: RunningServer) -> None:
    block = http2.headers(SERVICE + "Verify", [("authorization", "Bearer a-token")])
    calls = [http2.frame(http2.HEADERS, http2.END_HEADERS, s, block) for s in range(1, 120, 2)]
    with contextlib.ExitStack() as stack:
        for _ in range(6):
            wire = stack.enter_context(http2.connected(token_server.address))
            wire.sendall(b"".join(calls))
        with at(token_server, None, token="b-token") as b:
            opened, told = b.open()
            assert b.verify(opened, told).round == 1
            b.call("Close", pb.CloseRequest(session_id=opened.session_id, epoch=1))


def test_rounds_have_a_rate() -> None:
    settings = ServeSettings(LOCAL, quota=Quota(rounds_per_s=0.01))
    with scripted_server(settings) as server, Caller(server.address) as caller:
        opened, told = caller.open()
        told = caller.verify(opened, told)
        with pytest.raises(Refused) as caught:
            caller.verify(opened, told)
        assert caught.value.reason == "QUOTA" and 90_000 < caught.value.retry_after_ms <= 100_000


LISTEN = Address("0.0.0.0", 50051)


@pytest.mark.parametrize(
    ("given", "said"),
    [({}, "not encrypted"), ({"tokens": True}, "not encrypted"), ({"cert": True}, "asks nobody")],
)
def test_beyond_loopback(given: dict[str, bool], said: str, ours: Authority, tokens: Path) -> None:
    cert, key = ours.issue("open", "localhost")
    identity = Identity(
        cert=cert if "cert" in given else None,
        key=key if "cert" in given else None,
        tokens=tokens if "tokens" in given else None,
    )
    with pytest.raises(ConfigError, match=said):
        ServeSettings(LISTEN, identity=identity)
    assert ServeSettings(LISTEN, identity=identity, insecure=True)
    assert ServeSettings(Address("::1", 1), identity=identity)
    assert ServeSettings(LISTEN, identity=Identity(cert, key, tokens=tokens))
    assert ServeSettings(LISTEN, identity=Identity(cert, key, client_ca=ours.root))


@pytest.mark.parametrize(
    ("text", "loopback"),
    [("127.9.9.9:1", True), ("[::1]:1", True), ("localhost:1", True), ("10.0.0.1:1", False),
     ("[::]:1", False), ("example.test:1", False), ("0.0.0.0:1", False)],
)  # fmt: skip
def test_addresses(text: str, loopback: bool) -> None:
    address = Address.parse(text, "--listen")
    assert str(address) == text and address.loopback is loopback


@pytest.mark.parametrize("text", ["", ":1", "::1:5", "host:", "host:x", "host:-1", "[::1]"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        Address.parse(text, "--listen")


@pytest.mark.parametrize(
    "text", ["abc acme", digest("x"), f"{digest('x')} a b", f"{digest('x').upper()} acme",
             f"{digest('x')} a\x1b[31m", f"{digest('x')} a\n{digest('x')} b", "\xff\xfe"],
)  # fmt: skip
def test_token_files_that_are_no_good(text: str, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError) as caught:
        read_table(file, DIGEST)
    assert digest("x") not in str(caught.value)


def test_names_of_certificates(tmp_path: Path) -> None:
    """The first usable name is the tenant; one that could do harm in a log or label is not."""
    file = tmp_path / "ca"
    file.write_text("x")
    tenants = Tenants(Identity(cert=file, key=file, client_ca=file), print)
    assert tenants.of(["bad name\n", "spiffe://a/b", "c"], []) == "spiffe://a/b"
    for names in ([], ["\x1b[2J"], ["x" * 200], [""]):
        with pytest.raises(Refusal) as caught:
            tenants.of(names, ["Bearer x"])
        assert caught.value.reason is Reason.UNAUTHENTICATED
    assert NAME.fullmatch("device-7.example")


def test_reloading_keeps_the_last_good_value(tmp_path: Path) -> None:
    file = tmp_path / "value"
    file.write_text("1")
    said: list[str] = []

    def read() -> int:
        text = file.read_text()
        if not text.isdecimal():
            raise InputError(f"'{text}' is no number")
        return int(text)

    value = Reloaded([file], read, said.append)
    assert value.fresh() == (1, False)
    file.write_text("bad")
    assert value.value() == value.value() == 1 and said == ["'bad' is no number"]
    file.write_text("22")
    assert value.fresh() == (22, True)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_buckets_fill_with_time() -> None:
    clock = Clock()
    bucket = Bucket(10.0, 1.0, clock)
    assert [bucket.wait_s() for _ in range(10)] == [0.0] * 10
    assert bucket.wait_s() == pytest.approx(0.1)
    clock.now += 0.1
    assert bucket.wait_s() == 0.0 and bucket.wait_s() > 0
    clock.now += 1000.0
    assert [bucket.wait_s() > 0 for _ in range(11)] == [False] * 10 + [True]


def test_what_is_larger_than_a_bucket_is_owed() -> None:
    clock = Clock()
    bucket = Bucket(10.0, 1.0, clock)
    assert bucket.wait_s(35.0) == 0.0
    assert bucket.wait_s() == pytest.approx(2.6)


def test_sessions_are_counted_until_their_lease_ends() -> None:
    clock = Clock()
    account = Account("acme", Quota(sessions=2, pixels_per_s=100.0), clock)

    def opens(name: bytes, pixels: int = 0, lease_s: float = 10.0) -> bool:
        try:
            with account.opening(name, pixels):
                account.keep(name, 1, lease_s)
        except Refusal as refusal:
            assert refusal.reason is Reason.QUOTA
            return False
        return True

    assert opens(b"a") and opens(b"b") and opens(b"b") and not opens(b"c")
    clock.now += 9.0
    account.used(b"a")
    clock.now += 2.0
    assert opens(b"c") and not opens(b"d")  # b's lease is over
    with pytest.raises(RuntimeError), account.opening(b"a", 0):
        raise RuntimeError
    assert account.sessions == 2
    with pytest.raises(RuntimeError), account.opening(b"c", 0), account.opening(b"c", 0):
        raise RuntimeError
    assert account.sessions == 2
    account.forget(b"a", 1)
    with pytest.raises(RuntimeError), account.opening(b"e", 0):
        raise RuntimeError
    assert account.sessions == 1
    assert opens(b"e", pixels=1000) and not opens(b"e", pixels=1)
    clock.now += 1.0
    assert opens(b"e", pixels=1)


def test_every_token_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time says nothing about how much of a token was right, or which one it was."""
    import hmac

    compared: list[str] = []
    real: Callable[[str, str], bool] = hmac.compare_digest

    def watched(known: str, given: str) -> bool:
        compared.append(known)
        return real(known, given)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    file = tmp_path / "tokens"
    file.write_text("".join(f"{digest(str(i))} t{i}\n" for i in range(5)))
    tenants = Tenants(Identity(tokens=file), print)
    assert tenants.of([], ["Bearer 0"]) == "t0" and len(compared) == 5
    with pytest.raises(Refusal):
        tenants.of([], ["Bearer no"])
    assert len(compared) == 10
