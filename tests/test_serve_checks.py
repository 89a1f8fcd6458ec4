"""What a server says to requests before it computes anything: pure functions."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgespec_runtime.server import checks
from edgespec_runtime.server.headers import picture_size
from edgespec_runtime.wire import verifier_pb2 as pb
from edgespec_runtime.wire.refusal import Reason, Refusal
from tests.support.pictures import animated_png, bomb, encoded, png_of
from tests.support.scripted import VOCAB, scripted_info

INFO = scripted_info()
INFO.limits.image_bytes = 8 << 20
INFO.limits.image_pixels = 4_000_000
HUGE = 1_000_000


def opening(**fields: Any) -> pb.OpenRequest:
    given: dict[str, Any] = {
        "session_id": bytes(16),
        "epoch": 1,
        "fingerprints": INFO.fingerprints,
        "prompt_ids": [1, 2, 3],
        "sampling": pb.Sampling(top_p=1, repetition_penalty=1),
        "max_new_tokens": 8,
        **fields,
    }
    return pb.OpenRequest(**given)


def verifying(**fields: Any) -> pb.VerifyRequest:
    given: dict[str, Any] = {"session_id": bytes(16), "epoch": 1, "round": 1, "committed_len": 1}
    return pb.VerifyRequest(**{**given, **fields})


def tree(tokens: list[int], parents: list[int]) -> dict[str, Any]:
    return {"tree": pb.Tree(token_ids=tokens, parents=parents)}


def sampling(**fields: Any) -> dict[str, Any]:
    return {"sampling": pb.Sampling(**{"top_p": 1.0, "repetition_penalty": 1.0, **fields})}


def picture(**fields: Any) -> dict[str, Any]:
    return {"pictures": [pb.Picture(**fields)]}


def test_what_is_fine_passes() -> None:
    assert checks.check_open(opening(), INFO) == 0
    assert checks.check_open(opening(**picture(file=encoded("JPEG", 40, 30))), INFO) == 1200
    assert checks.check_open(opening(**picture(sha256=bytes(32))), INFO) == 0
    chain = tree(list(range(32)), list(range(32)))
    checks.check_verify(verifying(**chain), INFO.limits)
    checks.check_verify(verifying(**tree([1, 2, 1], [0, 0, 2])), INFO.limits)
    checks.check_verify(verifying(), INFO.limits)
    request = pb.ContinueRequest(
        session_id=bytes(16), epoch=1, round=1, committed_len=1, max_tokens=5, stop_ids=[2]
    )
    checks.check_continue(request, INFO.limits)
    checks.check_close(pb.CloseRequest(session_id=bytes(16), epoch=1))


OPENS: dict[str, tuple[dict[str, Any], str]] = {
    "no session": ({"session_id": b""}, "session_id"),
    "long session": ({"session_id": bytes(17)}, "session_id"),
    "epoch 0": ({"epoch": 0}, "epoch"),
    "empty prompt": ({"prompt_ids": []}, "prompt_ids"),
    "prompt id": ({"prompt_ids": [VOCAB]}, "vocabulary"),
    "largest id": ({"prompt_ids": [2**32 - 1]}, "vocabulary"),
    "long prompt": ({"prompt_ids": [1] * 513}, "prompt_ids"),
    "vast prompt": ({"prompt_ids": [1] * HUGE}, "prompt_ids"),
    "no room for the answer": ({"prompt_ids": [1] * 510}, "context"),
    "no new tokens": ({"max_new_tokens": 0}, "max_new_tokens"),
    "too many new tokens": ({"max_new_tokens": 2**32 - 1}, "max_new_tokens"),
    "more accepted than wanted": ({"accepted_ids": [1] * 9}, "accepted_ids"),
    "accepted id": ({"accepted_ids": [VOCAB]}, "vocabulary"),
    "max_nodes": ({"max_nodes": 129}, "max_nodes"),
    "no sampling": ({"sampling": None}, "sampling"),
    "NaN": (sampling(temperature=float("nan")), "temperature"),
    "infinite": (sampling(temperature=float("inf")), "temperature"),
    "negative": (sampling(temperature=-1.0), "temperature"),
    "top_p above 1": (sampling(top_p=1.01), "top_p"),
    "top_p 0": (sampling(top_p=0.0), "top_p"),
    "top_p NaN": (sampling(top_p=float("nan")), "top_p"),
    "min_p": (sampling(min_p=-0.1), "min_p"),
    "penalty 0": (sampling(repetition_penalty=0.0), "repetition_penalty"),
    "penalty NaN": (sampling(repetition_penalty=float("nan")), "repetition_penalty"),
    "unknown features": ({"features": 7}, "features"),
    "features": ({"features": 1}, "features"),
    "too many pictures": ({"pictures": [pb.Picture(sha256=bytes(32))] * 5}, "pictures"),
    "empty picture": (picture(), "empty"),
    "short digest": (picture(sha256=bytes(31)), "sha256"),
    "no bytes": (picture(file=b""), "bytes of a picture"),
    "8.5 MiB": (picture(file=bytes(8_912_896)), "bytes of a picture"),
    "a bomb": (picture(file=png_of(50_000, 50_000, b"x")), "pixels"),
    "no pixels": (picture(file=png_of(0, 9, b"x")), "pixels"),
    "TIFF": (picture(file=encoded("TIFF")), "neither"),
    "GIF": (picture(file=encoded("GIF")), "neither"),
    "animated": (picture(file=animated_png()), "animated"),
    "text": (picture(file=b"hello"), "neither"),
    "embeddings' sizes": (picture(embeddings=pb.Embeddings(rows=2, width=4)), "sizes"),
    "embeddings' rows": (picture(embeddings=pb.Embeddings(rows=0, width=4)), "rows"),
    "embeddings' numbers": (
        picture(embeddings=pb.Embeddings(rows=1, width=1, data=b"\0\0\xc0\x7f")),
        "finite",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OPENS)
def test_opens_that_make_no_sense(case: str) -> None:
    fields, said = OPENS[case]
    refused(lambda: checks.check_open(opening(**fields), INFO), said)


def test_embeddings_only_where_they_are_taken() -> None:
    closed = pb.InfoReply.FromString(INFO.SerializeToString())
    closed.embeddings = False
    fine = opening(**picture(embeddings=pb.Embeddings(rows=1, width=1, data=bytes(4))))
    assert checks.check_open(fine, INFO) == 0
    refused(lambda: checks.check_open(fine, closed), "pictures only")


@pytest.mark.parametrize("name", ["target", "tokenizer", "preprocess"])
def test_another_model_is_refused(name: str) -> None:
    prints = pb.Fingerprints.FromString(INFO.fingerprints.SerializeToString())
    setattr(prints, name, bytes(32))
    with pytest.raises(Refusal, match=name) as caught:
        checks.check_open(opening(fingerprints=prints), INFO)
    assert caught.value.reason is Reason.MODEL_MISMATCH


ROUNDS: dict[str, tuple[dict[str, Any], str]] = {
    "one node too many": (tree([1] * 129, list(range(129))), "nodes"),
    "a million nodes": (tree([1] * HUGE, list(range(HUGE))), "nodes"),
    "too deep": (tree([1] * 33, list(range(33))), "depth"),
    "parents missing": (tree([1, 2], [0]), "parents"),
    "tokens missing": (tree([1], [0, 0]), "parents"),
    "self": (tree([1, 2], [0, 2]), "row 2"),
    "forward": (tree([1, 2, 3], [0, 3, 0]), "row 2"),
    "cycle": (tree([1, 2], [2, 1]), "row 1"),
    "beyond": (tree([1], [2**32 - 1]), "row 1"),
    "siblings": (tree([4, 4], [0, 0]), "repeats"),
    "id": (tree([VOCAB], [0]), "vocabulary"),
    "round 0": ({"round": 0}, "round"),
    "nothing committed": ({"committed_len": 0}, "committed_len"),
    "too much committed": ({"committed_len": 513}, "committed_len"),
    "session": ({"session_id": b"x"}, "session_id"),
    "epoch": ({"epoch": 0}, "epoch"),
}


@pytest.mark.parametrize("case", ROUNDS)
def test_rounds_that_make_no_sense(case: str) -> None:
    fields, said = ROUNDS[case]
    refused(lambda: checks.check_verify(verifying(**fields), INFO.limits), said)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 513}, "max_tokens"),
        ({"stop_ids": [VOCAB]}, "vocabulary"),
        ({"stop_ids": [1] * 65}, "stop_ids"),
        ({"round": 0}, "round"),
    ],
)
def test_streams_that_make_no_sense(fields: dict[str, Any], said: str) -> None:
    given = {"session_id": bytes(16), "epoch": 1, "round": 1, "committed_len": 1, "max_tokens": 1}
    request = pb.ContinueRequest(**{**given, **fields})
    refused(lambda: checks.check_continue(request, INFO.limits), said)


def test_a_million_nodes_cost_milliseconds() -> None:
    """The thread's own time, the best of twenty, so that neither a busy machine nor the garbage
    collector changes anything; walking the tree would take 1 s."""
    request = verifying(**tree([1] * HUGE, list(range(HUGE))))
    took = []
    for _ in range(20):
        before = time.thread_time()
        refused(lambda: checks.check_verify(request, INFO.limits), "nodes")
        took.append(time.thread_time() - before)
    assert min(took) < 0.01


def refused(check: Callable[[], Any], said: str) -> None:
    with pytest.raises(Refusal, match=said) as caught:
        check()
    assert caught.value.reason is Reason.INVALID


@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"optimize": True}, {"comment": b"x" * 60_000}, {"dpi": (9, 9)}],
)
@pytest.mark.parametrize("size", [(1, 1), (640, 480), (333, 2000)])
def test_size_of_a_jpeg(options: dict[str, Any], size: tuple[int, int]) -> None:
    assert picture_size(encoded("JPEG", *size, **options)) == size


@pytest.mark.parametrize("size", [(1, 1), (640, 480)])
def test_size_of_a_png(size: tuple[int, int]) -> None:
    assert picture_size(encoded("PNG", *size, dpi=(72, 72))) == size


def test_a_bomb_says_what_it_is() -> None:
    data = bomb(20_000)
    assert len(data) < 100_000 and picture_size(data) == (20_000, 20_000)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_heads_without_a_body(kind: str) -> None:
    """Cut anywhere, a file is refused or still tells its size."""
    data = encoded(kind)
    for end in range(len(data)):
        try:
            size = picture_size(data[:end])
        except ValueError:
            continue
        assert size == (24, 16)
    assert end > 100 and size == (24, 16)


@given(st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"]))
def test_any_bytes_have_a_size_or_are_refused(data: bytes, start: bytes) -> None:
    try:
        width, height = picture_size(start + data)
    except ValueError:
        return
    assert 0 <= width < 2**32 and 0 <= height < 2**32
