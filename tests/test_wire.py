"""The wire contract: generated messages, their sizes, prefixes, digests, refusals."""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgespec_runtime.wire import verifier_pb2 as pb
from edgespec_runtime.wire.prefix import Prefix, context_digest, picture_digest, request_digest
from edgespec_runtime.wire.refusal import Reason, Refusal

ROOT = Path(__file__).resolve().parent.parent
Change = Callable[[pb.OpenRequest], object]
tokens = st.lists(st.integers(0, 2**32 - 1), max_size=40)


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "generate_wire", ROOT / "scripts/generate_wire.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_messages_are_current(script: ModuleType) -> None:
    assert script.stale() == []


def test_a_changed_contract_is_noticed(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire = tmp_path / "edgespec_runtime/wire"
    wire.mkdir(parents=True)
    for name in ("verifier.proto", *script.BUILT):
        (wire / name).write_bytes((script.ROOT / "edgespec_runtime/wire" / name).read_bytes())
    monkeypatch.setattr(script, "ROOT", tmp_path)
    assert script.stale() == []
    proto = wire / "verifier.proto"
    proto.write_text(proto.read_text().replace("uint32 bonus = 3", "uint64 bonus = 3"))
    assert script.stale() == ["verifier_pb2.py"]
    (wire / "verifier_pb2.pyi").unlink()
    assert script.stale() == ["verifier_pb2.py", "verifier_pb2.pyi"]


# --- Sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "nodes, size", [(8, 68), (32, 153), (60, 256), (128, 489), (256, 970)], ids=str
)
def test_a_round_takes_hundreds_of_bytes(nodes: int, size: int) -> None:
    draw = np.random.default_rng(nodes)
    request = pb.VerifyRequest(
        session_id=bytes(range(16)),
        epoch=3,
        round=41,
        committed_len=160,
        prefix_hash=2**64 - 1,
        tree=pb.Tree(
            token_ids=draw.integers(0, 32000, nodes).tolist(),
            parents=[int(draw.integers(0, row + 1)) for row in range(nodes)],
        ),
    )
    assert abs(request.ByteSize() - size) <= 16 + size // 10  # as section 2.2 of the facts has it
    reply = pb.VerifyReply(
        round=41, path=[1, 3, 7], bonus=31999, committed_len=164, prefix_hash=2**64 - 1,
        queue_us=900, compute_us=30000,
    )  # fmt: skip
    assert reply.ByteSize() <= 40


# --- Prefixes ------------------------------------------------------------------------------------


@given(st.binary(max_size=40), st.lists(tokens, max_size=6), tokens)
def test_a_prefix_grows_as_if_hashed_at_once(
    context: bytes, blocks: list[list[int]], ahead: list[int]
) -> None:
    grown = Prefix(context)
    for block in blocks:
        grown.extend(block)
    whole = [token for block in blocks for token in block]
    fresh = Prefix(context, whole)
    assert (grown.value, grown.length) == (fresh.value, len(whole))
    assert 0 <= grown.value < 2**64
    told = grown.after(ahead)
    assert (grown.value, grown.length) == (fresh.value, len(whole))  # asking changes nothing
    grown.extend(ahead)
    assert grown.value == told


def test_a_prefix_tells_contexts_tokens_and_their_order_apart() -> None:
    texts = [[], [0], [0, 0], [1, 2], [2, 1], [1, 2, 3], [258], [1, 1]]
    values = {Prefix(context, text).value for context in (b"a", b"b") for text in texts}
    assert len(values) == 2 * len(texts)


def test_a_prefix_refuses_what_is_no_token() -> None:
    with pytest.raises(OverflowError):
        Prefix(b"", [-1])
    with pytest.raises(OverflowError):
        Prefix(b"", [2**32])


# --- Digests -------------------------------------------------------------------------------------


def an_open() -> pb.OpenRequest:
    return pb.OpenRequest(
        session_id=bytes(16),
        epoch=1,
        fingerprints=pb.Fingerprints(target=b"t" * 32, tokenizer=b"k" * 32, preprocess=b"p" * 32),
        prompt_ids=[1, 7, 9],
        pictures=[pb.Picture(file=b"one"), pb.Picture(file=b"two")],
        sampling=pb.Sampling(
            temperature=0.7, top_k=40, top_p=0.9, min_p=0.1, repetition_penalty=1.1, seed=5
        ),
        max_new_tokens=64,
    )


def changed(change: Change) -> bytes:
    request = an_open()
    change(request)
    return context_digest(request)


CONDITIONS: dict[str, Change] = {
    "target": lambda r: setattr(r.fingerprints, "target", b"u" * 32),
    "tokenizer": lambda r: setattr(r.fingerprints, "tokenizer", b"u" * 32),
    "preprocess": lambda r: setattr(r.fingerprints, "preprocess", b"u" * 32),
    "fingerprints slide": lambda r: r.fingerprints.MergeFrom(
        pb.Fingerprints(target=b"t" * 31, tokenizer=b"t" + b"k" * 32)
    ),
    "prompt": lambda r: r.prompt_ids.append(7),
    "order of the prompt": lambda r: r.prompt_ids.reverse(),
    "a picture": lambda r: setattr(r.pictures[1], "file", b"six"),
    "order of pictures": lambda r: r.pictures.reverse(),
    "no picture": lambda r: r.ClearField("pictures"),
    "temperature": lambda r: setattr(r.sampling, "temperature", 0.8),
    "top k": lambda r: setattr(r.sampling, "top_k", 41),
    "top p": lambda r: setattr(r.sampling, "top_p", 0.91),
    "min p": lambda r: setattr(r.sampling, "min_p", 0.2),
    "penalty": lambda r: setattr(r.sampling, "repetition_penalty", 1.2),
    "seed": lambda r: setattr(r.sampling, "seed", 6),
}


@pytest.mark.parametrize("change", CONDITIONS.values(), ids=CONDITIONS)
def test_every_condition_of_an_answer_is_in_its_context(change: Change) -> None:
    assert changed(change) != context_digest(an_open())


def test_a_prompt_cannot_pass_for_a_picture() -> None:
    request = an_open()
    words = np.frombuffer(picture_digest(request.pictures[0]), dtype="<u4")
    shifted = an_open()
    shifted.prompt_ids.extend(words.tolist())
    del shifted.pictures[0]
    assert context_digest(shifted) != context_digest(request)


def test_how_often_a_session_is_opened_is_not_in_its_context() -> None:
    def later(request: pb.OpenRequest) -> None:
        request.epoch, request.max_nodes, request.features = 9, 64, pb.FLOAT16
        request.accepted_ids.extend([4, 5])
        request.max_new_tokens = 32
        request.session_id = b"x" * 16

    assert changed(later) == context_digest(an_open())


def test_a_picture_is_the_same_by_file_and_by_digest() -> None:
    def named(request: pb.OpenRequest) -> None:
        for picture in request.pictures:
            picture.sha256 = picture_digest(picture)

    assert changed(named) == context_digest(an_open())


def test_embeddings_have_a_digest_of_their_own() -> None:
    data = np.arange(8, dtype="<f4").tobytes()
    ways = [
        pb.Picture(embeddings=pb.Embeddings(rows=2, width=4, data=data)),
        pb.Picture(embeddings=pb.Embeddings(rows=4, width=2, data=data)),
        pb.Picture(embeddings=pb.Embeddings(rows=2, width=4, data=data[::-1])),
        pb.Picture(file=np.array([2, 4], dtype="<u4").tobytes() + data),
        pb.Picture(file=data),
    ]
    digests = [picture_digest(way) for way in ways]
    assert len(set(digests)) == len(ways) and {len(digest) for digest in digests} == {32}
    assert picture_digest(pb.Picture(sha256=digests[0])) == digests[0]


def test_requests_of_other_bytes_have_other_digests() -> None:
    assert request_digest(b"abc") == request_digest(b"abc") != request_digest(b"abd")


# --- Refusals ------------------------------------------------------------------------------------


def test_every_reason_has_a_status_that_tells_whether_to_try_again() -> None:
    again = {Reason.BUSY, Reason.DRAINING, Reason.BROKEN}  # the same bytes may fare better
    for reason in Reason:
        assert hasattr(grpc.StatusCode, reason.status)
        assert (reason.status in ("UNAVAILABLE", "INTERNAL")) == (reason in again)
    assert Reason.REOPEN.status == "NOT_FOUND"  # another tenant's session looks like none
    assert Reason.STALE_ROUND.status == "FAILED_PRECONDITION"
    assert len({reason.value for reason in Reason}) == len(Reason)


def test_a_refusal_crosses_processes_whole() -> None:
    refusal = Refusal(Reason.BUSY, "no room for 512 rows", retry_after_ms=250)
    copy = pickle.loads(pickle.dumps(refusal))
    assert isinstance(copy, Refusal)
    assert (copy.reason, copy.message, copy.retry_after_ms) == (Reason.BUSY, str(refusal), 250)
