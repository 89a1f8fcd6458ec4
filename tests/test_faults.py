"""Faults of the network and of servers, each one on its own: the text never changes.

Real servers behind fault proxies. A fault strikes while a round is away: the server has the
request, its reply is held back on the way.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import grpc
import pytest

import edgespec_runtime
from edgespec.tree import TokenTree
from edgespec_runtime import Model
from edgespec_runtime.remote import RemoteSettings
from edgespec_runtime.remote.session import Session
from edgespec_runtime.wire import verifier_pb2 as pb
from edgespec_runtime.wire.refusal import Reason
from tests.support.chaos import crowd_out
from tests.support.faultproxy import FaultProxy
from tests.support.servers import RunningServer, running_server
from tests.support.unhurried import unhurried
from tests.support.zoo import Zoo

NAME = "gqa"
PROMPT = "What comes next?"
SAMPLING: list[dict[str, Any]] = [{"temperature": 0.0}, {"temperature": 1.0, "seed": 12}]
LENGTH = 40
STRIKE = 12
"""Tokens in front of the fault."""
PATIENT = {"deadline_ms": 20_000.0, "open_deadline_ms": 30_000.0}
"""Nothing but the fault ends a call."""
HASTY = {"deadline_ms": 700.0, "open_deadline_ms": 5_000.0}
"""Deadlines are what notices the fault."""


@pytest.fixture(scope="module")
def bundle(zoo: Zoo) -> Path:
    return zoo.bundle(NAME)


@pytest.fixture(scope="module")
def local(zoo: Zoo) -> Model:
    return zoo.model(NAME)


@pytest.fixture(scope="module")
def running(bundle: Path) -> Iterator[list[RunningServer]]:
    with running_server(bundle, "--grace-s", 1) as one, running_server(bundle) as other:
        yield [one, other]


@pytest.fixture
def servers(running: list[RunningServer]) -> Iterator[list[RunningServer]]:
    """Two servers that run, whatever the test before did to them."""
    for server in running:
        if server.process.poll() is not None:
            server.restart()
    yield running


@dataclass
class Told:
    """One answer through a fault."""

    tokens: tuple[int, ...]
    remote: dict[str, Any]
    notices: list[str] = field(default_factory=list)
    waits_ms: list[float] = field(default_factory=list)
    """Of every round."""


class Way:
    """Proxies in front of servers, and a client behind them."""

    def __init__(self, bundle: Path, proxies: Sequence[FaultProxy], settings: dict[str, Any]):
        self.proxies = proxies
        self.notices: list[str] = []
        given = {"mode": "hybrid", **settings, "notice": self.notices.append}
        remote = RemoteSettings(tuple(proxy.address for proxy in proxies), **given)
        self.model = edgespec_runtime.load(bundle, threads=1, remote=remote)

    def ask(self, strike: Callable[[], object], *, away: bool = True, **settings: Any) -> Told:
        """An answer in the middle of which ``strike`` is called: with ``away`` while a round is
        away from the first proxy, else between two rounds."""
        request = self.model.stream(
            None, PROMPT, policy="eagle2:nodes=8,depth=4,top_k=2", max_new_tokens=LENGTH, **settings
        )
        waits: list[float] = []
        request.listen(lambda outcome: waits.append(outcome.verify_ms))
        tokens = [next(request).token for _ in range(STRIKE)]
        before = self.proxies[0].counters.up_bytes
        thread = threading.Thread(target=self._while_away, args=(strike, before))
        if away:
            self.proxies[0].set(mute=True)
            thread.start()
        else:
            strike()
        tokens += [record.token for record in request]
        if away:
            thread.join()
        return Told(tuple(tokens), request.remote or {}, self.notices, waits)

    def _while_away(self, strike: Callable[[], object], before: int) -> None:
        """``before``: bytes that have passed before the round was sent."""
        proxy = self.proxies[0]
        while proxy.counters.up_bytes < before + 50:  # the request has passed
            time.sleep(0.002)
        time.sleep(0.05)
        strike()
        proxy.set(mute=False)


@contextmanager
def way(bundle: Path, *servers: RunningServer, **settings: Any) -> Iterator[Way]:
    with ExitStack() as stack:
        proxies = [stack.enter_context(FaultProxy(server.address)) for server in servers]
        if "deadline_ms" not in settings:  # a machine that stalls is no fault
            stack.enter_context(unhurried())
        found = Way(bundle, proxies, {**PATIENT, **settings})
        stack.callback(found.model.close)
        yield found


def right(local: Model, **settings: Any) -> tuple[int, ...]:
    given = {"draft": "none", "max_new_tokens": LENGTH, **settings}
    return local.generate(None, PROMPT, **given).token_ids


# Row 1.
@pytest.mark.parametrize("sampling", SAMPLING, ids=str)
def test_a_server_killed_in_a_round_is_a_pause(
    bundle: Path, local: Model, servers: list[RunningServer], sampling: dict[str, Any]
) -> None:
    with way(bundle, *servers) as path:
        told = path.ask(servers[0].kill, **sampling)
    assert told.tokens == right(local, **sampling)
    # At most one deadline (here: the connection's end, at once) and one prefill elsewhere, in one
    # round; the user is told of a pause.
    assert told.remote["reopens"] == 1 and told.remote["retries"] <= 2
    assert told.remote["endpoint"] == path.proxies[1].address
    assert any(f"trying {path.proxies[1].address}" in notice for notice in told.notices)
    slow = max(told.waits_ms)
    others = sorted(told.waits_ms[1:])[:-1]
    assert sum(others) / len(others) < slow  # one pause, not many


# Row 1, with nobody to take over.
def test_a_server_killed_and_started_again_goes_on(
    bundle: Path, local: Model, servers: list[RunningServer]
) -> None:
    def strike() -> None:
        servers[0].kill()
        servers[0].restart()

    with way(bundle, servers[0], patience_s=240.0) as path:
        told = path.ask(strike)
    assert told.tokens == right(local) and told.remote["reopens"] >= 1


# Row 5.
@pytest.mark.parametrize("sampling", SAMPLING, ids=str)
def test_a_reply_lost_behind_the_commit_is_given_again(
    bundle: Path, local: Model, servers: list[RunningServer], sampling: dict[str, Any]
) -> None:
    with way(bundle, servers[0]) as path:
        told = path.ask(path.proxies[0].reset, **sampling)
    assert told.tokens == right(local, **sampling)
    assert (told.remote["retries"], told.remote["reopens"]) == (1, 0)


# Row 6.
def test_over_to_the_other_server_and_back_to_the_stale_one(
    bundle: Path, local: Model, servers: list[RunningServer]
) -> None:
    with way(bundle, *servers) as path:
        first, second = path.proxies

        def gone(proxy: FaultProxy) -> None:
            proxy.set(refuse=True)
            proxy.reset()

        request = path.model.stream(None, PROMPT, max_new_tokens=LENGTH)
        tokens = [next(request).token for _ in range(8)]
        gone(first)
        tokens += [next(request).token for _ in range(12)]
        assert (request.remote or {})["endpoint"] == second.address
        first.clear()
        gone(second)
        tokens += [record.token for record in request]
        told = request.remote or {}
    assert tuple(tokens) == right(local)
    assert told["endpoint"] == first.address and told["reopens"] == 2


# Row 7.
def test_an_old_open_that_arrives_late_changes_nothing(
    bundle: Path, local: Model, servers: list[RunningServer]
) -> None:
    server = servers[0]
    with way(bundle, server, server, open_deadline_ms=400.0) as path:
        slow, fast = path.proxies
        request = path.model.stream(None, PROMPT, max_new_tokens=LENGTH)
        # The first open is held on its way; the session is opened by the other way to the same
        # server, and the old request arrives in the middle of the answer.
        assert path.model._remote is not None
        path.model._remote.servers.ordered()[0].info = info(server)
        slow.set(black_hole=True)
        tokens = [next(request).token for _ in range(STRIKE)]
        assert (request.remote or {})["endpoint"] == fast.address
        slow.clear()
        time.sleep(0.2)
        tokens += [record.token for record in request]
        told = request.remote or {}
    assert tuple(tokens) == right(local)
    assert told["reopens"] == 1  # none behind the one that went the other way


# Row 8.
def test_a_half_open_connection_is_noticed_and_replaced(
    bundle: Path, local: Model, servers: list[RunningServer]
) -> None:
    with way(bundle, servers[0], **HASTY) as path:
        proxy = path.proxies[0]
        told = path.ask(proxy.forget)
        assert proxy.counters.connections >= 2
    assert told.tokens == right(local) and told.remote["retries"] >= 1


# Row 9.
@pytest.mark.parametrize("weather", [
    {"latency_ms": 60.0, "jitter_ms": 40.0},
    {"up_bytes_s": 4_000.0, "down_bytes_s": 4_000.0},
], ids=["latency", "throttle"])  # fmt: skip
def test_a_network_that_becomes_slow_costs_time_alone(
    bundle: Path, local: Model, servers: list[RunningServer], weather: dict[str, float]
) -> None:
    with way(bundle, servers[0], **HASTY) as path:
        told = path.ask(lambda: path.proxies[0].set(**weather), away=False)
    assert told.tokens == right(local)


# Rows 8 and 9: nothing at all passes for a while.
def test_a_black_hole_that_ends(bundle: Path, local: Model, servers: list[RunningServer]) -> None:
    with way(bundle, servers[0], **HASTY) as path:
        proxy = path.proxies[0]

        def strike() -> None:
            proxy.set(black_hole=True)
            time.sleep(1.0)
            proxy.set(black_hole=False)

        told = path.ask(strike)
    assert told.tokens == right(local) and told.remote["retries"] >= 1


# Row 10.
def test_a_hung_server_is_left_for_another(
    bundle: Path, local: Model, servers: list[RunningServer]
) -> None:
    with way(bundle, *servers, **HASTY) as path:
        try:
            told = path.ask(servers[0].pause, away=False)
        finally:
            servers[0].resume()
        assert told.remote["endpoint"] == path.proxies[1].address
        # What it answers when it wakes up is nobody's any more.
        again = path.model.generate(None, PROMPT, max_new_tokens=LENGTH)
    assert told.tokens == right(local) == again.token_ids
    assert told.remote["reopens"] == 1


# Row 11.
@pytest.mark.parametrize("sampling", SAMPLING, ids=str)
def test_a_session_that_was_evicted_is_opened_again(
    bundle: Path, local: Model, sampling: dict[str, Any]
) -> None:
    with running_server(bundle, "--kv-mb", 2) as server, way(bundle, server) as path:
        told = path.ask(lambda: crowd_out(server.address, local, 16, 60), away=False, **sampling)
    assert told.tokens == right(local, **sampling)
    assert told.remote["reopens"] == 1 and told.notices == []  # nobody has to hear of it


# Row 14.
def test_a_server_that_drains_hands_over(
    bundle: Path, local: Model, servers: list[RunningServer]
) -> None:
    codes: list[int] = []
    with way(bundle, *servers) as path:
        told = path.ask(lambda: codes.append(servers[0].stop()))
    assert codes == [0]
    assert told.tokens == right(local)
    assert told.remote["endpoint"] == path.proxies[1].address


# Row 15.
@pytest.mark.parametrize("sampling", SAMPLING, ids=str)
def test_bits_that_flip_never_reach_the_text(
    bundle: Path, local: Model, servers: list[RunningServer], sampling: dict[str, Any]
) -> None:
    with way(bundle, *servers, **HASTY) as path:

        def strike() -> None:
            for proxy in path.proxies:
                proxy.set(flips=0.03)

        wanted = right(local, **sampling)
        told = path.ask(strike, away=False, **sampling)
        assert told.tokens == wanted
        # How many packets there are is chance, and so is whether one of them is hit: until it is.
        while not sum(proxy.counters.flipped for proxy in path.proxies):
            assert path.ask(lambda: None, away=False, **sampling).tokens == wanted


# Rows 3, 4, 6 and 23, as they look on the wire.
def test_requests_of_the_past_are_refused_by_name(
    bundle: Path, local: Model, servers: list[RunningServer]
) -> None:
    with way(bundle, servers[0]) as path, kept() as seen:
        request = path.model.stream(None, PROMPT, max_new_tokens=LENGTH)
        for _ in range(STRIKE):
            next(request)
        last = pb.VerifyRequest.FromString(seen[-1])
        answers = {
            Reason.STALE_ROUND: change(last, round=1),
            Reason.ROUND_GAP: change(last, round=last.round + 2),
            Reason.ROUND_REUSED: change(last, tree=pb.Tree()),
            Reason.STALE_EPOCH: change(last, epoch=7),
            Reason.STATE_MISMATCH: change(last, round=last.round + 1),
            Reason.REOPEN: change(last, session_id=b"?" * 16),
        }
        for reason, message in answers.items():
            assert refusal(servers[0], message) is reason
        assert [record.token for record in request] == list(right(local))[STRIKE:]


@contextmanager
def kept() -> Iterator[list[bytes]]:
    """The bytes of every Verify that is written meanwhile."""
    seen: list[bytes] = []
    write = Session.verify

    def keep(session: Session, tree: TokenTree) -> bytes:
        seen.append(write(session, tree))
        return seen[-1]

    with patch.object(Session, "verify", keep):
        yield seen


def change(message: pb.VerifyRequest, **fields: Any) -> pb.VerifyRequest:
    """A copy with other fields."""
    made = pb.VerifyRequest()
    made.CopyFrom(message)
    for name, value in fields.items():
        if name == "tree":
            made.tree.CopyFrom(value)
        else:
            setattr(made, name, value)
    return made


def refusal(server: RunningServer, message: pb.VerifyRequest) -> Reason | None:
    """What the server says to ``message``."""
    from edgespec_runtime.remote.transport import _error_info

    with grpc.insecure_channel(server.address) as channel:
        call: Any = channel.unary_unary("/edgespec.v1.Verifier/Verify")
        try:
            call(message.SerializeToString(), timeout=20)
        except grpc.RpcError as error:
            return Reason(_error_info(error).reason)
    return None


def info(server: RunningServer) -> pb.InfoReply:
    """What the server says of itself."""
    with grpc.insecure_channel(server.address) as channel:
        call: Any = channel.unary_unary("/edgespec.v1.Verifier/GetInfo")
        return pb.InfoReply.FromString(call(pb.InfoRequest(protocol=1).SerializeToString()))
