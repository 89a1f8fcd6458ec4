"""The target in replicas that Ray Serve places: the same text, whatever happens to a replica."""

from __future__ import annotations

import io
import json
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import fields
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import numpy as np
import psutil
import pytest

from edgespec.errors import ConfigError, EngineError, MissingDependencyError
from edgespec.signals import heeded_behind
from edgespec_runtime.entry import load
from edgespec_runtime.remote import RemoteSettings
from edgespec_runtime.server.backend import Gauges
from edgespec_runtime.server.logs import Lines, open_log
from edgespec_runtime.server.ray_backend import RayBackend
from edgespec_runtime.server.ray_cluster import (
    RaySettings,
    _keep_private,
    open_ray_backend,
)
from edgespec_runtime.wire import verifier_pb2 as pb
from edgespec_runtime.wire.refusal import Reason, Refusal
from tests.support.calls import Caller, Refused
from tests.support.eventually import eventually
from tests.support.ports import address, held
from tests.support.replicas import replicas
from tests.support.servers import RunningServer, running_server
from tests.support.unhurried import unhurried

if TYPE_CHECKING:
    from edgespec_runtime import Model
    from tests.support.zoo import Zoo

PROMPTS = ("w3 w5 w7", "w9 w1", "w2 w2 w4 w8")


# --- Without Ray ---------------------------------------------------------------------------------


def test_settings_that_make_no_sense_are_refused() -> None:
    for wrong, what in (
        ({"replicas": 0}, "at least 1"),
        ({"replicas": 3, "max_replicas": 2}, "at least --ray-replicas, 3"),
        ({"address": "ray://head:10001"}, "on a node of the cluster"),
        ({"cpus": -1.0}, "--ray-cpus is -1.0"),
        ({"gpus": float("nan")}, "--ray-gpus is nan"),
    ):
        given: dict[str, Any] = wrong
        with pytest.raises(ConfigError, match=what):
            RaySettings(**given)


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    names = ("USAGE_STATS_ENABLED", "SERVE_USE_GRPC_BY_DEFAULT", "AUTH_MODE", "AUTH_TOKEN")
    for name in (*names, "SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"):
        monkeypatch.setenv(f"RAY_{name}", "0")  # else the call would set it for all tests
    with pytest.raises(MissingDependencyError, match=r"edgespec\[serve-ray\]"):
        open_ray_backend(lambda: pytest.fail("opened"), RaySettings())


def test_a_cluster_that_is_not_there_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    for name in ("USAGE_STATS_ENABLED", "SERVE_USE_GRPC_BY_DEFAULT"):
        monkeypatch.setenv(f"RAY_{name}", "0")
    monkeypatch.setenv("RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray's own modules, at their first import
        pytest.importorskip("ray.serve", reason="needs edgespec[serve-ray]")
    with held() as nobody:
        with pytest.raises(EngineError, match="no Ray cluster answers at '127.0.0.1"):
            open_ray_backend(lambda: pytest.fail("opened"), RaySettings(address(nobody)))


def test_what_libraries_print_becomes_entries_of_the_log() -> None:
    out = io.StringIO()
    with redirect_stdout(Lines(open_log(out))):
        print("(raylet) a worker died", end="")
        print(" again\n\nand")
        print("unfinished", end="")
    said = [json.loads(line)["message"] for line in out.getvalue().splitlines()]
    assert said == ["(raylet) a worker died again", "and"]


def test_the_cluster_token_is_made_private(tmp_path: Path) -> None:
    token = tmp_path / "auth_token"
    _keep_private(token)  # none there
    token.write_text("secret")
    token.chmod(0o644)
    _keep_private(token)
    assert token.stat().st_mode & 0o777 == 0o600


class FakeHandle:
    """What the backend asks of a deployment's handle; keeps the routing keys."""

    def __init__(self, answers: list[Any]) -> None:
        self.keys: list[str] = []
        self.answers = answers
        self.cancelled = 0

    def options(self, **given: Any) -> FakeHandle:
        self.keys.append(given["session_id"])
        return self

    async def _answer(self) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def remote(self, *arguments: Any) -> Any:
        return self._answer()

    def broadcast(self, method: str) -> Any:
        async def results_async(**_: Any) -> Any:
            return self.answers.pop(0)

        return SimpleNamespace(results_async=results_async)


def ask(backend: RayBackend, tenant: str = "a", session: bytes = b"s") -> pb.VerifyReply:
    import asyncio

    return asyncio.run(backend.verify(tenant, pb.VerifyRequest(session_id=session)))


def test_a_signal_amid_rays_calls_is_heeded_behind_them() -> None:
    def heed(number: int, frame: object) -> None:
        raise InterruptedError

    before = signal.signal(signal.SIGTERM, heed)
    done = []
    try:
        with pytest.raises(InterruptedError), heeded_behind(signal.SIGTERM):
            signal.raise_signal(signal.SIGTERM)
            done.append("the call")
        assert done and signal.getsignal(signal.SIGTERM) is heed
    finally:
        signal.signal(signal.SIGTERM, before)


def test_routing_keys_tell_nothing_and_differ_by_tenant_session_and_secret() -> None:
    handle = FakeHandle([pb.VerifyReply(round=1).SerializeToString()] * 5)
    one, other = (RayBackend(handle, secret, lambda: None) for secret in (b"x", b"y"))
    ask(one), ask(one), ask(one, "b"), ask(one, session=b"t"), ask(other)
    first, again, *others = handle.keys
    assert first == again and len({first, *others}) == 4
    assert all(len(key) == 64 and b"s".hex() != key for key in handle.keys)


def test_errors_of_rays_mean_try_again_and_bugs_do_not() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own modules, at their first import
        pytest.importorskip("ray.serve.exceptions", reason="needs edgespec[serve-ray]")
    from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError
    from ray.serve.exceptions import BackPressureError

    passing = [
        ActorDiedError(), ActorUnavailableError("gone", None), BackPressureError(1, 1),
        GetTimeoutError(),
    ]  # fmt: skip
    refusal = Refusal(Reason.REOPEN, "not here", 7)
    handle = FakeHandle([*passing, refusal, KeyError("bug")])
    backend = RayBackend(handle, b"x", lambda: None)
    for error in passing:
        with pytest.raises(Refusal) as caught:
            ask(backend)
        assert caught.value.reason is Reason.BUSY and caught.value.retry_after_ms > 0, error
    with pytest.raises(Refusal, match="not here"):
        ask(backend)
    with pytest.raises(KeyError):
        ask(backend)


def test_gauges_add_up_and_counts_outlive_a_replica() -> None:
    import asyncio

    ones, twos = (Gauges(*[n] * len(fields(Gauges))) for n in (1, 2))
    handle = FakeHandle([[(10, ones), (11, twos)], [(11, twos), OSError("gone")]])
    backend = RayBackend(handle, b"x", lambda: None)
    assert asyncio.run(backend.gauges()) == Gauges(*[3] * len(fields(Gauges)))
    after = asyncio.run(backend.gauges())
    assert (after.sessions, after.kv_bytes, after.queued) == (2, 2, 2)
    assert (after.rounds, after.tokens, after.evictions) == (3, 3, 3)


# --- With Ray: one start for all -----------------------------------------------------------------


@pytest.fixture(scope="module")
def server(zoo: Zoo) -> Iterator[RunningServer]:
    pytest.importorskip("ray", reason="needs edgespec[serve-ray]")
    flags = ("--engine", "ray", "--ray-replicas", 2, "--kv-mb", 64, "--grace-s", 0)
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)  # its sockets need a short path
        patch.setenv("HOME", folder)
        with running_server(zoo.bundle("gqa"), *flags) as running:
            assert not Path(folder, ".ray").exists()  # no token lies about
            yield running
            started = psutil.Process(running.pid).children(recursive=True)
            assert running.stop() == 0
            _, alive = psutil.wait_procs(started, timeout=240)
            assert len(started) > 2 and alive == []


@pytest.fixture(scope="module")
def remote(server: RunningServer, zoo: Zoo) -> Iterator[Model]:
    # With both replicas gone, a new one may take as long to start as a busy machine likes.
    settings = RemoteSettings((server.address,), mode="hybrid", patience_s=240.0)
    with unhurried():
        model = load(zoo.bundle("gqa"), threads=1, remote=settings)
        yield model
        model.close()


def sessions(server: RunningServer) -> int:
    with urlopen(f"http://{server.line['metrics']}/metrics", timeout=20) as page:
        lines = page.read().decode().splitlines()
    return next(
        int(float(line.split()[1])) for line in lines if line.startswith("edgespec_sessions ")
    )


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "seed": 3}], ids=["greedy", "drawn"])
def test_answers_are_those_of_the_target_here(
    remote: Model, zoo: Zoo, settings: dict[str, Any]
) -> None:
    here, picture = zoo.model("gqa"), zoo.picture("gqa", 4)
    for prompt in PROMPTS:
        wanted = here.generate(picture, prompt, max_new_tokens=24, **settings)
        found = remote.generate(picture, prompt, max_new_tokens=24, **settings)
        assert (found.token_ids, found.text) == (wanted.token_ids, wanted.text)
        # The picture was sent to one replica, and is asked for again by the other.
        assert found.remote is not None and found.remote["reopens"] <= 1


@pytest.mark.slow
def test_a_picture_may_be_larger_than_rays_own_messages(remote: Model, zoo: Zoo) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1250, 1250, 3), dtype=np.uint8)
    wanted = zoo.model("gqa").generate(pixels, PROMPTS[0], max_new_tokens=4)
    found = remote.generate(pixels, PROMPTS[0], max_new_tokens=4)
    assert found.token_ids == wanted.token_ids
    assert found.remote is not None and found.remote["bytes_up"] > 4 * 2**20


@pytest.mark.slow
def test_a_stream_of_the_servers_own_rounds_crosses(server: RunningServer) -> None:
    with Caller(server.address) as caller:
        opened, told = caller.open(max_new_tokens=12)
        replies = list(caller.proceed(opened, told, 6))
        assert [reply.round for reply in replies] == [1, 2, 3, 4, 5, 6]
        again, told_again = caller.open(max_new_tokens=12)
        first = [caller.verify(again, told_again)]
        for _ in range(5):
            first.append(caller.verify(again, first[-1]))
        assert [reply.bonus for reply in first] == [reply.bonus for reply in replies]
        with pytest.raises(Refused) as caught:
            list(caller.proceed(opened, told, 6))
        assert caught.value.reason == Reason.STALE_ROUND.value


@pytest.mark.slow
def test_sessions_stay_where_they_are_and_are_told_of_together(server: RunningServer) -> None:
    before = sessions(server)
    with Caller(server.address) as caller:
        held: list[tuple[pb.OpenRequest, Any]] = [caller.open() for _ in range(12)]
        for _ in range(3):  # a session that had moved would be unknown
            held = [(opened, caller.verify(opened, told)) for opened, told in held]
        eventually(lambda: sessions(server) == before + 12)
        for opened, _ in held:
            caller.call("Close", pb.CloseRequest(session_id=opened.session_id, epoch=1))
        with pytest.raises(Refused) as caught:
            caller.verify(*held[0])
        assert caught.value.reason == Reason.REOPEN.value


@pytest.mark.slow
def test_replicas_that_are_killed_cost_no_token(
    server: RunningServer, remote: Model, zoo: Zoo
) -> None:
    here = zoo.model("gqa")
    answers = {
        prompt: here.generate(None, prompt, max_new_tokens=32).token_ids
        for prompt in (f"w{i} w{i + 1}" for i in range(1, 25))
    }
    prompts = [prompt for prompt, answer in answers.items() if len(answer) == 32][:8]
    wanted = [answers[prompt] for prompt in prompts]
    assert len(wanted) == 8
    requests = [remote.stream(None, prompt, max_new_tokens=32) for prompt in prompts]
    found: list[list[int]] = [[] for _ in requests]
    for victim in replicas(server):  # each session is at home with one of the two
        for tokens, request in zip(found, requests, strict=True):
            tokens += [record.token for record in islice(request, 5)]
        victim.kill()
    for tokens, request in zip(found, requests, strict=True):
        tokens += [record.token for record in request]
    assert [tuple(tokens) for tokens in found] == wanted
    reopens = [request.remote["reopens"] for request in requests if request.remote]
    assert len(reopens) == 8 and min(reopens) > 0
