"""Servers behind HAProxy: sessions stay where they are, and a server that dies costs no token."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import trustme

from edgespec_runtime.entry import load
from edgespec_runtime.remote import RemoteSettings
from edgespec_runtime.wire import verifier_pb2 as pb
from edgespec_runtime.wire.refusal import Reason
from tests.support.calls import Caller, Refused
from tests.support.haproxy import CONFIG, binary, running_haproxy
from tests.support.servers import RunningServer, running_server

if TYPE_CHECKING:
    from tests.support.zoo import Zoo

TOKEN = "a-device's-token"


@dataclass
class Held:
    """An open session."""

    caller: Caller
    opened: pb.OpenRequest
    told: Any

    def step(self) -> None:
        """One plain round."""
        self.told = self.caller.verify(self.opened, self.told)


Keep = Callable[[tuple[RunningServer, Held]], tuple[RunningServer, Held]]


class Site:
    """Two servers, the balancer in front of them, and what a client needs."""

    def __init__(self, servers: list[RunningServer], address: str, authority: Path) -> None:
        self.servers, self.address, self.authority = servers, address, authority

    def caller(self, session_id: bytes) -> Caller:
        """Calls of one session."""
        secrets = grpc.ssl_channel_credentials(self.authority.read_bytes())
        caller = Caller(self.address, secrets=secrets, token=TOKEN)
        caller._metadata = (*caller._metadata, ("x-session-id", session_id.hex()))
        return caller

    def opens(self) -> list[int]:
        """Sessions opened so far, by server."""
        return [
            sum(line["event"] == "open" for line in server.lines if "event" in line)
            for server in self.servers
        ]

    def open(self, session_id: bytes, epoch: int = 1) -> tuple[RunningServer, Held]:
        """A session, and the server that took it."""
        before, caller = self.opens(), self.caller(session_id)
        opened, told = caller.open(session_id=session_id, epoch=epoch)
        (taken,) = [
            server
            for server, count, was in zip(self.servers, self.opens(), before, strict=True)
            if count > was
        ]
        return taken, Held(caller, opened, told)


@pytest.fixture
def site(zoo: Zoo, tmp_path: Path) -> Iterator[Site]:
    binary()
    authority = trustme.CA()
    own = authority.issue_cert("127.0.0.1", "localhost")
    files = {name: tmp_path / name for name in ("ca.pem", "chain.pem", "key.pem", "both.pem")}
    authority.cert_pem.write_to_path(files["ca.pem"])
    own.private_key_pem.write_to_path(files["key.pem"])
    own.private_key_and_cert_chain_pem.write_to_path(files["both.pem"])
    files["chain.pem"].write_bytes(b"".join(blob.bytes() for blob in own.cert_chain_pems))
    tokens = tmp_path / "tokens.txt"
    tokens.write_text(f"{hashlib.sha256(TOKEN.encode()).hexdigest()} robots\n")
    flags = (
        "--tls-cert", files["chain.pem"], "--tls-key", files["key.pem"], "--tokens-file", tokens,
        "--kv-mb", 64, "--grace-s", 30,
    )  # fmt: skip
    bundle = zoo.bundle("gqa")
    with running_server(bundle, *flags) as one, running_server(bundle, *flags) as two:
        variables = {
            "EDGESPEC_PEM": str(files["both.pem"]),
            "EDGESPEC_CA": str(files["ca.pem"]),
            "EDGESPEC_SERVER_1": one.address,
            "EDGESPEC_SERVER_2": two.address,
        }
        with running_haproxy(variables) as address:
            yield Site([one, two], address, files["ca.pem"])


def test_the_configuration_is_valid(tmp_path: Path) -> None:
    pem = tmp_path / "own.pem"
    authority = trustme.CA()
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(pem)
    variables = {
        "EDGESPEC_LISTEN": "127.0.0.1:50051", "EDGESPEC_PEM": str(pem), "EDGESPEC_CA": str(pem),
        "EDGESPEC_SERVER_1": "10.0.0.1:50051", "EDGESPEC_SERVER_2": "10.0.0.2:50051",
    }  # fmt: skip
    checked = subprocess.run(
        [binary(), "-c", "-f", str(CONFIG)],
        env={**os.environ, **variables}, capture_output=True, text=True,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stderr
    assert "[WARNING]" not in checked.stderr


@pytest.mark.slow
def test_sessions_stay_and_move_when_their_server_goes(site: Site, zoo: Zoo) -> None:
    with closing_all() as keep:
        homes = sessions_stay(site, keep)
        victim = an_answer_survives(site, zoo)
        for server, held in homes:
            if server is victim:
                assert refusal(held) == Reason.REOPEN.value
            else:
                held.step()  # the others never noticed
        victim.restart()
        a_draining_server_is_left_alone(site, victim, keep)


def sessions_stay(site: Site, keep: Keep) -> list[tuple[RunningServer, Held]]:
    """Every round is known where it arrives, and both servers have some."""
    homes = [keep(site.open(name(number))) for number in range(8)]
    for _, held in homes * 3:
        held.step()
    assert {server.pid for server, _ in homes} == {server.pid for server in site.servers}
    secrets = grpc.ssl_channel_credentials(site.authority.read_bytes())
    with Caller(site.address, secrets=secrets, token=TOKEN) as caller, pytest.raises(Refused):
        caller.get_info()  # no session, nowhere to go
    return homes


def an_answer_survives(site: Site, zoo: Zoo) -> RunningServer:
    """A client in the middle of an answer loses its server, and says the same; returns which."""
    settings = RemoteSettings(
        (site.address,), tls_ca=site.authority, token=TOKEN, mode="hybrid", ahead=False,
        patience_s=240.0,
    )  # fmt: skip
    remote, picture = load(zoo.bundle("gqa"), threads=1, remote=settings), zoo.picture("gqa", 4)
    wanted = zoo.model("gqa").generate(picture, "w3 w5", max_new_tokens=40).token_ids
    before = site.opens()
    request = remote.stream(picture, "w3 w5", max_new_tokens=40)
    tokens = [next(request).token for _ in range(6)]
    victim = site.servers[int(site.opens()[0] == before[0])]
    victim.kill()
    tokens += [record.token for record in request]
    assert len(wanted) > 12 and tuple(tokens) == wanted
    assert request.remote is not None and request.remote["reopens"] >= 1
    remote.close()
    return victim


def a_draining_server_is_left_alone(site: Site, victim: RunningServer, keep: Keep) -> None:
    """Once its health says so, while it still lives for the sessions that it has. It does not for
    long where nobody asks for them: a machine that stalls meanwhile gets another try."""
    for numbers in (range(first, first + 1000) for first in (1000, 2000, 3000)):
        if left_alone_while_it_lives(site, victim, keep, iter(numbers)):
            return
        victim.restart()
    pytest.fail("sessions go to a server until it is gone")


def left_alone_while_it_lives(
    site: Site, victim: RunningServer, keep: Keep, numbers: Iterator[int]
) -> bool:
    drains = victim.log.count('"draining"')
    patiently(lambda: keep(site.open(name(next(numbers))))[0] is victim)
    victim.process.send_signal(signal.SIGTERM)
    patiently(lambda: victim.log.count('"draining"') > drains)

    def all_elsewhere() -> bool:
        return all(keep(site.open(name(next(numbers))))[0] is not victim for _ in range(6))

    patiently(all_elsewhere)
    return victim.process.poll() is None


def refusal(held: Held) -> str:
    """Why a round is refused, once the balancer knows that its server is gone."""
    found: list[str] = []

    def refused() -> bool:
        with pytest.raises(Refused) as caught:
            held.step()
        found.append(caught.value.reason)
        return bool(found[-1])  # else the balancer's own word

    patiently(refused)
    return found[-1]


def name(number: int) -> bytes:
    return hashlib.md5(number.to_bytes(4, "little")).digest()


def patiently(what: Callable[[], bool]) -> None:
    """Until ``what`` holds; a refusal on the way is none of its business."""
    until = time.monotonic() + 240
    while time.monotonic() < until:
        try:
            if what():
                return
        except Refused:
            pass
        time.sleep(0.1)
    pytest.fail("it never came to pass")


@contextmanager
def closing_all() -> Iterator[Keep]:
    kept: list[Held] = []

    def keep(opened: tuple[RunningServer, Held]) -> tuple[RunningServer, Held]:
        kept.append(opened[1])
        return opened

    try:
        yield keep
    finally:
        for held in kept:
            held.caller.channel.close()
