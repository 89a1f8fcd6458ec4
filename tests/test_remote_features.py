"""Feature-level drafts of a target elsewhere, and visual tokens in place of pictures: what crosses
the network changes speed and bytes, never the text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edgespec.errors import ConfigError, RemoteError
from edgespec.tree import EMPTY
from edgespec_runtime.entry import load
from edgespec_runtime.remote import RemoteSettings
from edgespec_runtime.wire import verifier_pb2 as pb
from edgespec_runtime.wire.refusal import Reason
from tests.support.calls import Caller, Refused
from tests.support.servers import RunningServer, running_server

if TYPE_CHECKING:
    from edgespec_runtime import Model
    from tests.support.zoo import Zoo

NAME, LENGTH = "gqa", 24
WIDTH = 64
"""Of the tiny target's hidden states, and of its visual tokens."""
ROUNDS: dict[str, Any] = {"mode": "hybrid", "ahead": False, "patience_s": 240.0}
PROMPT, POLICY = "w3 w5", "eagle2:nodes=12,depth=4,top_k=3"
VARIANTS = {"vispec": "", "eagle3": "", "specvlm": "pool:4"}


class Bench:
    """A bundle with a random head: here, and on a server."""

    def __init__(self, zoo: Zoo, variant: str, server: RunningServer) -> None:
        self.bundle = zoo.head_bundle(NAME, variant, VARIANTS[variant])
        self.here = load(self.bundle, threads=1)
        self.picture = zoo.picture(NAME, 4)
        self.server = server

    def away(self, **settings: Any) -> Model:
        given = {**ROUNDS, **settings}
        return load(self.bundle, threads=1, remote=RemoteSettings((self.server.address,), **given))


@pytest.fixture(scope="module", params=VARIANTS)
def bench(request: pytest.FixtureRequest, zoo: Zoo) -> Iterator[Bench]:
    variant = str(request.param)
    bundle = zoo.head_bundle(NAME, variant, VARIANTS[variant])
    with running_server(bundle, "--kv-mb", 64, "--allow-embeddings") as server:
        yield Bench(zoo, variant, server)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["float16", "int8"])
@pytest.mark.parametrize("params", [{}, {"temperature": 1.0, "seed": 3}], ids=["greedy", "drawn"])
def test_the_text_is_the_targets(bench: Bench, kind: str, params: dict[str, Any]) -> None:
    settings = {"max_new_tokens": LENGTH, "policy": POLICY, **params}
    wanted = bench.here.generate(bench.picture, PROMPT, **settings)
    model = bench.away(features=kind)
    found = model.generate(bench.picture, PROMPT, **settings)
    model.close()
    assert (found.token_ids, found.text) == (wanted.token_ids, wanted.text)
    assert found.stats.rounds > 3
    # Rounding a feature may move a guess now and then, no more.
    assert abs(found.stats.rounds - wanted.stats.rounds) <= 3
    plain = bench.here.generate(bench.picture, PROMPT, **{**settings, "draft": "none"})
    assert plain.token_ids == wanted.token_ids


@pytest.mark.slow
@pytest.mark.parametrize("kind, tolerance", [("float16", 2e-3), ("int8", 2e-2)])
def test_the_draft_is_fed_what_it_would_be_fed_here(
    bench: Bench, kind: str, tolerance: float
) -> None:
    verdicts = []
    for model in (bench.here, bench.away(features=kind)):
        request = model.stream(bench.picture, PROMPT, max_new_tokens=LENGTH)
        verifier = request._verifier
        verdicts.append([verifier.begin(), verifier.verify(EMPTY), verifier.verify(EMPTY)])
        verifier.close()
        model.close()
    for here, away in zip(*verdicts, strict=True):
        assert here == away and here.features is not None and away.features is not None
        peaks = np.abs(here.features).max(axis=1, keepdims=True)
        assert (np.abs(away.features - here.features) <= tolerance * peaks).all()


@pytest.mark.slow
def test_an_answer_taken_up_again_feeds_its_draft_on(bench: Bench) -> None:
    settings: dict[str, Any] = {"max_new_tokens": LENGTH, "policy": POLICY}
    wanted = bench.here.generate(bench.picture, PROMPT, **settings)
    model = bench.away()
    whole = model.generate(bench.picture, PROMPT, **settings)
    request = model.stream(bench.picture, PROMPT, **settings)
    tokens = [next(request).token for _ in range(6)]
    bench.server.restart()
    tokens += [record.token for record in request]
    model.close()
    assert tuple(tokens) == wanted.token_ids
    assert whole.remote is not None and request.remote is not None
    assert request.remote["reopens"] >= 1
    # The features of the context came once; the open that resumes brings none of them again.
    rows = request.prompt_tokens
    assert whole.remote["bytes_down"] > 2 * WIDTH * rows
    assert request.remote["bytes_down"] < whole.remote["bytes_down"] + WIDTH * rows


@pytest.mark.slow
@pytest.mark.parametrize("local", ["none", "target"])
def test_features_come_with_a_stream_only_where_a_draft_may_want_them(
    bench: Bench, local: str
) -> None:
    """Servers that decode alone need no draft here, unless it is to go on without them."""
    model = bench.away(mode="remote", local=local)
    assert model.has_draft == (local == "target")
    request = model.stream(bench.picture, PROMPT, max_new_tokens=LENGTH)
    tokens = [record.token for record in request]
    model.close()
    wanted = bench.here.generate(bench.picture, PROMPT, max_new_tokens=LENGTH)
    assert tuple(tokens) == wanted.token_ids
    assert request.remote is not None and request.remote["streamed"] > LENGTH // 2
    assert (request.remote["bytes_down"] > 2 * WIDTH * request.prompt_tokens) == model.has_draft


@pytest.mark.slow
def test_a_draft_that_is_not_loaded_is_not_missing(bench: Bench) -> None:
    model = bench.away(mode="remote")
    with pytest.raises(ConfigError, match="servers decode alone"):
        model.stream(bench.picture, PROMPT, draft="model")
    model.close()


@pytest.mark.slow
def test_visual_tokens_may_go_in_place_of_pictures(bench: Bench) -> None:
    wanted = bench.here.generate(bench.picture, PROMPT, max_new_tokens=LENGTH)
    model = bench.away(embeddings=True)
    found = model.generate(bench.picture, PROMPT, max_new_tokens=LENGTH)
    model.close()
    assert (found.token_ids, found.text) == (wanted.token_ids, wanted.text)
    rows = int(bench.here.manifest.text["visual_tokens"])
    assert found.remote is not None and found.remote["bytes_up"] > 4 * WIDTH * rows


@pytest.mark.slow
def test_a_server_takes_them_only_where_it_was_told_to(zoo: Zoo) -> None:
    bundle = zoo.bundle(NAME)
    with running_server(bundle, "--kv-mb", 64) as server:
        settings = RemoteSettings((server.address,), embeddings=True)
        model = load(bundle, threads=1, remote=settings)
        with pytest.raises(RemoteError, match="takes no visual embeddings"):
            model.generate(zoo.picture(NAME, 4), PROMPT, max_new_tokens=4)
        model.close()
        with Caller(server.address) as caller:
            rows = int(model.manifest.text["visual_tokens"])
            sent = pb.Embeddings(rows=rows, width=WIDTH, data=bytes(4 * rows * WIDTH))
            token = int(model.manifest.text["image_token_id"])
            with pytest.raises(Refused) as caught:
                caller.open(prompt_ids=[5, token, 6], pictures=[pb.Picture(embeddings=sent)])
            assert caught.value.reason == Reason.INVALID.value
