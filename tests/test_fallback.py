"""Modes and fallbacks over a real server: the text is the target's wherever it comes from, and
where it is the draft's it is said so."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import edgespec_runtime
from edgespec.cli import main
from edgespec.errors import ConfigError, RemoteError
from edgespec.sizing import Root
from edgespec_runtime import Model, Record
from edgespec_runtime.remote import RemoteSettings, fallback, modes, opening, routed
from edgespec_runtime.remote.link import Mode
from tests.support.eventually import eventually
from tests.support.servers import RunningServer, running_server
from tests.support.unhurried import unhurried

PROMPT = "Describe the scene in detail."
NOBODY = "127.0.0.1:1"
TOKENS = 40
SAMPLED = {"temperature": 0.8, "seed": 11}
GREEDY: dict[str, Any] = {}


@pytest.fixture(autouse=True, scope="module")
def no_hurry() -> Iterator[None]:
    """Only a server that was killed is given up: one that stalls is waited for."""
    with unhurried():
        yield


@pytest.fixture(scope="module")
def server(builtin_bundle: Path) -> Iterator[RunningServer]:
    with running_server(builtin_bundle) as running:
        yield running


@pytest.fixture
def alive(server: RunningServer) -> RunningServer:
    """The server, after tests that kill it as well."""
    if server.process.poll() is not None:
        server.restart()
    return server


@pytest.fixture(scope="module")
def here(builtin_bundle: Path) -> Model:
    """The target on this device."""
    return edgespec_runtime.load(builtin_bundle, threads=1)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def remote(builtin_bundle: Path, said: list[str]) -> Iterator[Any]:
    """Loads models with a remote target, and closes them."""
    loaded: list[Model] = []

    def load(address: str, **settings: Any) -> Model:
        given = {"fallback_s": 0.2, "notice": said.append, **settings}
        model = edgespec_runtime.load(
            builtin_bundle, threads=1, remote=RemoteSettings((address,), **given)
        )
        loaded.append(model)
        return model

    yield load
    for model in loaded:
        model.close()


def tokens(records: Sequence[Record]) -> list[int]:
    return [record.token for record in records]


def killed_on_the_way(model: Model, server: RunningServer, **sampling: Any) -> list[Record]:
    """All records of an answer whose server is killed behind the tenth."""
    records = []
    request = model.stream(None, PROMPT, max_new_tokens=TOKENS, **sampling)
    for record in request:
        records.append(record)
        if len(records) == 10:
            server.kill()
    return records


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_every_mode_gives_the_text_of_the_target(
    alive: RunningServer, here: Model, remote: Any, sampling: dict[str, Any]
) -> None:
    want = here.generate(None, PROMPT, max_new_tokens=TOKENS, **sampling)
    for mode in ("hybrid", "remote", "auto"):
        got = remote(alive.address, mode=mode).generate(
            None, PROMPT, max_new_tokens=TOKENS, **sampling
        )
        assert got.token_ids == want.token_ids, mode
        assert got.text_source == "target"
        rounds = got.remote["mode_rounds"]
        assert set(rounds) == {mode} or mode == "auto"
        assert "local" not in rounds and "draft" not in rounds


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_changing_over_in_mid_answer_loses_and_doubles_nothing(
    alive: RunningServer,
    here: Model,
    remote: Any,
    sampling: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    turns = itertools.cycle([Mode.HYBRID] * 2 + [Mode.REMOTE] * 3 + [Mode.HYBRID] + [Mode.REMOTE])

    def alternate(self: modes.Modes, root: Root) -> Mode:
        return next(turns)

    monkeypatch.setattr(modes.Modes, "_choose", alternate)
    want = here.generate(None, PROMPT, max_new_tokens=TOKENS, **sampling)
    got = remote(alive.address).generate(None, PROMPT, max_new_tokens=TOKENS, **sampling)
    assert got.token_ids == want.token_ids
    rounds = got.remote["mode_rounds"]
    assert rounds["hybrid"] >= 3 and rounds["remote"] >= 3
    assert got.remote["reopens"] >= 2, "a stream that was left is opened behind what was taken"


def test_without_a_draft_the_server_streams(alive: RunningServer, remote: Any) -> None:
    got = remote(alive.address).generate(None, PROMPT, draft="none", max_new_tokens=12)
    assert set(got.remote["mode_rounds"]) == {"remote"}


@pytest.mark.parametrize("mode", ["hybrid", "remote"])
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_the_target_here_takes_over_with_the_same_text(
    alive: RunningServer,
    here: Model,
    remote: Any,
    said: list[str],
    mode: str,
    sampling: dict[str, Any],
) -> None:
    want = here.generate(None, PROMPT, max_new_tokens=TOKENS, **sampling)
    model = remote(alive.address, local="target", mode=mode)
    got = killed_on_the_way(model, alive, **sampling)
    assert tokens(got) == list(want.token_ids)
    assert {record.source for record in got} == {"target"}
    assert any("the text is the same" in line for line in said)
    # The next request does not wait for the dead server again.
    again = model.generate(None, PROMPT, max_new_tokens=TOKENS, **sampling)
    assert again.token_ids == want.token_ids
    assert set(again.remote["mode_rounds"]) == {"local"}
    assert again.remote["retries"] == 0


@pytest.mark.parametrize("local", ["target", "draft"])
def test_a_server_that_comes_back_goes_on_with_what_came_meanwhile(
    alive: RunningServer,
    here: Model,
    remote: Any,
    said: list[str],
    local: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    want = here.generate(None, PROMPT, max_new_tokens=TOKENS)
    model = remote(alive.address, local=local, mode="hybrid")
    records = []
    request = model.stream(None, PROMPT, max_new_tokens=TOKENS)
    for record in request:
        records.append(record)
        if len(records) == 10:
            alive.kill()
        taken = request.remote["mode_rounds"].get("draft" if local == "draft" else "local", 0)
        if taken == 1 and alive.process.poll() is not None:
            alive.restart()
            # It is asked in the background; the answer waits for that here, so as not to be over.
            monkeypatch.setattr(routed.Outage, "lasts", False)
    rounds = request.remote["mode_rounds"]
    assert any("answers again" in line for line in said)
    assert sum(rounds.values()) > sum(rounds[m] for m in rounds if m != "hybrid")
    if local == "target":
        assert tokens(records) == list(want.token_ids)
    else:
        first = [record.source for record in records].index("draft")
        assert {record.source for record in records[first:]} == {"draft"}, "it stays the draft's"


def test_an_outage_is_noticed_to_end_in_the_background(
    alive: RunningServer, here: Model, remote: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routed, "RETRY_S", 0.0)
    model = remote(alive.address, local="target")
    killed_on_the_way(model, alive)
    alive.restart()

    def asked_again() -> bool:
        got = model.generate(None, PROMPT, max_new_tokens=4)
        return "local" not in got.remote["mode_rounds"]

    eventually(asked_again)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_the_draft_goes_on_and_is_said_to(
    alive: RunningServer, here: Model, remote: Any, said: list[str], sampling: dict[str, Any]
) -> None:
    want = here.generate(None, PROMPT, max_new_tokens=TOKENS, **sampling)
    got = killed_on_the_way(remote(alive.address, local="draft"), alive, **sampling)
    sources = [record.source for record in got]
    first = sources.index("draft")
    assert first >= 10 and sources == ["target"] * first + ["draft"] * (len(got) - first)
    assert tokens(got)[:first] == list(want.token_ids)[:first]
    assert any("NOT the target's" in line for line in said)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_the_draft_s_text_is_its_own_whatever_it_writes_at_a_time(
    remote: Any, sampling: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = []
    for depth, ahead in ((fallback.DEPTH, True), (1, True), (3, False)):
        monkeypatch.setattr(opening, "DEPTH", depth)
        model = remote(NOBODY, local="draft", ahead=ahead)
        got = model.generate(None, PROMPT, max_new_tokens=20, **sampling)
        assert got.text_source == "draft" and got.sources == (("draft", len(got.token_ids)),)
        texts.append(got.token_ids)
    assert len(set(texts)) == 1


def test_with_nothing_to_fall_back_on_it_is_an_error(remote: Any) -> None:
    model = remote(NOBODY, connect_s=0.1)
    with pytest.raises(RemoteError):
        model.generate(None, PROMPT, max_new_tokens=4)


def test_a_request_without_the_draft_cannot_fall_back_on_it(remote: Any) -> None:
    with pytest.raises(ConfigError, match="stand-alone"):
        remote(NOBODY, local="draft").stream(None, PROMPT, draft="ngram")


def test_the_command_says_whose_text_it_is(
    builtin_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", "--bundle", str(builtin_bundle), "--prompt", PROMPT, "--threads", "1"]
    words += ["--max-new-tokens", "6", "--remote", NOBODY, "--fallback-s", "0.1"]
    assert main([*words, "--local", "draft", "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert result["text_source"] == "draft"
    assert result["sources"] == [{"source": "draft", "tokens": len(result["token_ids"])}]
    assert "NOT the target's" in err
    assert main([*words, "--local", "target", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["text_source"] == "target"
    assert set(result["remote"]["mode_rounds"]) == {"local"}
    for where, said in (
        ("draft", "written by the draft alone: NOT the target's text"),
        ("target", "verified on this device"),
    ):
        assert main([*words, "--local", where]) == 0
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("verified by no server: 0 rounds") and said in line
