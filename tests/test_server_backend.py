"""The embedded verifier over a real target: what it answers is plain decoding, whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edgespec.errors import EngineError
from edgespec.tree import EMPTY, TokenTree
from edgespec_runtime import load
from edgespec_runtime.server.capacity import MB, Capacity
from edgespec_runtime.server.embedded import EmbeddedBackend, open_backend
from edgespec_runtime.wire import verifier_pb2 as pb
from edgespec_runtime.wire.features import decode
from edgespec_runtime.wire.refusal import Reason, Refusal
from tests.support.devices import (
    Device,
    Question,
    by_digest,
    engine_held,
    guesses,
    png,
    settle,
)

if TYPE_CHECKING:
    from tests.support.zoo import Zoo

SAMPLING: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.3},
    {"temperature": 1.0, "seed": 2},
    {"temperature": 1.5, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.1, "seed": 5},
]
SLOT_MB = 640 * 2 * 2 * 2 * 16 * 4 / MB
"""Of one session of the tiny target: 512 tokens and 128 nodes."""


@contextmanager
def refused(reason: Reason) -> Iterator[None]:
    with pytest.raises(Refusal) as caught:
        yield
    assert caught.value.reason is reason, caught.value.message


def serve(
    zoo: Zoo, test: Callable[[EmbeddedBackend], Awaitable[None]], bundle: str = "", **settings: Any
) -> None:
    """Runs ``test`` over a backend of its own."""
    clock = settings.pop("clock", lambda: 0.0)
    capacity = Capacity(**{"kv_mb": 8.5 * SLOT_MB, "batching": "engine", **settings})

    async def run() -> None:
        folder = bundle or zoo.bundle("gqa")
        backend = open_backend(folder, threads=1, capacity=capacity, clock=clock)
        try:
            await asyncio.wait_for(test(backend), 240)
        finally:
            await backend.stop()

    asyncio.run(run())


def question(zoo: Zoo, text: str = "what is it", images: int = 0, **settings: Any) -> Question:
    pictures = [zoo.picture("gqa", 3 + i) for i in range(images)]
    return Question(zoo.model("gqa"), text, pictures, settings)


# --- The answer ---------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", SAMPLING)
@pytest.mark.parametrize("images", [0, 1, 2])
def test_trees_do_not_change_the_answer(zoo: Zoo, images: int, settings: dict[str, Any]) -> None:
    asked = question(zoo, images=images, **settings)
    plain = asked.plain()

    async def test(backend: EmbeddedBackend) -> None:
        for seed in range(4):
            device = Device(backend, asked.request(session_id=bytes([seed]) * 16))
            await device.open()
            assert await device.finish(plain, np.random.default_rng(seed)) == plain
            assert device.round < len(plain) - 1  # some guesses were right

    serve(zoo, test)


@pytest.mark.parametrize("together", [0, 4])
def test_many_sessions_at_once(zoo: Zoo, together: int) -> None:
    asked = [question(zoo, f"tell me of {i}", temperature=1.0, seed=i) for i in range(6)]
    plain = [q.plain() for q in asked]

    async def test(backend: EmbeddedBackend) -> None:
        async def run(i: int) -> list[int]:
            device = Device(backend, asked[i].request(session_id=bytes([i]) * 16))
            await device.open()
            return await device.finish(plain[i], np.random.default_rng(i))

        assert list(await asyncio.gather(*map(run, range(6)))) == plain
        gauges = await backend.gauges()
        assert gauges.tokens >= sum(map(len, plain))
        assert (gauges.batches < gauges.rounds) == (together > 0)

    serve(zoo, test, str(zoo.bundle("gqa", sessions=together)))


def test_a_batch_of_one_is_asked_for(zoo: Zoo) -> None:
    asked = question(zoo)

    async def test(backend: EmbeddedBackend) -> None:
        devices = [Device(backend, asked.request(session_id=bytes([i]) * 16)) for i in range(4)]
        for device in devices:
            await device.open()
        with engine_held(backend):
            rounds = [asyncio.ensure_future(device.verify()) for device in devices]
            await settle(backend, 5)
        await asyncio.gather(*rounds)
        gauges = await backend.gauges()
        assert (gauges.batches, gauges.rounds) == (4, 4)

    serve(zoo, test, str(zoo.bundle("gqa", sessions=4)), batch=1)


def test_context_longer_than_a_chunk_of_prefill(zoo: Zoo) -> None:
    model = zoo.model("clip-336")
    asked = Question(model, "what", [zoo.picture("clip-336", 1)], {}, tokens=6)
    plain = asked.plain()

    async def test(backend: EmbeddedBackend) -> None:
        device = Device(backend, asked.request())
        await device.open()
        assert await device.finish(plain, np.random.default_rng(0)) == plain

    assert len(model.reader.prompt("what", 1).ids) > 512
    serve(zoo, test, str(zoo.bundle("clip-336")), kv_mb=64)


def test_the_server_goes_on_by_itself(zoo: Zoo) -> None:
    asked = question(zoo, temperature=1.0, seed=3)
    plain = asked.plain()

    async def test(backend: EmbeddedBackend) -> None:
        device = Device(backend, asked.request())
        await device.open()
        await device.stream(5)
        assert device.tokens == plain[:6]
        await device.verify(guesses(plain[6:], np.random.default_rng(1)))
        await device.stream(1000)
        assert device.tokens == plain  # as many as the session was opened for
        with refused(Reason.INVALID):
            await device.stream(1)
        with refused(Reason.INVALID):
            await device.verify()

    serve(zoo, test)


def test_a_stream_ends_behind_a_stop_token(zoo: Zoo) -> None:
    asked = question(zoo)
    plain = asked.plain()

    async def test(backend: EmbeddedBackend) -> None:
        device = Device(backend, asked.request())
        await device.open()
        await device.stream(1000, stop_ids=[plain[4]])
        assert device.tokens == plain[: plain[1:].index(plain[4]) + 2]

    serve(zoo, test)


def test_a_stream_that_is_left_leaves_a_sound_session(zoo: Zoo) -> None:
    asked = question(zoo, temperature=1.0, seed=4)
    plain = asked.plain()

    async def test(backend: EmbeddedBackend) -> None:
        device = Device(backend, asked.request())
        await device.open()
        stream = backend.proceed("tenant", device.stream_request(1000))
        for _ in range(3):
            device.take(EMPTY, await stream.__anext__())
        with engine_held(backend):
            waiting = asyncio.ensure_future(stream.__anext__())
            await settle(backend, 2)
            waiting.cancel()
            await asyncio.wait([waiting])
        rounds = (await backend.gauges()).rounds
        reply = await device.open()  # while the stream is not closed yet
        assert reply.reused_rows > 0
        assert await device.finish(plain, np.random.default_rng(0)) == plain
        with pytest.raises(StopAsyncIteration):
            await stream.__anext__()
        assert rounds <= 4

    serve(zoo, test)


def test_another_open_ends_a_stream(zoo: Zoo) -> None:
    asked = question(zoo)

    async def test(backend: EmbeddedBackend) -> None:
        device = Device(backend, asked.request())
        await device.open()
        stream = backend.proceed("tenant", device.stream_request(1000))
        device.take(EMPTY, await stream.__anext__())
        await device.open()
        with refused(Reason.STALE_EPOCH):
            await stream.__anext__()
        await device.verify()

    serve(zoo, test)


def test_named_tokens_and_times(zoo: Zoo) -> None:
    asked = question(zoo)
    plain = asked.plain()

    async def test(backend: EmbeddedBackend) -> None:
        for named in (True, False):
            request = asked.request(session_id=bytes([named]) * 16, want_named=named)
            device = Device(backend, request)
            opened = await device.open()
            reply = await device.verify(TokenTree.build([plain[1], plain[2], 7], [0, 1, 0]))
            assert list(reply.named[:3]) == (plain[1:4] if named else [])
            assert len(reply.named) == 4 * named
            assert min(opened.compute_us, reply.compute_us) > 0

    serve(zoo, test)


@pytest.mark.parametrize("kind", [pb.FLOAT16, pb.INT8])
def test_features_of_the_target(zoo: Zoo, kind: pb.Features) -> None:
    bundle = zoo.head_bundle("gqa", "eagle")
    asked = question(zoo)
    plain = asked.plain()
    tree = TokenTree.build([plain[1], 9, plain[2]], [0, 0, 1])
    request = load(bundle, threads=1).stream(None, asked.text, max_new_tokens=asked.tokens)
    context, behind = request._verifier.begin().features, request._verifier.verify(tree).features
    assert context is not None and behind is not None and len(behind) == 3

    async def test(backend: EmbeddedBackend) -> None:
        rows, width = context.shape
        assert width == (await backend.info()).feature_width
        device = Device(backend, asked.request(features=kind))
        opened = await device.open()
        reply = await device.verify(tree)
        tolerance = 0.02 if kind == pb.FLOAT16 else 0.2
        for data, wanted in ((opened.features, context), (reply.features, behind)):
            found = decode(data, len(wanted), width, kind)
            np.testing.assert_allclose(found, wanted, atol=tolerance)
            assert np.abs(wanted).max() > 1
        # Taken up again, it brings none of what is known, and all of what comes.
        resumed = await device.open()
        assert (resumed.features, resumed.reused_rows) == (b"", rows + 3)
        assert len(decode((await device.verify()).features, 1, width, kind)) == 1

    serve(zoo, test, str(bundle))


# --- Sessions taken up again --------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "seed": 7}])
@pytest.mark.parametrize("images", [0, 1])
def test_resuming_at_every_token(zoo: Zoo, images: int, settings: dict[str, Any]) -> None:
    asked = question(zoo, images=images, **settings)
    plain = asked.plain()
    prompt = len(asked.model.reader.prompt(asked.text, images).ids)

    async def test(backend: EmbeddedBackend) -> None:
        for known in range(1, len(plain)):
            fresh = Device(backend, asked.request(session_id=b"a" * 16), tenant=f"t{known}")
            fresh.tokens = plain[:known]
            assert (await fresh.open()).reused_rows == 0
            assert await fresh.finish(plain, np.random.default_rng(known)) == plain
            fresh.tokens = plain[:known]
            assert (await fresh.open()).reused_rows == prompt + known - 1
            assert await fresh.finish(plain, np.random.default_rng(known)) == plain
            cached = prompt + len(fresh.tokens) - 1  # rows that rounds committed serve as well
            assert (await fresh.open()).reused_rows == cached

    serve(zoo, test)


def test_resuming_in_front_of_what_is_cached_and_elsewhere(zoo: Zoo) -> None:
    asked = question(zoo)
    plain = asked.plain()
    prompt = len(asked.model.reader.prompt(asked.text, 0).ids)

    async def test(backend: EmbeddedBackend) -> None:
        device = Device(backend, asked.request())
        await device.open()
        assert await device.finish(plain, np.random.default_rng(0)) == plain
        device.tokens = []
        reply = await device.open()  # from the start: the prompt's last row names the first token
        assert reply.reused_rows == prompt - 1
        assert device.tokens == plain[:1]
        device.tokens = [*plain[:3], (plain[3] + 1) % 300, 5]  # another text from there on
        assert (await device.open()).reused_rows == prompt
        device.tokens = plain[:9]
        assert (await device.open()).reused_rows == prompt + 3
        assert await device.finish(plain, np.random.default_rng(1)) == plain

    serve(zoo, test)


def test_eviction_costs_a_reopen(zoo: Zoo) -> None:
    asked = [question(zoo, f"question {i}") for i in range(3)]
    plain = [q.plain() for q in asked]

    async def test(backend: EmbeddedBackend) -> None:
        ids = [bytes([i]) * 16 for i in range(3)]
        requests = [q.request(session_id=i) for i, q in zip(ids, asked, strict=True)]
        devices = [Device(backend, request) for request in requests]
        for device in devices:
            await device.open()  # two fit: the third one takes the first one's place
        with refused(Reason.REOPEN):
            await devices[0].verify()
        assert (await backend.gauges()).evictions == 1
        for i in (0, 1, 2, 1, 0):
            await devices[i].open()
            rng = np.random.default_rng(i)
            await devices[i].verify(guesses(plain[i][len(devices[i].tokens) :], rng))
        for i, device in enumerate(devices):
            await device.open()
            assert await device.finish(plain[i], np.random.default_rng(i)) == plain[i]

    now = iter(range(10**6))
    serve(zoo, test, kv_mb=2.5 * SLOT_MB, clock=lambda: float(next(now)), lease_s=1e6)


def test_leases_end(zoo: Zoo) -> None:
    asked = question(zoo)
    now = [1000.0]

    async def test(backend: EmbeddedBackend) -> None:
        device = Device(backend, asked.request())
        assert (await device.open()).lease_ms == 60_000
        for _ in range(3):  # a round renews the lease
            now[0] += 59
            await device.verify()
        now[0] += 61
        with refused(Reason.REOPEN):
            await device.verify()
        gauges = await backend.gauges()
        assert (gauges.sessions, gauges.kv_bytes) == (0, 0)
        assert (await device.open()).reused_rows > 0  # nobody needed the room meanwhile

    serve(zoo, test, clock=lambda: now[0], lease_s=60.0)


def test_admission_waits_for_nobody_and_evicts_nobody_at_work(zoo: Zoo) -> None:
    asked = [question(zoo, f"question {i}") for i in range(3)]

    async def test(backend: EmbeddedBackend) -> None:
        ids = [bytes([i]) * 16 for i in range(3)]
        requests = [q.request(session_id=i) for i, q in zip(ids, asked, strict=True)]
        devices = [Device(backend, request) for request in requests]
        await devices[0].open()
        await devices[1].open()
        stream = backend.proceed("tenant", devices[1].stream_request(5))
        assert isinstance(stream, AsyncGenerator)
        await stream.__anext__()
        with engine_held(backend):
            round_ = asyncio.ensure_future(devices[0].verify())
            await settle(backend, 2)
            with pytest.raises(Refusal) as caught:
                await devices[2].open()
            assert caught.value.reason is Reason.BUSY
            assert caught.value.retry_after_ms > 0
        await round_
        await stream.aclose()
        await devices[2].open()
        await devices[0].verify()  # the other one was idle longer

    now = iter(range(10**6))
    serve(zoo, test, kv_mb=2.5 * SLOT_MB, clock=lambda: float(next(now)), lease_s=1e6)


def test_rows_are_reused_within_a_tenant_alone(zoo: Zoo) -> None:
    first = question(zoo, "alike and then this", images=1)
    second = question(zoo, "alike and then that", images=1, temperature=1.0, seed=1)
    other = Question(first.model, first.text, [zoo.picture("gqa", 77)], {})
    same = _shared(first, second)

    async def test(backend: EmbeddedBackend) -> None:
        device = Device(backend, first.request(session_id=b"1" * 16))
        assert (await device.open()).reused_rows == 0
        stranger = Device(backend, first.request(session_id=b"1" * 16), tenant="other")
        assert (await stranger.open()).reused_rows == 0
        await stranger.close()
        neighbour = Device(backend, second.request(session_id=b"2" * 16))
        assert (await neighbour.open()).reused_rows == same
        assert await neighbour.finish(second.plain(), np.random.default_rng(0)) == second.plain()
        await device.close()  # a closed session's rows serve as well
        third = Device(backend, first.request(session_id=b"3" * 16))
        assert (await third.open()).reused_rows == len(_ids(first)) - 1
        assert await third.finish(first.plain(), np.random.default_rng(0)) == first.plain()
        shown = Device(backend, other.request(session_id=b"4" * 16))
        assert (await shown.open()).reused_rows == _before_picture(other)
        assert await shown.finish(other.plain(), np.random.default_rng(0)) == other.plain()

    serve(zoo, test)


def _ids(asked: Question) -> list[int]:
    ids: list[int] = asked.model.reader.prompt(asked.text, len(asked.images)).ids.tolist()
    return ids


def _shared(one: Question, two: Question) -> int:
    pairs = zip(_ids(one), _ids(two), strict=False)
    return next(i for i, (a, b) in enumerate(pairs) if a != b)


def _before_picture(asked: Question) -> int:
    return int(asked.model.reader.prompt(asked.text, 1).image_spans[0][0])


# --- Rounds applied once ------------------------------------------------------------------------


def test_twenty_duplicates_run_once(zoo: Zoo) -> None:
    asked = question(zoo)

    async def test(backend: EmbeddedBackend) -> None:
        opens = await asyncio.gather(*(backend.open("tenant", asked.request()) for _ in range(20)))
        assert sorted(reply.replayed for reply in opens) == [False] + [True] * 19
        assert len({reply.prefix_hash for reply in opens}) == 1
        device = Device(backend, asked.request())
        device.tokens, device._request.epoch = [opens[0].first], 1
        request = device.round_request(guesses(asked.plain()[1:], np.random.default_rng(5)))
        replies = await asyncio.gather(*(backend.verify("tenant", request) for _ in range(20)))
        assert sorted(reply.replayed for reply in replies) == [False] + [True] * 19
        for reply in replies:
            reply.replayed = False
        assert len({reply.SerializeToString() for reply in replies}) == 1
        gauges = await backend.gauges()
        assert (gauges.rounds, gauges.batches, gauges.replays) == (1, 1, 38)

    serve(zoo, test)


def test_requests_that_do_not_follow_are_refused(zoo: Zoo) -> None:
    asked = question(zoo)

    async def test(backend: EmbeddedBackend) -> None:
        device = Device(backend, asked.request())
        with refused(Reason.REOPEN):
            await device.verify()
        await device.open()
        old = device.round_request()
        await device.open()
        with refused(Reason.STALE_EPOCH):
            await backend.verify("tenant", old)
        with refused(Reason.STALE_EPOCH):  # an open that a newer one has overtaken
            await backend.open("tenant", asked.request())
        with refused(Reason.REOPEN):  # of another tenant
            await backend.verify("other", device.round_request())
        request = device.round_request()
        await device.verify()
        request.tree.token_ids.append(5)
        request.tree.parents.append(0)
        with refused(Reason.ROUND_REUSED):
            await backend.verify("tenant", request)
        request.round = 3
        with refused(Reason.ROUND_GAP):
            await backend.verify("tenant", request)
        request = device.round_request()
        request.prefix_hash ^= 1
        with refused(Reason.STATE_MISMATCH):
            await backend.verify("tenant", request)
        for tree in (([5, 5], [0, 0]), ([5], [1]), ([5], []), (range(65), [0] * 65)):
            request = device.round_request()
            request.tree.CopyFrom(pb.Tree(token_ids=tree[0], parents=tree[1]))
            with refused(Reason.INVALID):
                await backend.verify("tenant", request)
        await device.verify()  # none of it did any harm
        old_close = pb.CloseRequest(session_id=b"0123456789abcdef", epoch=1)
        await backend.close("tenant", old_close)
        await backend.close("other", pb.CloseRequest(session_id=b"0123456789abcdef", epoch=9))
        await device.verify()
        await device.close()
        await device.close()
        with refused(Reason.REOPEN):
            await device.verify()

    serve(zoo, test)


def test_a_round_whose_caller_left_is_finished_and_kept(zoo: Zoo) -> None:
    asked = question(zoo)
    plain = asked.plain()

    async def test(backend: EmbeddedBackend) -> None:
        device = Device(backend, asked.request())
        await device.open()
        tree = guesses(plain[1:], np.random.default_rng(3))
        request = device.round_request(tree)
        with engine_held(backend):
            caller = asyncio.ensure_future(backend.verify("tenant", request))
            await settle(backend, 2)
            caller.cancel()
            await asyncio.wait([caller])
            assert caller.cancelled()
        reply = await backend.verify("tenant", request)
        assert reply.replayed
        device.take(tree, reply)
        assert await device.finish(plain, np.random.default_rng(0)) == plain

    serve(zoo, test)


def test_an_open_whose_caller_left_is_finished_and_kept(zoo: Zoo) -> None:
    asked = question(zoo)

    async def test(backend: EmbeddedBackend) -> None:
        with engine_held(backend):
            caller = asyncio.ensure_future(backend.open("tenant", asked.request()))
            await settle(backend, 2)
            caller.cancel()
            await asyncio.wait([caller])
        assert (await backend.open("tenant", asked.request())).replayed

    serve(zoo, test)


# --- Faults -------------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [0, 4])
def test_a_broken_session_breaks_alone(zoo: Zoo, together: int) -> None:
    asked = question(zoo)
    plain = asked.plain()

    async def test(backend: EmbeddedBackend) -> None:
        devices = [Device(backend, asked.request(session_id=bytes([i]) * 16)) for i in range(2)]
        for device in devices:
            await device.open()
        backend._slots.all[0].cache.rows[...] = np.nan
        request = devices[0].round_request()
        with engine_held(backend):
            rounds = [
                asyncio.ensure_future(backend.verify("tenant", request)),
                asyncio.ensure_future(devices[1].verify()),
            ]
            await settle(backend, 3)
        with refused(Reason.BROKEN):
            await rounds[0]
        await rounds[1]
        with refused(Reason.REOPEN):
            await devices[0].verify()
        for _ in range(9):  # until the broken rows are used again
            device = Device(backend, asked.request(session_id=b"n" * 16))
            await device.open()
            await device.close()
        assert np.isfinite(backend._slots.rows).all()
        for device in devices:
            await device.open()
            assert await device.finish(plain, np.random.default_rng(0)) == plain

    serve(zoo, test, str(zoo.bundle("gqa", sessions=together)))


@pytest.mark.parametrize("together", [0, 4])
def test_an_engine_that_gives_up_takes_one_session_with_it(zoo: Zoo, together: int) -> None:
    asked = question(zoo)
    plain = asked.plain()

    async def test(backend: EmbeddedBackend) -> None:
        devices = [Device(backend, asked.request(session_id=bytes([i]) * 16)) for i in range(3)]
        for device in devices:
            await device.open()
        backend._slots.all[1].cache.length = 640  # no room for another row
        request = devices[1].round_request()
        with engine_held(backend):
            others = [asyncio.ensure_future(devices[i].verify()) for i in (0, 2)]
            culprit = asyncio.ensure_future(backend.verify("tenant", request))
            await settle(backend, 4)
        with refused(Reason.BROKEN):
            await culprit
        await asyncio.gather(*others)
        for device in devices:
            await device.open()
            assert await device.finish(plain, np.random.default_rng(0)) == plain

    serve(zoo, test, str(zoo.bundle("gqa", sessions=together)))


@pytest.mark.parametrize("error", [MemoryError(), EngineError("Failed to allocate memory")])
def test_memory_that_runs_out_is_no_end(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    asked = question(zoo, images=1)
    plain = asked.plain()

    async def test(backend: EmbeddedBackend) -> None:
        for i in range(2):  # one that is closed and one that is idle
            other = Device(backend, asked.request(session_id=bytes([i]) * 16))
            await other.open()
            if i == 0:
                await other.close()
        device = Device(backend, asked.request())
        await device.open()
        assert (await backend.gauges()).image_bytes == 16 * 64 * 4

        def step(self: object, asks: object) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(type(backend._pool), "step", step)
            with refused(Reason.BUSY):
                await device.verify()
        gauges = await backend.gauges()
        assert (gauges.sessions, gauges.image_bytes) == (0, 0)
        assert (await device.open()).reused_rows == 0
        assert (backend._slots.all[2].cache.rows == 0).all()
        assert await device.finish(plain, np.random.default_rng(0)) == plain

    serve(zoo, test)


def test_stopping_finishes_what_runs(zoo: Zoo) -> None:
    asked = question(zoo)

    async def test(backend: EmbeddedBackend) -> None:
        device = Device(backend, asked.request())
        await device.open()
        stream = backend.proceed("tenant", device.stream_request(100))
        device.take(EMPTY, await stream.__anext__())
        with engine_held(backend):
            round_ = asyncio.ensure_future(device.verify())
            await settle(backend, 2)
            stopping = asyncio.ensure_future(backend.stop())
            await asyncio.sleep(0)
            with refused(Reason.DRAINING):
                await device.verify()
        await round_
        await stopping
        with refused(Reason.DRAINING):
            await stream.__anext__()
        with refused(Reason.DRAINING):
            await device.open()

    serve(zoo, test)


# --- What an open may ask for -------------------------------------------------------------------


def test_opens_are_checked_before_anything_runs(zoo: Zoo) -> None:
    asked = question(zoo)

    async def test(backend: EmbeddedBackend) -> None:
        prompt = len(asked.request().prompt_ids)
        changes: list[dict[str, Any]] = [
            {"max_new_tokens": 513 - prompt},
            {"epoch": 0},
        ]
        for change in changes:
            with refused(Reason.INVALID):
                await backend.open("tenant", asked.request(**change))
        for name, value in (("top_p", 0.0), ("temperature", -1.0), ("temperature", np.nan)):
            request = asked.request()
            setattr(request.sampling, name, value)
            with refused(Reason.INVALID):
                await backend.open("tenant", request)
        gauges = await backend.gauges()
        assert (gauges.sessions, gauges.kv_bytes, gauges.queued) == (0, 0, 0)
        await backend.open("tenant", asked.request(max_new_tokens=512 - prompt))

    serve(zoo, test)


def test_the_last_tokens_of_the_context(zoo: Zoo) -> None:
    asked = question(zoo, "long " * 90)
    room = 512 - len(asked.request().prompt_ids)
    asked = Question(asked.model, asked.text, (), {}, tokens=room)
    plain = asked.plain()

    async def test(backend: EmbeddedBackend) -> None:
        device = Device(backend, asked.request(max_nodes=128))
        device.tokens = plain[:-1]
        await device.open()
        await device.verify(TokenTree.build([i for i in range(128)], [0] * 128))
        assert device.tokens[:room] == plain

    serve(zoo, test)


def test_pictures_by_file_digest_and_embeddings(zoo: Zoo) -> None:
    asked = question(zoo, images=2)
    plain = asked.plain()

    async def test(backend: EmbeddedBackend) -> None:
        with refused(Reason.NEED_IMAGE):
            await backend.open("tenant", by_digest(asked.request()))
        await Device(backend, asked.request(session_id=b"1" * 16)).open()
        named = Device(backend, by_digest(asked.request(session_id=b"2" * 16)))
        await named.open()
        assert await named.finish(plain, np.random.default_rng(0)) == plain
        with refused(Reason.NEED_IMAGE):  # of another tenant
            await backend.open("other", by_digest(asked.request()))
        sent = asked.request(session_id=b"3" * 16)
        for picture, image in zip(sent.pictures, asked.images, strict=True):
            processor = backend._target.processor
            assert processor is not None
            tokens = backend._target.see(processor(image))
            picture.embeddings.CopyFrom(
                pb.Embeddings(rows=16, width=64, data=tokens.astype("<f4").tobytes())
            )
        given = Device(backend, sent)
        assert (await given.open()).reused_rows == _before_picture(asked)
        assert await given.finish(plain, np.random.default_rng(0)) == plain

    serve(zoo, test, embeddings=True)


def test_pictures_that_are_none(zoo: Zoo) -> None:
    asked = question(zoo, images=1)
    good = png(zoo.picture("gqa", 3))
    wrong: list[pb.Picture] = [
        pb.Picture(),
        pb.Picture(file=b"GIF89a" + bytes(50)),
        pb.Picture(file=good[:-30]),
        pb.Picture(file=good + bytes(4000)),
        pb.Picture(file=png(zoo.picture("clip-336", 3))),
        pb.Picture(embeddings=pb.Embeddings(rows=16, width=64, data=bytes(4096))),
    ]

    async def test(backend: EmbeddedBackend) -> None:
        for picture in wrong:
            request = asked.request()
            del request.pictures[:]
            request.pictures.append(picture)
            with refused(Reason.INVALID):
                await backend.open("tenant", request)
        for change in ("fewer", "more"):
            request = asked.request()
            if change == "fewer":
                del request.pictures[:]
            else:
                request.pictures.append(request.pictures[0])
            with refused(Reason.INVALID):
                await backend.open("tenant", request)
        assert (await backend.gauges()).kv_bytes == 0
        await backend.open("tenant", asked.request())

    serve(zoo, test, image_bytes=3000, image_pixels=5000)


def test_what_it_says_of_itself(zoo: Zoo) -> None:
    async def test(backend: EmbeddedBackend) -> None:
        info = await backend.info()
        assert (info.protocol, info.feature_width, info.embeddings) == (1, 0, False)
        limits = info.limits
        assert (limits.vocab, limits.context, limits.nodes) == (320, 300, 40)
        assert list(info.verify.sizes) == [1, 2, 4, 8, 16, 32]
        assert all(ms > 0 for ms in info.verify.median_ms)
        assert list(info.image_formats) == ["JPEG", "PNG"]
        assert (
            info.fingerprints.target.hex() == zoo.model("gqa").manifest.models["target"].fingerprint
        )

    serve(zoo, test, context=300, nodes=40)
