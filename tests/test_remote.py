"""A target on a server: the same text, token for token, whatever happens on the way to it."""

from __future__ import annotations

import gc
import hashlib
import io
import json
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
import trustme

import edgespec_runtime
from edgespec.cli import main
from edgespec.errors import ImageError, RemoteError
from edgespec_runtime.decoder import Round
from edgespec_runtime.images import load_image
from edgespec_runtime.remote import RemoteSettings
from edgespec_runtime.remote.link import Mode
from edgespec_runtime.remote.modes import Modes
from edgespec_runtime.remote.pictures import as_file
from edgespec_runtime.wire import verifier_pb2 as pb
from edgespec_runtime.wire.refusal import Reason
from tests.support.compare import assert_same_tokens
from tests.support.eventually import eventually
from tests.support.middleman import (
    Middleman,
    Step,
    Visit,
    bend,
    fail,
    lose,
    middleman,
    pass_on,
    refuse,
)
from tests.support.ports import address, held
from tests.support.servers import RunningServer, running_server
from tests.support.unhurried import patience_of_pauses, unhurried
from tests.support.zoo import Zoo

if TYPE_CHECKING:
    from PIL.Image import Image

    from edgespec_runtime import Model

NAME = "gqa"
PROMPT = "What do you see here?"
LONG = 40
SAMPLING: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.3},
    {"temperature": 1.0, "top_k": 12, "seed": 2**63 + 5},
    {"temperature": 0.8, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.1, "seed": 4},
]
DRAFTS: list[dict[str, Any]] = [
    {"draft": "none"},
    {"draft": "ngram"},
    {"draft": "model"},
    {"draft": "model", "policy": "eagle2:nodes=20,depth=5,top_k=4"},
    {"draft": "model+ngram", "policy": "rolling:nodes=10,steps=4,top_k=3,width=4"},
]
Code = grpc.StatusCode


@pytest.fixture(autouse=True, scope="module")
def no_hurry() -> Iterator[None]:
    """Only what a test does loses an answer: a machine that stalls does not."""
    with unhurried():
        yield


@pytest.fixture(scope="module")
def here(zoo: Zoo) -> Model:
    """The same bundle with its target on this device."""
    return zoo.model(NAME)


@pytest.fixture(scope="module")
def server(zoo: Zoo) -> Iterator[RunningServer]:
    with running_server(zoo.bundle(NAME)) as found:
        yield found


@pytest.fixture(scope="module")
def there(zoo: Zoo, server: RunningServer) -> Iterator[Model]:
    with remote(zoo, server.address) as model:
        yield model


@pytest.fixture
def between(server: RunningServer) -> Iterator[Middleman]:
    with middleman(server.address) as found:
        yield found


@pytest.fixture(scope="module")
def streamed(zoo: Zoo, server: RunningServer) -> Iterator[Model]:
    """The server decodes alone."""
    with remote(zoo, server.address, mode="remote") as model:
        yield model


@contextmanager
def remote(
    zoo: Zoo, *addresses: str, bundle: Path | None = None, **settings: Any
) -> Iterator[Model]:
    """A model whose target is at ``addresses``; it drafts here, unless told otherwise."""
    given = RemoteSettings(addresses, **{"deadline_ms": 20_000.0, "mode": "hybrid", **settings})
    model = edgespec_runtime.load(bundle or zoo.bundle(NAME), threads=1, remote=given)
    try:
        yield model
    finally:
        model.close()


def text(model: Model, images: Any = (), **settings: Any) -> edgespec_runtime.Generation:
    return model.generate(list(images), PROMPT, **{"max_new_tokens": LONG, **settings})


# --- The same text --------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", SAMPLING, ids=str)
def test_the_text_is_the_same_wherever_the_target_runs(
    zoo: Zoo, here: Model, there: Model, streamed: Model, sampling: dict[str, Any]
) -> None:
    assert set(there.steps) == {"draft", "draft_chain"} and "target" not in there.tables
    for count in (0, 2):
        images = [zoo.picture(NAME, seed) for seed in range(count)]
        plain = text(here, images, draft="none", **sampling)
        for draft in DRAFTS:
            hybrid = text(there, images, **draft, **sampling)
            assert_same_tokens(here, images, PROMPT, sampling, plain.token_ids, hybrid.token_ids)
            assert hybrid.text == plain.text or hybrid.token_ids != plain.token_ids
            assert hybrid.finish_reason == plain.finish_reason
            assert hybrid.remote is not None and hybrid.remote["rounds"] == hybrid.stats.rounds
        alone = text(streamed, images, **sampling)
        assert_same_tokens(here, images, PROMPT, sampling, plain.token_ids, alone.token_ids)
        assert alone.remote is not None and alone.remote["rounds"] == 0
        assert alone.remote["streamed"] == len(alone.token_ids) - 1


def test_drafts_are_accepted_across_the_network(here: Model, there: Model) -> None:
    """Not only right but of use: as many rounds as on this device."""
    settings = {"draft": "model", "policy": "eagle2:nodes=12,depth=4,top_k=3"}
    ours, theirs = text(here, **settings), text(there, **settings)
    assert theirs.stats.rounds == ours.stats.rounds < LONG - 10
    assert theirs.token_ids == ours.token_ids
    assert theirs.remote is not None
    per_token = (theirs.remote["bytes_up"] + theirs.remote["bytes_down"]) / LONG
    assert per_token < 400


def test_going_in_and_out_of_a_stream_loses_no_token(here: Model, there: Model) -> None:
    sampling: dict[str, Any] = {"temperature": 1.0, "seed": 9}
    plain = text(here, draft="none", **sampling)
    settings = {"policy": "eagle2:nodes=8,depth=4,top_k=2", "max_new_tokens": LONG, **sampling}
    request = there.stream([], PROMPT, **settings)
    sizer, rng = request.sizer, random.Random(3)
    assert isinstance(sizer, Modes)

    def change(outcome: Round) -> None:
        sizer._pinned = rng.choice((Mode.HYBRID, Mode.REMOTE, Mode.REMOTE))

    request.listen(change)
    tokens = [record.token for record in request]
    assert_same_tokens(here, [], PROMPT, sampling, plain.token_ids, tokens)
    told = request.remote
    assert told is not None
    assert told["streamed"] > 3 and told["rounds"] > 3 and told["reopens"] >= 2


@pytest.mark.parametrize("variant", ["eagle", "vispec"])
def test_drafts_that_feed_on_the_targets_features(zoo: Zoo, variant: str) -> None:
    bundle = zoo.head_bundle(NAME, variant)
    local = edgespec_runtime.load(bundle, threads=1)
    images = [zoo.picture(NAME, 3)]
    with running_server(bundle) as server:
        for sampling in SAMPLING[:3:2]:
            plain = text(local, images, draft="none", **sampling)
            ours = text(local, images, draft="model", **sampling)
            for precision in ("float16", "int8"):
                with remote(zoo, server.address, bundle=bundle, features=precision) as model:
                    told = text(model, images, draft="model", **sampling)
                ids = plain.token_ids
                assert_same_tokens(local, images, PROMPT, sampling, ids, told.token_ids)
                # Rounded features may cost a guess here and there, and no more.
                assert told.stats.rounds <= ours.stats.rounds + 4


def test_stop_strings_and_limits(here: Model, there: Model, streamed: Model) -> None:
    whole = text(here, draft="none")
    for size in (1, 2, 7):
        assert text(there, max_new_tokens=size).token_ids == whole.token_ids[:size]
        assert text(streamed, max_new_tokens=size).token_ids == whole.token_ids[:size]
    stop = whole.text[8:11]
    ours = text(here, stop=[stop])
    for model in (there, streamed):
        theirs = text(model, stop=[stop])
        assert (theirs.text, theirs.finish_reason) == (ours.text, "stop")
        assert theirs.token_ids == ours.token_ids


def test_ends_of_sequence(zoo: Zoo) -> None:
    """A geometry where every sixteenth token ends the text."""
    local, bundle = zoo.model("many-eos"), zoo.bundle("many-eos")
    with running_server(bundle) as server:
        for mode in ("hybrid", "remote"):
            with remote(zoo, server.address, bundle=bundle, mode=mode) as model:
                for seed in range(6):
                    sampling = {"temperature": 1.0, "seed": seed}
                    ours = text(local, draft="none", **sampling)
                    theirs = text(model, **sampling)
                    assert theirs.token_ids == ours.token_ids
                    assert theirs.finish_reason == ours.finish_reason


def test_rounds_say_how_long_they_were_away(there: Model) -> None:
    told: list[Any] = []
    request = there.stream([], PROMPT, max_new_tokens=12)
    request.listen(told.append)
    list(request)
    rounds = [outcome.feedback for outcome in told if outcome.feedback is not None]
    assert rounds and all(0 < r.away_ms <= r.verify_ms + 1 for r in rounds)


# --- Pictures -------------------------------------------------------------------------------------


def encoded(picture: Image, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, format=form, **options)
    return out.getvalue()


def test_pictures_of_every_kind_mean_the_same_there(
    zoo: Zoo, here: Model, there: Model, tmp_path: Path
) -> None:
    picture = zoo.picture(NAME, 11).resize((40, 25))
    turned = picture.getexif()
    turned[0x0112] = 6  # to be shown turned by a quarter
    sources: list[Any] = [
        picture,
        np.asarray(picture),
        np.asarray(picture.convert("L")),
        picture.convert("RGBA"),
        encoded(picture, "JPEG", quality=60, exif=turned),
        encoded(picture, "PNG"),
        encoded(picture, "WEBP"),
        encoded(picture, "BMP"),
    ]
    (tmp_path / "shot.jpg").write_bytes(sources[4])
    sources.append(tmp_path / "shot.jpg")
    for source in sources:
        ours = text(here, [source], max_new_tokens=8, draft="none")
        assert text(there, [source], max_new_tokens=8).token_ids == ours.token_ids


def test_files_travel_as_they_are_and_other_pictures_without_loss(zoo: Zoo) -> None:
    picture = zoo.picture(NAME, 12)
    for original in (encoded(picture, "JPEG"), encoded(picture, "PNG")):
        assert as_file(original).message.file == original
    for source in (picture, np.asarray(picture), encoded(picture, "WEBP"), encoded(picture, "GIF")):
        sent = as_file(source).message.file
        assert sent.startswith(b"\x89PNG")
        assert np.array_equal(np.asarray(load_image(sent)), np.asarray(load_image(source)))


def test_a_picture_travels_once(zoo: Zoo, server: RunningServer, between: Middleman) -> None:
    images = [zoo.picture(NAME, 21), zoo.picture(NAME, 22)]
    with remote(zoo, between.address) as model:
        first, second = (text(model, images, max_new_tokens=3) for _ in range(2))
        # The server loses it: it is asked for again, and sent.
        between.script("Open", refuse(Reason.NEED_IMAGE))
        third = text(model, images, max_new_tokens=3)
    assert first.token_ids == second.token_ids == third.token_ids
    sent = [pb.OpenRequest.FromString(visit.data) for visit in between.seen("Open")]
    kinds = [[p.WhichOneof("source") for p in request.pictures] for request in sent]
    assert kinds == [["file"] * 2, ["sha256"] * 2, ["sha256"] * 2, ["file"] * 2]
    assert third.remote is not None and third.remote["reopens"] == 1


def test_pictures_that_are_none_are_the_users_mistake(there: Model, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff no picture")
    for source in (tmp_path / "bad.jpg", tmp_path / "missing.png"):
        with pytest.raises(ImageError):
            text(there, [source])


def test_a_picture_beyond_the_servers_limit_is_not_sent(zoo: Zoo, between: Middleman) -> None:
    def smaller(data: bytes) -> bytes:
        info = pb.InfoReply.FromString(data)
        info.limits.image_pixels = 100
        return info.SerializeToString()

    between.always("GetInfo", bend(smaller))
    with remote(zoo, between.address) as model:
        with pytest.raises(RemoteError, match="pictures of 100 pixels"):
            text(model, [zoo.picture(NAME, 1)])
    assert not between.seen("Open")


def test_visual_tokens_can_travel_in_place_of_pictures(zoo: Zoo, here: Model) -> None:
    """An option: the pictures stay on the device, whose own tower looks at them."""
    images = [zoo.picture(NAME, seed) for seed in (31, 32)]
    plain = text(here, images, draft="none", max_new_tokens=12)
    with running_server(zoo.bundle(NAME), "--allow-embeddings") as server:
        with middleman(server.address) as between:
            with remote(zoo, between.address, embeddings=True) as model:
                assert {"vision", "projector"} <= set(model.graphs)
                told = [text(model, images, max_new_tokens=12).token_ids for _ in range(2)]
            opened = [pb.OpenRequest.FromString(visit.data) for visit in between.seen("Open")]
    assert told == [plain.token_ids] * 2
    kinds = [[p.WhichOneof("source") for p in request.pictures] for request in opened]
    assert kinds == [["embeddings"] * 2, ["sha256"] * 2]


def test_embeddings_are_not_sent_where_they_are_not_taken(zoo: Zoo, server: RunningServer) -> None:
    with remote(zoo, server.address, embeddings=True) as model:
        with pytest.raises(RemoteError, match="takes no visual embeddings"):
            text(model, [zoo.picture(NAME, 31)])


# --- Faults ---------------------------------------------------------------------------------------


def flip(bit: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[bit // 8 % len(changed)] ^= 1 << bit % 8
        return bytes(changed)

    return change


FAULTS = {
    "reply lost": (lose(),),
    "reply lost, deadline": (lose(Code.DEADLINE_EXCEEDED),),
    "garbled": (bend(lambda data: b"\xff" + data),),
    "twice gone": (fail(Code.UNAVAILABLE), lose(Code.INTERNAL)),
    "session lost": (refuse(Reason.REOPEN),),
    "stale": (refuse(Reason.STALE_EPOCH), refuse(Reason.STATE_MISMATCH)),
    "busy": (refuse(Reason.BUSY, retry_after_ms=10),),
    "broken": (refuse(Reason.BROKEN),),
    "bits": (bend(flip(1)), bend(flip(13)), bend(flip(29))),
    "another round's": (bend(lambda data: b""),),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_a_round_costs_no_token(
    zoo: Zoo, here: Model, between: Middleman, fault: str
) -> None:
    sampling = {"temperature": 1.0, "seed": 6}
    plain = text(here, draft="none", **sampling)
    with remote(zoo, between.address) as model:
        between.script("Verify", pass_on, *FAULTS[fault], pass_on, *FAULTS[fault])
        between.script("Open", *FAULTS[fault][:1])
        told = text(model, draft="model", policy="eagle2:nodes=8,depth=3,top_k=2", **sampling)
    assert_same_tokens(here, [], PROMPT, sampling, plain.token_ids, told.token_ids)
    assert told.remote is not None
    assert told.remote["retries"] + told.remote["reopens"] >= 2


def test_the_way_there_is_measured_ahead_of_pictures(
    zoo: Zoo, here: Model, between: Middleman
) -> None:
    """By the first choice between drafting and streaming the round trip is known, and it is not
    what sending a picture took."""

    def behind(pings: int) -> Step:
        """An open that is answered once as many GetInfo are there: they do not wait for it."""

        def step(visit: Visit) -> bytes:
            eventually(lambda: len(between.seen("GetInfo")) >= pings)
            return visit.forward()

        return step

    between.script("Open", behind(2), behind(3))
    with remote(zoo, between.address) as model:
        text(model, [zoo.picture(NAME, 3)], max_new_tokens=4)
        text(model, [zoo.picture(NAME, 3)], max_new_tokens=4)
    methods = [visit.method for visit in between.visits]
    assert methods[:3].count("GetInfo") == 2 and methods.count("GetInfo") == 3
    assert methods.index("Open") <= 2


def test_an_epoch_that_was_spoilt_on_its_way_locks_nobody_out(
    zoo: Zoo, here: Model, between: Middleman
) -> None:
    """The server then knows a later epoch than the client ever opened."""

    def spoilt(visit: Visit) -> bytes:
        message = pb.OpenRequest.FromString(visit.data)
        message.epoch = 1 << 40
        visit.spoil(message.SerializeToString())
        visit.context.abort(Code.UNAVAILABLE, "its reply was lost as well")
        raise AssertionError

    plain = text(here, draft="none", max_new_tokens=12)
    with remote(zoo, between.address) as model:
        between.script("Open", spoilt)
        between.script("Verify", pass_on, refuse(Reason.REOPEN))
        told = text(model, draft="none", max_new_tokens=12)
    assert told.token_ids == plain.token_ids
    assert len({pb.OpenRequest.FromString(v.data).session_id for v in between.seen("Open")}) == 2


def test_a_reply_lost_after_the_commit_is_replayed_not_computed_anew(
    zoo: Zoo, here: Model, between: Middleman
) -> None:
    with remote(zoo, between.address) as model:
        between.script("Verify", lose(), pass_on, pass_on, lose())
        told = text(model, draft="none", max_new_tokens=8)
    assert told.token_ids == text(here, draft="none", max_new_tokens=8).token_ids
    assert told.remote is not None
    assert (told.remote["retries"], told.remote["reopens"], told.remote["rounds"]) == (2, 0, 7)


@pytest.mark.parametrize("fault", ["cut", "garbled", "bits", "session lost"])
def test_a_fault_in_a_stream_costs_no_token(
    zoo: Zoo, here: Model, between: Middleman, fault: str
) -> None:
    steps = {"cut": (fail(Code.UNAVAILABLE),), **FAULTS}[fault]
    plain = text(here, draft="none")
    with remote(zoo, between.address, mode="remote") as model:
        between.script("Reply", pass_on, pass_on, *steps, pass_on, *steps)
        assert text(model).token_ids == plain.token_ids
    assert len(between.seen("Continue")) >= 2


def test_another_server_takes_over_and_a_pause_is_mentioned(
    zoo: Zoo, here: Model, server: RunningServer, between: Middleman
) -> None:
    said: list[str] = []
    plain = text(here, draft="none")
    with remote(zoo, between.address, server.address, notice=said.append) as model:
        request = model.stream([], PROMPT, draft="none", max_new_tokens=LONG)
        tokens = [next(request).token for _ in range(5)]
        for method in ("Verify", "Open", "GetInfo"):
            between.always(method, fail(Code.UNAVAILABLE, "gone"))
        tokens += [record.token for record in request]
        told = request.remote
        # The next request begins where there was an answer.
        opens = len(between.seen("Open"))
        assert text(model, draft="none").token_ids == plain.token_ids
        assert len(between.seen("Open")) == opens
    assert tokens == list(plain.token_ids)
    assert told is not None and (told["endpoint"], told["reopens"]) == (server.address, 1)
    assert len(said) == 2 and f"trying {server.address}" in said[0], said


def test_a_server_that_is_killed_and_comes_back_is_a_pause(zoo: Zoo, here: Model) -> None:
    sampling: dict[str, Any] = {"temperature": 1.0, "seed": 8}
    plain = text(here, draft="none", **sampling)
    with (
        running_server(zoo.bundle(NAME)) as server,
        remote(zoo, server.address, patience_s=240.0) as model,
    ):
        request = model.stream([], PROMPT, max_new_tokens=LONG, draft="none", **sampling)
        tokens = [next(request).token for _ in range(6)]
        server.kill()
        back = threading.Thread(target=server.restart)
        back.start()
        tokens += [record.token for record in request]
        back.join()
        told = request.remote
    assert_same_tokens(here, [], PROMPT, sampling, plain.token_ids, tokens)
    assert told is not None and told["reopens"] >= 1


def test_nobody_left_is_an_error_behind_the_text_so_far(
    zoo: Zoo, here: Model, between: Middleman
) -> None:
    with patience_of_pauses(), remote(zoo, between.address, patience_s=0.3) as model:
        request = model.stream([], PROMPT, draft="none", max_new_tokens=LONG)
        tokens = [next(request).token for _ in range(3)]
        for method in ("Verify", "Open"):
            between.always(method, fail(Code.UNAVAILABLE, "gone"))
        with pytest.raises(RemoteError, match=f"{between.address}: unavailable: gone"):
            next(request)
    assert tokens == list(text(here, draft="none", max_new_tokens=3).token_ids)


def test_nobody_there_from_the_start(zoo: Zoo) -> None:
    with patience_of_pauses(), held() as one, held() as other:
        with remote(zoo, address(one), address(other), connect_s=0.2) as model:
            with pytest.raises(RemoteError, match=f"{address(one)}.*{address(other)}"):
                text(model)


def test_another_checkpoint_is_refused_by_both_names(zoo: Zoo, server: RunningServer) -> None:
    bundle = zoo.bundle("tied")
    with remote(zoo, server.address, bundle=bundle) as model:
        with pytest.raises(RemoteError) as refused:
            text(model)
    ours = model.manifest.models["target"].fingerprint[:16]
    theirs = str(server.line["target"])[:16]
    assert f"its target is {theirs}, this bundle's is {ours}" in str(refused.value)


def test_a_tree_that_the_server_would_not_take_is_refused_before_it_is_sent(
    zoo: Zoo, between: Middleman
) -> None:
    def smaller(data: bytes) -> bytes:
        info = pb.InfoReply.FromString(data)
        info.limits.nodes = 4
        return info.SerializeToString()

    between.always("GetInfo", bend(smaller))
    with remote(zoo, between.address) as model:
        with pytest.raises(RemoteError, match="4 nodes in a tree, this request needs 12"):
            text(model, policy="eagle2:nodes=12,depth=4,top_k=3")
        assert len(text(model, draft="none", max_new_tokens=4).token_ids) == 4


# --- Ends -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["end", "close", "garbage", "error"])
def test_sessions_are_given_back(zoo: Zoo, between: Middleman, how: str) -> None:
    with remote(zoo, between.address) as model:
        request = model.stream([], PROMPT, draft="none", max_new_tokens=LONG)
        next(request)
        if how == "end":
            list(request)
        elif how == "close":
            request.close()
            assert list(request) == []
        elif how == "error":
            between.always("Verify", refuse(Reason.INVALID))
            with pytest.raises(RemoteError):
                next(request)
        elif how == "garbage":
            del request
            gc.collect()
    opened = between.seen("Open")[0]
    (closed,) = between.seen("Close")
    assert closed.metadata["x-session-id"] == opened.metadata["x-session-id"]


def test_a_request_that_was_never_begun_says_nothing(zoo: Zoo, between: Middleman) -> None:
    with remote(zoo, between.address) as model:
        model.stream([], PROMPT).close()
    assert not between.visits


def test_threads_end_with_their_streams(zoo: Zoo, server: RunningServer) -> None:
    def streams() -> int:
        return sum(thread.name == "edgespec-stream" for thread in threading.enumerate())

    with remote(zoo, server.address, mode="remote") as model:
        request = model.stream([], PROMPT, max_new_tokens=LONG)
        for _ in range(3):
            next(request)
        assert streams() == 1
        request.close()
        assert streams() == 0


# --- Who asks -------------------------------------------------------------------------------------


def test_tls_client_certificates_and_tokens(zoo: Zoo, here: Model, tmp_path: Path) -> None:
    authority = trustme.CA()
    for name, pem in (
        ("server", authority.issue_cert("127.0.0.1")),
        ("device", authority.issue_cert("device-1")),
    ):
        pem.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        (tmp_path / f"{name}.pem").write_bytes(b"".join(p.bytes() for p in pem.cert_chain_pems))
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{hashlib.sha256(b'secret').hexdigest()} lab\n")
    tokens.chmod(0o600)
    flags = ["--tls-cert", tmp_path / "server.pem", "--tls-key", tmp_path / "server.key"]
    flags += ["--tls-client-ca", tmp_path / "ca.pem", "--tokens-file", tokens]
    own = {"tls_cert": tmp_path / "device.pem", "tls_key": tmp_path / "device.key"}
    ca = {"tls_ca": tmp_path / "ca.pem"}
    with running_server(zoo.bundle(NAME), *flags) as server:
        with remote(zoo, server.address, token="secret", **ca, **own) as model:
            told = text(model, max_new_tokens=5)
        assert told.token_ids == text(here, max_new_tokens=5).token_ids
        with remote(zoo, server.address, token="wrong", **ca, **own) as model:
            with pytest.raises(RemoteError, match="no server can answer"):
                text(model)
        for lacking in ({}, ca, own | {"tls_ca": tmp_path / "device.pem"}):
            given: dict[str, Any] = {"token": "secret", "connect_s": 0.2, **lacking}
            with patience_of_pauses(), remote(zoo, server.address, **given) as model:
                with pytest.raises(RemoteError, match="no server has answered"):
                    text(model)


# --- The command line and imports -----------------------------------------------------------------


def test_generate_with_a_remote_target(
    zoo: Zoo, here: Model, server: RunningServer, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", "--bundle", str(zoo.bundle(NAME)), "--prompt", PROMPT]
    words += ["--max-new-tokens", "6", "--threads", "1", "--remote", server.address]
    assert main([*words, "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["token_ids"] == list(text(here, max_new_tokens=6).token_ids)
    assert value["remote"]["endpoint"] == server.address and value["remote"]["bytes_up"] > 0
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert out.strip() and f"verified by {server.address}" in err


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--remote", "orin:1"], 2, "plaintext"),
        (["--remote", "orin"], 2, "host:port"),
        (["--remote", "a b:1"], 2, "host:port"),
        (["--tls-ca", "ca.pem"], 2, "--remote names none"),
        (["--patience-s", "5"], 2, "--patience-s is about servers, and --remote names none"),
        (["--local", "draft"], 2, "--local is about servers, and --remote names none"),
        (["--remote", "127.0.0.1:9", "--tls-ca", "/nowhere"], 2, "'/nowhere' cannot be read"),
        (["--remote", "127.0.0.1:9", "--token-file", "/nowhere"], 2, "/nowhere"),
    ],
)
def test_mistakes_on_the_command_line(
    zoo: Zoo, capsys: pytest.CaptureFixture[str], flags: list[str], code: int, words: str
) -> None:
    asked = ["generate", "--bundle", str(zoo.bundle(NAME)), "--prompt", "x", *flags]
    assert main(asked) == code
    assert words in capsys.readouterr().err


def test_a_missing_extra_is_named(zoo: Zoo) -> None:
    bundle = str(zoo.bundle(NAME))
    words = ["generate", "--bundle", bundle, "--prompt", "x", "--max-new-tokens", "2"]
    for package in ("grpc", "google.protobuf", "grpc_status"):
        code = (
            f"import sys\nsys.modules[{package!r}] = None\nfrom edgespec.cli import main\n"
            f"assert main({words!r}) == 0\n"  # a target here needs none of it
            f"sys.exit(main({[*words, '--remote', '127.0.0.1:9']!r}))\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 2 and "edgespec[remote]" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
