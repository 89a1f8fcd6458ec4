"""What a client believes: replies that follow from what was asked, and no others. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgespec.acceptance import Verdict
from edgespec.sampling import SamplingParams
from edgespec.tree import EMPTY, TokenTree
from edgespec_runtime.prompt import Prompt
from edgespec_runtime.remote.checks import BadReply, Expected, Needs, check_open, check_round, unfit
from edgespec_runtime.remote.pictures import Shown
from edgespec_runtime.remote.session import Asked, Session, wire_ids
from edgespec_runtime.wire import features
from edgespec_runtime.wire import verifier_pb2 as pb
from edgespec_runtime.wire.prefix import Prefix, context_digest
from edgespec_runtime.wire.state import Claim, SessionState

VOCAB = 50
#        root
#       /    \
#   1: 10    2: 11
#   /   \       \
# 3: 12  4: 13  5: 12
TREE = TokenTree.build([10, 11, 12, 13, 12], [0, 0, 1, 1, 2])
KNOWN = (7, 8, 9)
EXPECTED = Expected(VOCAB, pb.NO_FEATURES, 0)


def prefix() -> Prefix:
    return Prefix(b"context", KNOWN)


def reply(path: tuple[int, ...] = (1, 4), bonus: int = 20) -> pb.VerifyReply:
    """An honest one."""
    tokens = (*(TREE.tokens[row - 1] for row in path), bonus)
    return pb.VerifyReply(
        round=3,
        path=path,
        bonus=bonus,
        committed_len=len(KNOWN) + len(tokens),
        prefix_hash=prefix().after(tokens),
    )


def bent(**changes: Any) -> pb.VerifyReply:
    """An honest one with fields changed."""
    message = reply()
    for name in changes:
        message.ClearField(name)
    message.MergeFrom(pb.VerifyReply(**changes))
    return message


def test_an_honest_reply_is_a_verdict() -> None:
    verdict = check_round(reply(), 3, TREE, prefix(), EXPECTED)
    assert verdict == Verdict((1, 4), (10, 13, 20)) and verdict.features is None
    plain = check_round(reply(path=()), 3, EMPTY, prefix(), EXPECTED)
    assert plain == Verdict((), (20,))


@pytest.mark.parametrize(
    ("what", "bad"),
    [
        ("round", bent(round=2)),
        ("round", bent(round=4)),
        ("no path", bent(path=(2, 4))),  # 4 hangs below 1
        ("no path", bent(path=(3,))),  # not a child of the root
        ("no path", bent(path=(4, 1))),
        ("no path", bent(path=(6,))),
        ("no path", bent(path=(0,))),
        ("committed tokens", bent(committed_len=5)),
        ("committed tokens", bent(committed_len=7)),
        ("hash", bent(prefix_hash=prefix().after((10, 13, 21)))),
        ("hash", bent(prefix_hash=prefix().value)),
        ("vocabulary", bent(bonus=VOCAB)),
        ("named tokens", bent(named=[10, 13, 0, 0, 20])),
        ("along the path", bent(named=[11, 13, 0, 0, 20, 0])),
        ("along the path", bent(named=[10, 13, 0, 0, 21, 0])),
        ("vocabulary", bent(named=[10, 13, 0, 0, 20, VOCAB])),
    ],
)
def test_what_does_not_follow_is_refused(what: str, bad: pb.VerifyReply) -> None:
    with pytest.raises(BadReply, match=what):
        check_round(bad, 3, TREE, prefix(), EXPECTED)


def test_another_tree_of_the_same_shape_is_noticed() -> None:
    """A reply to somebody else's tree: only the tokens differ, and so the hash."""
    other = TokenTree.build([10, 11, 12, 14, 12], [0, 0, 1, 1, 2])
    with pytest.raises(BadReply, match="hash"):
        check_round(reply(), 3, other, prefix(), EXPECTED)


@pytest.mark.parametrize("seed", range(40))
def test_any_flipped_bit_of_a_reply_is_refused_or_brings_the_same_tokens(seed: int) -> None:
    rng = np.random.default_rng(seed)
    message = bent(named=[10, 13, 0, 0, 20, 0])
    data = bytearray(message.SerializeToString())
    bit = int(rng.integers(len(data) * 8))
    data[bit // 8] ^= 1 << bit % 8
    try:
        flipped = pb.VerifyReply.FromString(bytes(data))
        verdict = check_round(flipped, 3, TREE, prefix(), EXPECTED)
    except Exception as error:
        assert type(error).__name__ in ("DecodeError", "BadReply")
    else:
        assert verdict.tokens == (10, 13, 20) and verdict.rows == (1, 4)


def test_named_tokens_are_handed_on() -> None:
    named = (10, 13, 4, 5, 20, 6)
    assert check_round(bent(named=named), 3, TREE, prefix(), EXPECTED).named == named


def test_features_are_of_the_root_and_the_path() -> None:
    expected = Expected(VOCAB, pb.FLOAT16, 4)
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    good = bent(features=features.encode(rows, pb.FLOAT16))
    found = check_round(good, 3, TREE, prefix(), expected).features
    assert found is not None and np.array_equal(found, rows)
    for bad in (features.encode(rows[:2], pb.FLOAT16), b"", good.features[:-1]):
        with pytest.raises(BadReply, match="features"):
            check_round(bent(features=bad), 3, TREE, prefix(), expected)
    infinite = np.full((3, 4), np.inf, dtype="<f2").tobytes()
    with pytest.raises(BadReply, match="finite"):
        check_round(bent(features=infinite), 3, TREE, prefix(), expected)


def opened(first: int | None = 5, known: tuple[int, ...] = (), **changes: int) -> pb.OpenReply:
    tokens = () if first is None else (first,)
    message = pb.OpenReply(
        epoch=2,
        committed_len=len(known) + len(tokens),
        prefix_hash=Prefix(b"context", known).after(tokens),
        first=first,
    )
    for name, value in changes.items():
        setattr(message, name, value)
    return message


def test_opens_are_checked() -> None:
    empty = Prefix(b"context")
    assert check_open(opened(), 2, (), empty, 9, EXPECTED).tokens == (5,)
    resumed = check_open(opened(None, KNOWN), 2, KNOWN, prefix(), 9, EXPECTED)
    assert resumed.tokens == ()
    for bad in (
        opened(epoch=1),
        opened(None),
        opened(VOCAB),
        opened(committed_len=2),
        opened(prefix_hash=1),
    ):
        with pytest.raises(BadReply):
            check_open(bad, 2, (), empty, 9, EXPECTED)
    with pytest.raises(BadReply, match="first"):
        check_open(opened(5, KNOWN), 2, KNOWN, prefix(), 9, EXPECTED)


def test_a_resumed_open_need_not_bring_features() -> None:
    """The draft has seen those rows; what is new comes with the next round."""
    expected = Expected(VOCAB, pb.FLOAT16, 4)
    with pytest.raises(BadReply, match="features"):
        check_open(opened(), 2, (), Prefix(b"context"), 9, expected)
    resumed = opened(None, KNOWN)
    assert check_open(resumed, 2, KNOWN, prefix(), 11, expected).features is None


# --- Sessions: what is asked, against the server's own rules --------------------------------------

FINGERPRINTS = pb.Fingerprints(target=b"t" * 32, tokenizer=b"k" * 32, preprocess=b"p" * 32)
ASKED = Asked(
    fingerprints=FINGERPRINTS,
    prompt_ids=[1, 2, 3],
    context=3,
    shown=(Shown(pb.Picture(file=b"picture"), 4),),
    sampling=SamplingParams(temperature=0.5, seed=2**64 - 1),
    max_new_tokens=20,
    max_nodes=8,
)


def serve_open(session: Session, data: bytes, first: int) -> SessionState:
    """What the rules of a server make of an open; the reply is committed."""
    request = pb.OpenRequest.FromString(data)
    known = list(request.accepted_ids)
    state = SessionState(request.epoch, context_digest(request), known)
    named = None if known else first
    answer = pb.OpenReply(epoch=request.epoch, first=named)
    answer.committed_len, answer.prefix_hash = state.after([] if named is None else [named])
    state.opened(b"digest", named, b"")
    session.opened(answer, EXPECTED)
    return state


def serve_round(state: SessionState, data: bytes, path: tuple[int, ...]) -> pb.VerifyReply:
    request = pb.VerifyRequest.FromString(data)
    claim = Claim(request.epoch, request.round, request.committed_len, request.prefix_hash, data)
    assert state.admit(claim) is None
    tokens = (*(request.tree.token_ids[row - 1] for row in path), 30)
    length, value = state.after(tokens)
    state.committed(claim, tokens, b"")
    return pb.VerifyReply(
        round=request.round, path=path, bonus=30, committed_len=length, prefix_hash=value
    )


def test_a_session_passes_the_servers_rules_over_rounds_and_epochs() -> None:
    session = Session(ASKED)
    state = serve_open(session, session.open(()), first=5)
    assert (session.tokens, session.context, session.tokens_left) == ([5], 3, 19)
    for path in ((1, 3), (), (2,)):
        answer = serve_round(state, session.verify(TREE), path)
        session.verified(TREE, answer, EXPECTED)
    assert session.tokens == [5, 10, 12, 30, 30, 11, 30] == state.tokens
    assert session.context == 3 + 6
    # Elsewhere: everything is told, the picture by its name where it was sent.
    data = session.open({ASKED.shown[0].digest})
    assert pb.OpenRequest.FromString(data).pictures[0].sha256 == ASKED.shown[0].digest
    state = serve_open(session, data, first=0)
    assert (state.epoch, state.tokens) == (2, session.tokens)
    answer = serve_round(state, session.verify(EMPTY), ())
    assert session.verified(EMPTY, answer, EXPECTED).tokens == (30,)


def test_a_refused_reply_leaves_the_session_as_it_was() -> None:
    session = Session(ASKED)
    state = serve_open(session, session.open(()), first=5)
    data = session.verify(TREE)
    answer = serve_round(state, data, (1,))
    wrong = pb.VerifyReply()
    wrong.CopyFrom(answer)
    wrong.bonus = 31
    with pytest.raises(BadReply):
        session.verified(TREE, wrong, EXPECTED)
    assert session.verify(TREE) == data  # a retry sends the same bytes
    session.verified(TREE, answer, EXPECTED)
    assert session.tokens == [5, 10, 30]


def test_a_prompt_travels_with_one_placeholder_per_picture() -> None:
    ids = np.array([1, 90, 90, 90, 2, 90, 90, 90, 3])
    prompt = Prompt("", ids, ((1, 4), (5, 8)))
    assert wire_ids(prompt) == [1, 90, 2, 90, 3]
    assert wire_ids(Prompt("", ids[:1], ())) == [1]


# --- Servers that will not do ---------------------------------------------------------------------

NEEDS = Needs(FINGERPRINTS, VOCAB, 100, 12, 6, 1, features=False, embeddings=False)


def info() -> pb.InfoReply:
    limits = pb.Limits(vocab=VOCAB, context=100, nodes=12, depth=6, images=1)
    return pb.InfoReply(protocol=1, fingerprints=FINGERPRINTS, limits=limits)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda i: setattr(i, "protocol", 2), ("protocol 2", "1")),
        (lambda i: setattr(i.fingerprints, "target", b"\xab" * 32), ("abab", b"t".hex() * 8)),
        (lambda i: setattr(i.fingerprints, "tokenizer", b""), ("tokenizer", "not named")),
        (lambda i: setattr(i.fingerprints, "preprocess", b"x" * 32), ("preprocessing",)),
        (lambda i: setattr(i.limits, "vocab", 49), ("49", "50")),
        (lambda i: setattr(i.limits, "context", 99), ("99", "100")),
        (lambda i: setattr(i.limits, "nodes", 11), ("11 nodes", "12")),
        (lambda i: setattr(i.limits, "depth", 5), ("5 levels", "6")),
        (lambda i: setattr(i.limits, "images", 0), ("0 pictures", "1")),
    ],
)
def test_servers_that_will_not_do_say_why(
    change: Callable[[pb.InfoReply], None], words: tuple[str, ...]
) -> None:
    found = info()
    assert unfit(found, NEEDS) == ""
    change(found)
    reason = unfit(found, NEEDS)
    assert all(word in reason for word in words), reason


def test_a_server_without_features_or_embeddings_is_no_use_for_those() -> None:
    assert "features" in unfit(info(), replace(NEEDS, features=True))
    assert "embeddings" in unfit(info(), replace(NEEDS, embeddings=True))
