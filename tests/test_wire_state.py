"""The rules of a session under every order of events: clients that retry, lose replies, reopen and
race, a network that repeats and reorders, servers that forget.

The servers' rules are checked against a plain history of what each applied. No answer can be
computed twice unseen: the target of these tests never says the same thing again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from edgespec_runtime.wire import state as rules
from edgespec_runtime.wire.prefix import Prefix, request_digest
from edgespec_runtime.wire.refusal import Reason, Refusal
from edgespec_runtime.wire.state import Claim, SessionState
from tests.support.mutants import plant

CONTEXT = b"the conditions of one answer"


def hashed(tokens: tuple[int, ...]) -> int:
    return Prefix(CONTEXT, tokens).value


@dataclass(frozen=True)
class Sent:
    """A request as it lies in the network; ``kind``: open, verify or continue."""

    kind: str
    epoch: int
    round: int = 0
    tokens: tuple[int, ...] = ()
    """What the client holds; rounds carry its length and hash."""
    tree: int = 0
    """Stands for the content of a round."""
    length_off: int = 0
    hash_off: int = 0

    @property
    def digest(self) -> bytes:
        return request_digest(repr(self).encode())

    @property
    def claim(self) -> Claim:
        told = hashed(self.tokens) ^ self.hash_off
        return Claim(self.epoch, self.round, len(self.tokens) + self.length_off, told, self.digest)


@dataclass
class History:
    """What a server applied since the session's last open: the plain model of its state."""

    opened: Sent
    first: tuple[int, ...]
    open_reply: bytes
    rounds: list[tuple[Sent | None, tuple[int, ...], bytes]] = field(default_factory=list)
    """Request (None where the server went on by itself), tokens and reply of rounds 1, 2, ..."""

    @property
    def tokens(self) -> tuple[int, ...]:
        return sum((tokens for _, tokens, _ in self.rounds), self.opened.tokens + self.first)

    @property
    def last(self) -> Sent:
        """The request that was answered last."""
        asked = [request for request, _, _ in self.rounds if request is not None]
        return asked[-1] if asked else self.opened

    def expect(self, sent: Sent) -> bytes | Reason | None:
        """The reply that a round is due, the reason it is refused for, or None: to be applied."""
        if sent.epoch != self.opened.epoch:
            return Reason.STALE_EPOCH
        if sent.round > len(self.rounds) + 1:
            return Reason.ROUND_GAP
        if sent.round <= len(self.rounds):
            asked, _, reply = self.rounds[sent.round - 1] if sent.round > 0 else (None, (), b"")
            if asked is None or sent.round < len(self.rounds):
                return Reason.STALE_ROUND
            return reply if asked == sent else Reason.ROUND_REUSED
        same = sent.tokens == self.tokens and not sent.length_off and not sent.hash_off
        return None if same else Reason.STATE_MISMATCH


def expect_open(history: History | None, sent: Sent) -> bytes | Reason | None:
    if sent.epoch < 1:
        return Reason.INVALID
    if history is None or sent.epoch > history.opened.epoch:
        return None
    if sent == history.opened and not history.rounds:
        return history.open_reply
    return Reason.STALE_EPOCH


@dataclass
class Server:
    """The rules at work, and beside them the history that says what they should do."""

    state: SessionState | None = None
    history: History | None = None


def outcome(step: Callable[[], bytes | None]) -> bytes | Reason | None:
    try:
        return step()
    except Refusal as refusal:
        return refusal.reason


class Sessions(RuleBasedStateMachine):
    """One session, its client, two servers that know it or not, and a network between them."""

    def __init__(self) -> None:
        super().__init__()
        self.servers = [Server(), Server()]
        self.fresh = count()  # tokens: no two of them are the same
        self.sent: list[Sent] = []
        self.epoch = 0
        self.tokens: tuple[int, ...] = ()
        self.round: int | None = None  # the last that the client committed; None: must open
        self.pending: Sent | None = None  # the client's request without an answer
        self.home = 0  # where the client's session is, and which one it is there
        self.met = 0
        self.applied: dict[tuple[int, int, int], int] = {}
        self.answers: dict[tuple[int, Sent], bytes] = {}
        self.incarnation = [0, 0]

    # The client's own steps. A request may be lost on its way, and so may the replies.

    @property
    def idle(self) -> bool:
        return self.round is not None and self.pending is None

    def send(self, request: Sent, many: int, seen: int) -> None:
        self.sent.append(request)
        self.pending = request
        self.ask(many, seen)

    @rule(server=st.integers(0, 1), seen=st.integers(0, 2))
    def reopen(self, server: int, seen: int) -> None:
        self.epoch += 1
        self.round, self.home = None, server
        self.send(Sent("open", self.epoch, tokens=self.tokens), 1, seen)

    @precondition(lambda self: self.idle)
    @rule(tree=st.integers(0, 2), seen=st.integers(-1, 2))
    def draft(self, tree: int, seen: int) -> None:
        self.send(Sent("verify", self.epoch, 1 + (self.round or 0), self.tokens, tree), 1, seen)

    @precondition(lambda self: self.idle)
    @rule(many=st.integers(1, 3), seen=st.integers(-1, 3))
    def leave_to_the_server(self, many: int, seen: int) -> None:
        request = Sent("continue", self.epoch, 1 + (self.round or 0), self.tokens)
        self.send(request, many, seen)

    @precondition(lambda self: self.pending is not None)
    @rule(many=st.integers(1, 3), seen=st.integers(0, 3))
    def ask(self, many: int, seen: int) -> None:
        """The pending request goes out (again): -1 for lost, else ``seen`` replies come back."""
        request = self.pending
        if request is None or seen < 0:
            return
        replies = self.deliver(self.home, request, many)
        if not isinstance(replies, list):
            self.pending, self.round = None, None  # refused: nothing but a reopen helps
            return
        if request.kind == "open" and seen:
            self.met = self.incarnation[self.home]
        for tokens in replies[:seen]:
            self.tokens += tokens
            self.round = 0 if request.kind == "open" else (self.round or 0) + 1
            self.pending = None
        if request.kind == "continue" and 0 < seen < len(replies):
            self.round = None  # it left the stream half way

    # What the network and the machines do.

    @precondition(lambda self: self.sent)
    @rule(ago=st.integers(1, 4), away=st.booleans(), many=st.integers(1, 3))
    def repeat(self, ago: int, away: bool, many: int) -> None:
        """An old request arrives again, here or there; nobody waits for the reply."""
        at = 1 - self.home if away else self.home
        self.deliver(at, self.sent[-min(ago, len(self.sent))], many)

    @rule(
        server=st.integers(0, 1),
        wrong=st.sampled_from(["epoch", "round", "tokens", "length", "hash", "content"]),
        by=st.sampled_from([-2, -1, 1, 2]),
        tree=st.integers(0, 2),
    )
    def distort(self, server: int, wrong: str, by: int, tree: int) -> None:
        """A request that a broken client might send: one thing of it is wrong."""
        history = self.servers[server].history
        if history is None:
            return
        right = Sent("verify", history.opened.epoch, len(history.rounds) + 1, history.tokens, tree)
        request = {
            "epoch": replace(right, epoch=right.epoch + by),
            "round": replace(right, round=max(right.round + by, 0)),
            "tokens": replace(right, tokens=right.tokens[:-1]),
            "length": replace(right, length_off=by),
            "hash": replace(right, hash_off=abs(by)),
            "content": replace(history.last, tree=history.last.tree + 3),
        }[wrong]
        self.deliver(server, request, 1)

    @rule(server=st.integers(0, 1), pressure=st.integers(0, 3))
    def evict(self, server: int, pressure: int) -> None:
        if pressure < 3:
            return
        self.servers[server] = Server()
        self.incarnation[server] += 1

    # A server takes a request, and the model says what it must do.

    def deliver(self, at: int, request: Sent, many: int) -> list[tuple[int, ...]] | Reason | None:
        """The tokens of every reply, or why there is none."""
        server = self.servers[at]
        if request.kind == "open":
            expected = expect_open(server.history, request)
            got = outcome(lambda: rules.opening(server.state, request.epoch, request.digest))
        elif server.state is None or server.history is None:
            return Reason.REOPEN
        else:
            expected, known = server.history.expect(request), server.state
            got = outcome(lambda: known.admit(request.claim))
        assert got == expected, (request, got, expected)
        if isinstance(got, Reason):
            return got
        if got is not None:
            self.same_answer(at, request, got)
            return [eval(got)]
        if request.kind == "open":
            return [self.open(at, request)]
        return self.compute(at, request, many if request.kind == "continue" else 1)

    def open(self, at: int, request: Sent) -> tuple[int, ...]:
        state = SessionState(request.epoch, CONTEXT, request.tokens)
        first = () if request.tokens else (next(self.fresh),)
        assert state.after(first) == (len(request.tokens + first), hashed(request.tokens + first))
        reply = repr(first).encode()
        state.opened(request.digest, first[0] if first else None, reply)
        self.servers[at] = Server(state, History(request, first, reply))
        self.incarnation[at] += 1
        self.same_answer(at, request, reply)
        return first

    def compute(self, at: int, request: Sent, many: int) -> list[tuple[int, ...]]:
        server, replies = self.servers[at], []
        assert server.state is not None and server.history is not None
        streams = request.kind == "continue"
        for ahead in range(many):
            tokens = tuple(next(self.fresh) for _ in range(1 if streams else 1 + request.tree))
            told = server.state.after(tokens)
            reply = repr(tokens).encode()
            if streams:
                server.state.streamed(tokens)
            else:
                server.state.committed(request.claim, tokens, reply)
                self.same_answer(at, request, reply)
            server.history.rounds.append((None if streams else request, tokens, reply))
            assert told == (server.state.committed_len, server.state.prefix_hash)
            key = (at, self.incarnation[at], request.round + ahead)
            self.applied[key] = self.applied.get(key, 0) + 1
            replies.append(tokens)
        return replies

    def same_answer(self, at: int, request: Sent, reply: bytes) -> None:
        key = (at * 10**6 + self.incarnation[at], request)
        assert self.answers.setdefault(key, reply) == reply

    @invariant()
    def rounds_are_applied_once(self) -> None:
        assert all(times == 1 for times in self.applied.values())

    @invariant()
    def servers_hold_what_their_history_says(self) -> None:
        for server in self.servers:
            if server.state is None or server.history is None:
                continue
            tokens = server.history.tokens
            assert tuple(server.state.tokens) == tokens
            assert server.state.committed_len == len(tokens)
            assert server.state.prefix_hash == hashed(tokens)
            assert server.state.round == len(server.history.rounds)
            assert server.state.epoch == server.history.opened.epoch

    @invariant()
    def nothing_is_doubled(self) -> None:
        assert len(set(self.tokens)) == len(self.tokens)

    @invariant()
    def the_client_builds_on_what_its_server_holds(self) -> None:
        history = self.servers[self.home].history
        if self.round is None or history is None or self.incarnation[self.home] != self.met:
            return  # opened anew meanwhile; a real target says the same things there
        assert history.opened.epoch == self.epoch
        held = history.opened.tokens + history.first
        held = sum((tokens for _, tokens, _ in history.rounds[: self.round]), held)
        assert held == self.tokens


Sessions.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, suppress_health_check=list(HealthCheck)
)
TestSessions = Sessions.TestCase


# --- Rules in single steps -----------------------------------------------------------------------


def an_open_state(tokens: tuple[int, ...] = (4, 5)) -> SessionState:
    state = SessionState(2, CONTEXT, tokens)
    state.opened(b"open", None, b"opened")
    return state


def a_claim(state: SessionState, **changes: Any) -> Claim:
    own = Claim(state.epoch, state.round + 1, state.committed_len, state.prefix_hash, b"round")
    return replace(own, **changes)


def refused(state: SessionState, claim: Claim) -> bytes | Reason | None:
    return outcome(lambda: state.admit(claim))


def check_steps() -> None:
    state = an_open_state()
    assert rules.opening(state, 2, b"open") == b"opened"
    claim = a_claim(state)
    assert state.admit(claim) is None
    assert state.admit(claim) is None  # asking applies nothing
    state.committed(claim, (6, 7), b"reply")
    assert state.admit(claim) == b"reply" and state.tokens == [4, 5, 6, 7]
    assert outcome(lambda: rules.opening(state, 2, b"open")) is Reason.STALE_EPOCH
    assert refused(state, replace(claim, digest=b"x")) is Reason.ROUND_REUSED
    state.streamed((8,))
    assert refused(state, claim) is Reason.STALE_ROUND
    assert refused(state, replace(claim, round=2)) is Reason.STALE_ROUND
    assert state.admit(a_claim(state)) is None
    assert refused(state, a_claim(state, round=4)) is Reason.ROUND_GAP
    for wrong in (a_claim(state, committed_len=4), a_claim(state, prefix_hash=1)):
        assert refused(state, wrong) is Reason.STATE_MISMATCH
    for wrong in (a_claim(state, epoch=1), a_claim(state, epoch=3)):
        assert refused(state, wrong) is Reason.STALE_EPOCH


def test_the_rules_step_by_step() -> None:
    check_steps()


def test_an_open_is_overtaken_by_newer_ones_alone() -> None:
    state = an_open_state()
    assert rules.opening(state, 3, b"newer") is None
    for epoch, digest in ((1, b"older"), (2, b"other bytes"), (0, b"none")):
        refused = Reason.STALE_EPOCH if epoch else Reason.INVALID
        assert outcome(lambda: rules.opening(state, epoch, digest)) is refused  # noqa: B023
    assert rules.opening(None, 7, b"any") is None


def check_no_round_is_committed_twice() -> None:
    state = an_open_state()
    claim = a_claim(state)
    state.committed(claim, (6,), b"reply")
    for late in (claim, replace(claim, epoch=1, round=2), replace(claim, round=3)):
        with pytest.raises(ValueError, match="behind round 1"):
            state.committed(late, (6,), b"reply")
    assert state.tokens == [4, 5, 6]


def test_no_round_is_committed_twice() -> None:
    check_no_round_is_committed_twice()


def check_streamed_rounds_have_no_reply() -> None:
    state = an_open_state()
    claim = a_claim(state)
    state.committed(claim, (6,), b"reply")
    state.streamed((7,))
    late = replace(claim, round=2, committed_len=state.committed_len)
    for asked in (late, replace(late, prefix_hash=state.prefix_hash)):
        with pytest.raises(Refusal) as refused:
            state.admit(asked)
        assert refused.value.reason is Reason.STALE_ROUND
    assert state.admit(replace(a_claim(state), round=3)) is None


def test_streamed_rounds_have_no_reply() -> None:
    check_streamed_rounds_have_no_reply()


# --- Defects that the machine sees ---------------------------------------------------------------


def check_sessions() -> None:
    quick = settings(
        max_examples=200, stateful_step_count=40, phases=[Phase.generate], database=None,
        suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
    )  # fmt: skip
    run_state_machine_as_test(Sessions, settings=quick)


DEFECTS = {
    "epochs are not looked at": (
        SessionState, "admit", "claim.epoch != self.epoch", "False", check_sessions,
    ),
    "a newer epoch is taken for the open one": (
        SessionState, "admit", "claim.epoch != self.epoch", "claim.epoch < self.epoch",
        check_sessions,
    ),
    "the last round is verified again": (
        SessionState, "admit", "claim.round == self.round and self._last is not None", "False",
        check_sessions,
    ),
    "other bytes get the last reply": (
        SessionState, "admit", "claim.digest == self._last.digest", "True", check_sessions,
    ),
    "rounds may be left out": (
        SessionState, "admit", "claim.round > self.round + 1", "False", check_sessions,
    ),
    "old rounds are verified": (
        SessionState, "admit", "claim.round <= self.round", "claim.round < 0", check_sessions,
    ),
    "lengths are not compared": (
        SessionState, "admit",
        "(claim.committed_len, claim.prefix_hash) != (self.committed_len, self.prefix_hash)",
        "claim.prefix_hash != self.prefix_hash",
        check_sessions,
    ),
    "hashes are not compared": (
        SessionState, "admit",
        "(claim.committed_len, claim.prefix_hash) != (self.committed_len, self.prefix_hash)",
        "claim.committed_len != self.committed_len",
        check_sessions,
    ),
    "the first token is not committed": (
        SessionState, "opened", "if first is not None", "if first", check_sessions,
    ),
    "hashes stand still": (
        SessionState, "_extend", "self._prefix.extend(tokens)", "pass", check_sessions,
    ),
    "tokens are not kept": (
        SessionState, "_extend", "self.tokens += tokens", "pass", check_sessions,
    ),
    "streamed rounds are not counted": (
        SessionState, "streamed", "self._apply(tokens, None)", "self._extend(tokens)",
        check_sessions,
    ),
    "a streamed round keeps the reply before it": (
        SessionState, "streamed", "self._apply(tokens, None)", "self._apply(tokens, self._last)",
        check_streamed_rounds_have_no_reply,
    ),
    "opens are answered again behind rounds": (
        SessionState, "_apply", "self._open = None", "pass", check_sessions,
    ),
    "any open of the epoch gets the reply": (
        SessionState, "answer_to_open", "known.digest == digest", "digest", check_sessions,
    ),
    "late opens start the session again": (
        rules, "opening", "epoch > known.epoch", "epoch != known.epoch", check_sessions,
    ),
    "an open that is repeated starts the session again": (
        rules, "opening", "epoch > known.epoch", "epoch >= known.epoch", check_sessions,
    ),
    "late commits are taken": (
        SessionState, "committed", "(claim.epoch, claim.round) != (self.epoch, self.round + 1)",
        "False", check_no_round_is_committed_twice,
    ),
}  # fmt: skip


@pytest.mark.parametrize("defect", DEFECTS.values(), ids=DEFECTS)
def test_defects_of_the_rules_are_seen(
    defect: tuple[Any, str, str, str, Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, old, new, check = defect
    plant(monkeypatch, owner, name, old, new)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check()
