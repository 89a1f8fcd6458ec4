"""The suite has power: defects of hybrid operation (see ``test_mutants``). What clients believe,
how servers keep sessions apart, and what both sides count.

Checks are tests of this suite, or a client's way through rounds, streams and faults: a real
``RemoteVerifier`` and a real front over gRPC, in this process, and a rule for a target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from edgespec.errors import RemoteError
from edgespec.sampling import SamplingParams
from edgespec.tree import EMPTY, TokenTree
from edgespec_runtime.drafts import ahead as ahead_module
from edgespec_runtime.drafts.ahead import AheadDraft
from edgespec_runtime.remote import RemoteSettings, checks, pictures
from edgespec_runtime.remote.channels import Endpoint
from edgespec_runtime.remote.checks import Needs
from edgespec_runtime.remote.pictures import Shown
from edgespec_runtime.remote.servers import Servers
from edgespec_runtime.remote.session import Asked, Session
from edgespec_runtime.remote.transport import Failure, Transport
from edgespec_runtime.remote.verifier import RemoteVerifier
from edgespec_runtime.server import reuse
from edgespec_runtime.server.answer import Answer
from edgespec_runtime.server.embedded import EmbeddedBackend
from edgespec_runtime.server.quotas import Account
from edgespec_runtime.server.scheduler import Scheduler
from edgespec_runtime.server.settings import Quota
from edgespec_runtime.server.slots import Slot, Slots
from edgespec_runtime.server.table import Table
from edgespec_runtime.server.turns import Turns
from edgespec_runtime.verifiers import LocalVerifier
from edgespec_runtime.wire import prefix
from edgespec_runtime.wire import verifier_pb2 as pb
from edgespec_runtime.wire.prefix import Prefix
from edgespec_runtime.wire.refusal import Reason, Refusal
from tests import (
    test_ahead,
    test_remote_checks,
    test_remote_transport,
    test_serve_security,
    test_server_backend,
    test_server_parts,
    test_server_scheduler,
    test_wire,
)
from tests.support.devices import Device
from tests.support.middleman import Middleman, bend, lose, middleman, pass_on, refuse
from tests.support.pictures import encoded
from tests.support.scripted import VOCAB, ScriptedServer, rule, scripted_info, scripted_server
from tests.support.unhurried import patience_of_pauses, unhurried
from tests.test_loop_mutants import ahead
from tests.test_mutants import Check, Mutant, calls, check_seen

if TYPE_CHECKING:
    from tests.support.zoo import Zoo

TOKENS = 40
PICTURE = Shown(pb.Picture(file=encoded("PNG", 8, 8)), 64)


# --- A client's way -------------------------------------------------------------------------------


@contextmanager
def client(address: str, *shown: Shown, tokens: int = TOKENS) -> Iterator[RemoteVerifier]:
    """The target of ``scripted``, asked for at ``address``. Only its own tries use up its patience,
    which ends soon for one that has a defect."""
    prints = scripted_info().fingerprints
    settings = RemoteSettings((address,), patience_s=0.5, connect_s=5.0)
    servers = Servers(settings)
    asked = Asked(prints, [5, 6, 7], 3, shown, SamplingParams(), tokens, 8)
    needs = Needs(prints, VOCAB, 3 + tokens, 8, 8, len(shown), features=False, embeddings=False)
    with unhurried(), patience_of_pauses():
        verifier = RemoteVerifier(servers, asked, needs)
        try:
            yield verifier
        finally:
            verifier.close()
            servers.close()


@contextmanager
def between(*steps: Any) -> Iterator[tuple[ScriptedServer, Middleman]]:
    """A server, and one in front of it that does ``steps`` with its first rounds."""
    with scripted_server() as server, middleman(server.address) as found:
        found.script("Verify", *steps)
        yield server, found


def travel(verifier: RemoteVerifier, modes: str) -> None:
    """Rounds in a row: t with a tree that is right for two tokens, p plain, s streamed. Every one
    brings what the rule says, and all is counted."""
    said = [*verifier.begin().tokens]
    streams = 0
    for mode in modes:
        verifier.streaming = mode == "s"
        right = [rule(len(said)), 95, rule(len(said) + 1), 94]
        tree = TokenTree.build(right, [0, 0, 1, 2]) if mode == "t" else EMPTY
        verdict = verifier.verify(tree)
        assert verdict.rows == ((1, 3) if mode == "t" else ())
        said += verdict.tokens
        streams += mode == "s"
        assert said == [rule(i) for i in range(len(said))] == list(verifier.tokens)
        assert verifier.context == 3 + len(said) - 1
    account = verifier.account
    assert (account.streamed, account.rounds) == (streams, len(modes) - streams)


def in_step(zoo: Zoo) -> None:
    """Nothing goes wrong: one session, opened once, given back in the end."""
    with between() as (server, middle):
        with client(middle.address) as verifier:
            travel(verifier, "tpptt")
            assert (verifier.account.reopens, verifier.account.retries) == (0, 0)
            assert verifier.account.away_ms
        assert not server.backend._sessions


def in_and_out(zoo: Zoo) -> None:
    """Streams are left by opening anew, once each."""
    with scripted_server() as server, client(server.address) as verifier:
        travel(verifier, "tsssptsst")
        assert verifier.account.reopens == 2


def through_faults(zoo: Zoo) -> None:
    """Lost replies are asked for again with the same bytes; lost sessions are opened anew."""
    with between(pass_on, lose(), pass_on, refuse(Reason.REOPEN), lose()) as (_, middle):
        with client(middle.address) as verifier:
            travel(verifier, "ttpttp")
            assert (verifier.account.reopens, verifier.account.retries) == (1, 2)
        sent = [visit.data for visit in middle.seen("Verify")]
        assert sent[1] == sent[2] and len(set(sent)) == len(sent) - 2


def another_rounds_reply(zoo: Zoo) -> None:
    """The reply to the round before comes again, made to fit as if the text stood still."""

    def older(data: bytes) -> bytes:
        reply = pb.VerifyReply.FromString(data)
        reply.round -= 1
        return reply.SerializeToString()

    with between(pass_on, bend(older)) as (_, middle), client(middle.address) as verifier:
        travel(verifier, "ppp")
        assert verifier.account.reopens == 1


def wrong_bonus(zoo: Zoo) -> None:
    """A bit of a token flips on the way."""

    def flipped(data: bytes) -> bytes:
        reply = pb.VerifyReply.FromString(data)
        reply.bonus ^= 1
        return reply.SerializeToString()

    with between(bend(flipped)) as (_, middle), client(middle.address) as verifier:
        travel(verifier, "pp")


def lost_picture(zoo: Zoo) -> None:
    """A picture travels once, unless it is asked for again."""
    with between() as (_, middle):
        middle.script("Open", pass_on, refuse(Reason.NEED_IMAGE))
        middle.script("Verify", refuse(Reason.REOPEN))
        with client(middle.address, PICTURE) as verifier:
            travel(verifier, "pt")
        opened = [pb.OpenRequest.FromString(visit.data) for visit in middle.seen("Open")]
    kinds = [request.pictures[0].WhichOneof("source") for request in opened]
    assert kinds == ["file", "sha256", "file"]


def too_many_pixels(zoo: Zoo) -> None:
    """A picture is held against the server's own limits."""
    assert pictures.too_large((PICTURE,), pb.Limits(image_bytes=9999, image_pixels=64)) == ""
    assert pictures.too_large((PICTURE,), pb.Limits(image_bytes=9999, image_pixels=63))


def to_the_end(zoo: Zoo) -> None:
    """The last token of a stream is the last of the answer."""
    with between() as (_, middle), client(middle.address, tokens=6) as verifier:
        travel(verifier, "sssss")
        (visit,) = middle.seen("Continue")
        assert pb.ContinueRequest.FromString(visit.data).max_tokens == 5


# --- Tests of this suite, as checks ---------------------------------------------------------------


def refuses(what: str, **changes: Any) -> Check:
    """Whether a reply with fields changed is refused for that reason."""
    bad = test_remote_checks.bent(**changes)
    return calls(test_remote_checks.test_what_does_not_follow_is_refused, what, bad)


def retried(zoo: Zoo) -> None:
    with middleman() as server:
        server.always("Verify", test_remote_transport.GOOD)
        endpoint = Endpoint(server.address, RemoteSettings((server.address,)))
        try:
            garbled = test_remote_transport.GARBLED
            test_remote_transport.test_the_same_bytes_are_sent_once_more(garbled, endpoint, server)
        finally:
            endpoint.close()


def served(test: Callable[..., None], *arguments: Any) -> Check:
    """A test of the embedded verifier."""
    return lambda zoo: test(zoo, *arguments)


def features_again(zoo: Zoo) -> None:
    """Features of a prompt's every row come with every first open, cached or not."""
    asked = test_server_backend.question(zoo)

    async def test(backend: EmbeddedBackend) -> None:
        told = []
        for number in (1, 2):
            request = asked.request(session_id=bytes([number]) * 16, features=pb.FLOAT16)
            told.append(await Device(backend, request).open())
        assert told[0].features == told[1].features != b"" and told[1].reused_rows == 0

    test_server_backend.serve(zoo, test, str(zoo.head_bundle("gqa", "eagle")))


def session_count(zoo: Zoo) -> None:
    """One session is opened again and again; some opens fail, some end after a later one."""
    clock = test_serve_security.Clock()
    account = Account("acme", Quota(), clock)
    with account.opening(b"a", 0):
        with pytest.raises(RuntimeError), account.opening(b"a", 0):
            raise RuntimeError
        account.keep(b"a", 2, 10.0)
    with account.opening(b"a", 0):
        account.keep(b"a", 1, 10.0)
    assert (account.sessions, account.asked_within(5.0)) == (1, 1)
    clock.now += 6.0
    assert (account.sessions, account.asked_within(5.0)) == (1, 0)
    account.forget(b"a", 1)  # of an older epoch
    assert account.sessions == 1
    account.forget(b"a", 2)
    assert account.sessions == 0


def penalised(zoo: Zoo) -> None:
    test_server_backend.test_resuming_at_every_token(zoo, 0, {"repetition_penalty": 1.5})


MUTANTS = [
    # What clients believe.
    Mutant(
        "the reply of another round is believed",
        checks, "check_round", '_same("round", reply.round, number)', "pass", another_rounds_reply,
    ),
    Mutant(
        "any path is a path of the tree",
        checks, "check_round", "tree.parents[row - 1] != above", "False",
        refuses("no path", path=(2, 4)),
    ),
    Mutant(
        "hashes of the text are not compared",
        checks, "_check_prefix", "value != prefix.after(tokens)", "False", wrong_bonus,
    ),
    Mutant(
        "lengths of the text are not compared",
        checks, "_check_prefix",
        '_same("number of committed tokens", length, prefix.length + len(tokens))', "pass",
        refuses("committed tokens", committed_len=7),
    ),
    Mutant(
        "tokens beyond the vocabulary are believed",
        checks, "_check_tokens", "token >= vocab", "False", refuses("vocabulary", bonus=50),
    ),
    Mutant(
        "named tokens need not be those of the path",
        checks, "_named", "tuple(named[row] for row in (0, *path)) != tokens", "False",
        refuses("along the path", named=[10, 13, 0, 0, 21, 0]),
    ),
    Mutant(
        "an open of another epoch is believed",
        checks, "check_open", '_same("epoch", reply.epoch, epoch)', "pass",
        calls(test_remote_checks.test_opens_are_checked),
    ),
    Mutant(
        "an answer may begin without its first token",
        checks, "check_open", 'reply.HasField("first") == bool(accepted)', "False",
        calls(test_remote_checks.test_opens_are_checked),
    ),
    Mutant(
        "pictures are believed to be of any size",
        pictures, "too_large", "picture.pixels > limits.image_pixels", "False",
        too_many_pixels,
    ),
    # What clients ask.
    Mutant(
        "a session is opened again in the same epoch",
        Session, "open", "self.epoch += 1", "self.epoch = 1", in_and_out,
    ),
    Mutant(
        "rounds are counted on over epochs",
        Session, "open", "self._round = 0", "pass", in_and_out,
    ),
    Mutant(
        "a session is opened again without its last token",
        Session, "open", "extend(self.tokens)", "extend(self.tokens[:-1])", in_and_out,
    ),
    Mutant(
        "a stream is asked for one token too many",
        Session, "proceed", "max_tokens=self.tokens_left", "max_tokens=self.tokens_left + 1",
        to_the_end,
    ),
    Mutant(
        "a retry sends other bytes",
        Transport, "ask", "return self._once(endpoint, call, call.deadline_s(1))",
        "return self._once(endpoint, Call(call.method, call.session_id, call.data + b'x\\0', "
        "call.parse, call.deadline_s), call.deadline_s(1))",
        retried,
    ),
    Mutant(
        "a lost reply is not asked for again",
        Transport, "ask", "if failure.kind is not Kind.AGAIN:", "if True:", through_faults,
    ),
    Mutant(
        "streamed tokens are counted twice",
        RemoteVerifier, "_streamed", "verdict = self._commit(EMPTY, reply)",
        "verdict = self._commit(EMPTY, reply); self._session.adopt(verdict.tokens)",
        in_and_out,
    ),
    Mutant(
        "every round opens a session",
        RemoteVerifier, "_open", "self._in_step = True", "pass", in_step,
    ),
    Mutant(
        "a session that a server lost is not opened again",
        RemoteVerifier, "_fall_out", "self._in_step = False", "pass", through_faults,
    ),
    Mutant(
        "sessions are not given back",
        RemoteVerifier, "_open", "self._opened_at.add(endpoint)", "pass", in_step,
    ),
    Mutant(
        "a picture that a server lost is not sent again",
        RemoteVerifier, "_open", "endpoint.lacks(digests)", "pass", lost_picture,
    ),
    Mutant(
        "pictures are sent with every open",
        RemoteVerifier, "_open", "endpoint.keeps(digests)", "pass", lost_picture,
    ),
    # What servers keep of sessions.
    Mutant(
        "rounds are not recorded",
        Turns, "verify",
        "answer.state.committed(claim, done.value.verdict.tokens, reply.SerializeToString())",
        "pass",
        served(test_server_backend.test_twenty_duplicates_run_once),
    ),
    Mutant(
        "streamed rounds are not recorded",
        Turns, "proceed", "answer.state.streamed(done.value.verdict.tokens)", "pass",
        served(test_server_backend.test_the_server_goes_on_by_itself),
    ),
    Mutant(
        "an open that comes again opens again",
        Turns, "open", "if kept is not None:", "if False:",
        served(test_server_backend.test_twenty_duplicates_run_once),
    ),
    Mutant(
        "a round ends with the call that asked for it",
        EmbeddedBackend, "_whole", "asyncio.shield(task)", "task",
        served(test_server_backend.test_a_round_whose_caller_left_is_finished_and_kept),
    ),
    Mutant(
        "sessions that are closed stay in the table",
        Table, "turn", "del self._sessions[key]", "pass",
        calls(test_server_parts.test_a_session_that_went_while_a_request_waited),
    ),
    Mutant(
        "sessions at work are evicted",
        Table, "evict", "not session.busy and", "",
        calls(test_server_parts.test_nobody_is_evicted_at_work_or_within_a_fair_share),
    ),
    Mutant(
        "a flood evicts whoever was idle longest",
        Table, "evict", "-(held[key[0]] + (key[0] == asker)), key[0] != asker", "0, 0",
        calls(test_server_parts.test_tenants_that_open_without_end_share_the_slots),
    ),
    Mutant(
        "a failed open forgets the session",
        Account, "opening", "held.opening -= 1", "held.opening -= 1; held.epoch = 0",
        session_count,
    ),
    Mutant(
        "a late close of an old epoch forgets the session",
        Account, "forget", "held.epoch <= epoch", "True", session_count,
    ),
    # What servers compute with.
    Mutant(
        "rows are reused across tenants",
        Slot, "prepare", "other.tenant == tenant", "other.tenant",
        served(test_server_backend.test_rows_are_reused_within_a_tenant_alone),
    ),
    Mutant(
        "a slot's own rows are reused across tenants",
        Slot, "prepare", "if self.tenant == tenant else 0", "",
        calls(test_server_parts.test_a_slot_takes_the_longest_prefix_of_its_tenant),
    ),
    Mutant(
        "one row more than is alike is reused",
        reuse, "common", "int(differ[0]) if", "int(differ[0]) + 1 if",
        served(test_server_backend.test_resuming_in_front_of_what_is_cached_and_elsewhere),
    ),
    Mutant(
        "the row that names the first token is reused",
        Answer, "_start", "len(codes) if accepted else len(codes) - 1", "len(codes)",
        served(test_server_backend.test_resuming_in_front_of_what_is_cached_and_elsewhere),
    ),
    Mutant(
        "one picture is as good as another",
        reuse, "codes_of", '-1 - (int.from_bytes(digest[:8], "little") >> 1)', "-1",
        served(test_server_backend.test_rows_are_reused_within_a_tenant_alone),
    ),
    Mutant(
        "committed rows are noted one token late",
        Answer, "settle", "[self._root, *verdict.tokens[:-1]]", "[*verdict.tokens]",
        served(test_server_backend.test_resuming_at_every_token, 0, {}),
    ),
    Mutant(
        "the sampler is not told of the tokens that an answer resumes with",
        LocalVerifier, "resume", "self._sampler.observe(accepted)", "pass", penalised,
    ),
    Mutant(
        "features are left out for rows that were cached",
        Answer, "_start", "0 if featured else most", "most", features_again,
    ),
    Mutant(
        "features come in another order than their rows",
        Answer, "settle", "verdict.features", "verdict.features[::-1]",
        served(test_server_backend.test_features_of_the_target, pb.FLOAT16),
    ),
    Mutant(
        "sessions of a batch get each other's results",
        Scheduler, "_verify", "zip(batch, outputs, strict=True)",
        "zip(batch, outputs[::-1], strict=True)",
        calls(test_server_scheduler.test_all_that_waits_runs_together_as_far_as_it_can),
    ),
    Mutant(
        "one that fails takes its batch with it",
        Scheduler, "_verify", "self._verify([asked])", "asked.fail(error)",
        calls(test_server_scheduler.test_one_that_fails_a_batch_fails_alone),
    ),
    Mutant(
        "broken rows are not cleared",
        Slot, "prepare", "if self.broken:", "if False:",
        served(test_server_backend.test_a_broken_session_breaks_alone, 0),
    ),
    Mutant(
        "rows of work that failed are reused",
        Answer, "spoil", "self.slot.spoil()", "pass",
        served(test_server_backend.test_a_broken_session_breaks_alone, 0),
    ),
    Mutant(
        "slots that are free keep their memory",
        Slots, "shrink", "self._release(slot.index)", "pass",
        calls(test_server_parts.test_free_slots_let_go_of_their_memory, 16),
    ),
    # What both sides hash.
    Mutant(
        "asking for a hash changes it",
        Prefix, "after", "self._hash.copy()", "self._hash", in_step,
    ),
    Mutant(
        "the length of a prefix stands still",
        Prefix, "extend", "self.length += len(block)", "pass", in_step,
    ),
    Mutant(
        "the context leaves out how tokens are drawn",
        prefix, "context_digest",
        "digest.update(request.sampling.SerializeToString(deterministic=True))", "pass",
        calls(test_wire.test_every_condition_of_an_answer_is_in_its_context,
              test_wire.CONDITIONS["seed"]),
    ),
    Mutant(
        "a prompt may pass for a picture",
        prefix, "context_digest", "[len(request.prompt_ids), *request.prompt_ids]",
        "[*request.prompt_ids]",
        calls(test_wire.test_a_prompt_cannot_pass_for_a_picture),
    ),
    Mutant(
        "embeddings of other shapes are the same picture",
        prefix, "picture_digest", "sizes.tobytes() + ", "",
        calls(test_wire.test_embeddings_have_a_digest_of_their_own),
    ),
    # Drafting ahead; see ``test_loop_mutants`` too.
    Mutant(
        "rows that were never fed count as right",
        AheadDraft, "commit", "min(self._inner.cached - guess.start, len(said) - 1)", "len(said)",
        ahead("tree"),
    ),
    Mutant(
        "a guess looks at what was left out of the tree alone",
        ahead_module, "_likeliest", "for i in chosen if i not in asked", "for i in ()",
        calls(test_ahead.test_a_draft_that_is_always_right_drafts_while_it_waits_only),
    ),
    Mutant(
        "accepted rows are one off",
        AheadDraft, "foresee", "chosen.index(i) + 1", "chosen.index(i)", ahead("tree"),
    ),
]  # fmt: skip


def told(check: Check) -> Check:
    """``check``, to which an error of the parts under test is as good as a failed assertion."""

    def run(zoo: Zoo) -> None:
        try:
            check(zoo)
        except (Refusal, Failure, RemoteError, RuntimeError, ValueError, IndexError) as error:
            raise AssertionError(f"{type(error).__name__}: {error}") from error

    return run


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_the_suite_sees(mutant: Mutant, zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = mutant.owner, mutant.function, mutant.old, mutant.new
    check_seen(Mutant(mutant.name, *parts, told(mutant.check)), zoo, monkeypatch)
