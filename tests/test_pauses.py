"""Rounds that do not draft: nothing is paid before the first drafted one, and a draft that was left
out for a while proposes what one that never was would."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgespec.sampling import SamplingParams
from edgespec.sizing import Eagle2, Plain, Policy, RollingBestN
from edgespec_runtime.decoder import Round
from edgespec_runtime.drafts import Drafter, NoDraft
from edgespec_runtime.drafts.cascade import CascadeDraft
from edgespec_runtime.drafts.ngram import NgramDraft
from tests.support.compare import assert_same_tokens
from tests.support.fakes import ScriptedDraft, ScriptedVerifier, chain, toy_draft, toy_verifier
from tests.support.sizers import Pausing, drafted, tree_of
from tests.support.zoo import LOWERINGS
from tests.test_lossless import (
    SAMPLING,
    check_kv,
    count_up,
    policies,
    run,
    samplings,
    tokens_of,
)
from tests.test_ngram import heard

if TYPE_CHECKING:
    from tests.support.zoo import Zoo

VOCAB = 8
EOS = [7]
DRAFTS: dict[str, Callable[[Sequence[int], float], Drafter]] = {
    "model": lambda prompt, disagree: toy_draft(prompt, VOCAB, disagree=disagree),
    "chains of two": lambda prompt, disagree: toy_draft(
        prompt, VOCAB, disagree=disagree, chain_steps=2
    ),
    "n-grams": lambda prompt, disagree: NgramDraft(prompt),
    "both": lambda prompt, disagree: CascadeDraft(
        toy_draft(prompt, VOCAB, disagree=disagree, chain_steps=3), NgramDraft(prompt)
    ),
}


# --- What it costs --------------------------------------------------------------------------------


def right(path: Sequence[int], left: int) -> list[tuple[int, int, float]]:
    """A draft that counts as the target does, two tokens ahead."""
    return chain([100 + len(path) + i for i in range(2)][:left])


def test_plain_decoding_never_prepares_the_draft() -> None:
    draft = ScriptedDraft(right)
    rounds = run(ScriptedVerifier(count_up), draft, 9, Plain())
    assert [r.tokens for r in rounds] == [(100 + i,) for i in range(9)]
    assert not draft.prepared and draft.roots == []
    assert draft.committed == tokens_of(rounds), "it hears of every token all the same"


@pytest.mark.parametrize(("limit", "eos"), [(1, []), (2, []), (9, [100])])
def test_an_answer_that_ends_at_once_never_prepares_the_draft(limit: int, eos: list[int]) -> None:
    """Two tokens are the first one and a bonus: nothing could be accepted."""
    draft = ScriptedDraft(right)
    rounds = run(ScriptedVerifier(count_up), draft, limit, Eagle2(), eos)
    assert len(tokens_of(rounds)) == (1 if eos else limit)
    assert not draft.prepared


@pytest.mark.parametrize("idle", [0, 1, 3])
def test_a_draft_is_prepared_once_and_when_it_is_first_asked(idle: int) -> None:
    """The scripted draft refuses to be prepared twice, and to grow without."""
    draft = ScriptedDraft(right)
    rounds = run(ScriptedVerifier(count_up), draft, 30, Pausing(Eagle2(), idle, seed=4))
    assert tokens_of(rounds) == list(range(100, 130))
    told = [r.feedback for r in rounds if r.feedback]
    at = next(i for i, feedback in enumerate(told) if feedback in drafted(rounds))
    assert [feedback.root.prepared for feedback in told] == [i > at for i in range(len(told))]
    assert at >= idle and draft.roots[0].unseen == at + 1
    assert 0 < len(draft.roots) < len(told) - at, "later rounds pause too"


def test_toy_models_take_in_nothing_before_they_draft() -> None:
    asked = []

    def prompt() -> Any:
        asked.append(1)
        return draft._table[[1, 2, 3]]

    draft = toy_draft([1, 2, 3], VOCAB)
    draft._prompt = prompt
    run(toy_verifier([1, 2, 3], VOCAB, SamplingParams()), draft, 20, Plain())
    assert not asked and not draft._session.calls  # type: ignore[attr-defined]
    assert draft.unseen == 20
    draft = toy_draft([1, 2, 3], VOCAB)
    draft._prompt = prompt
    rounds = run(toy_verifier([1, 2, 3], VOCAB, SamplingParams()), draft, 20, Pausing(Eagle2(), 3))
    assert len(asked) == 1
    first = drafted(rounds)[0]
    # The prompt's rows in one call, then all that was said in the next.
    assert draft._session.calls[:2] == [3, first.root.unseen]  # type: ignore[attr-defined]
    assert first.root.unseen == first.root.emitted == first.calls[0] >= 4


# --- Texts ----------------------------------------------------------------------------------------

pausing = st.builds(
    Pausing,
    inner=policies,
    idle=st.integers(0, 4),
    seed=st.integers(0, 999),
    share=st.sampled_from([0.2, 0.5, 0.8]),
)


@pytest.mark.parametrize("name", DRAFTS)
@settings(max_examples=40)
@given(
    prompt=st.lists(st.integers(0, 6), min_size=1, max_size=6),
    policy=pausing,
    params=samplings,
    limit=st.integers(1, 24),
    disagree=st.sampled_from([0.0, 0.2, 0.6]),
)
def test_toy_models_that_pause_are_plain(
    name: str,
    prompt: list[int],
    policy: Pausing,
    params: SamplingParams,
    limit: int,
    disagree: float,
) -> None:
    check_toy(name, prompt, policy, params, limit, disagree)


def check_toy(
    name: str,
    prompt: list[int],
    policy: Policy,
    params: SamplingParams,
    limit: int,
    disagree: float,
) -> list[Round]:
    plain = run(toy_verifier(prompt, VOCAB, params), NoDraft(), limit, eos=EOS)
    draft = DRAFTS[name](prompt, disagree)
    rounds = run(toy_verifier(prompt, VOCAB, params), draft, limit, policy, EOS)
    assert tokens_of(rounds) == tokens_of(plain)
    assert rounds[-1].finish_reason == plain[-1].finish_reason
    return rounds


INNER: list[Policy] = [Eagle2(8, 4, 2), Eagle2(9, 6, 1), RollingBestN(8, 4, 2, 3)]


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("name", DRAFTS)
def test_proposals_after_a_pause_are_those_of_a_draft_that_never_paused(
    name: str, inner: Policy
) -> None:
    check_proposals(name, inner)


def check_proposals(name: str, inner: Policy) -> None:
    """Candidate for candidate and bit for bit, in every round that drafts."""
    prompt, pauses, compared = [1, 2, 3, 1, 2], 0, 0
    for seed in range(12):
        params = SamplingParams(temperature=0.0 if seed % 2 else 1.0, seed=seed)
        found = {}
        for shadow in (False, True):
            policy = Pausing(inner, seed % 4, seed, shadow=shadow)
            rounds = check_toy(name, prompt, policy, params, 40, 0.1)
            found[shadow] = {feedback.root.emitted: feedback for feedback in drafted(rounds)}
        assert found[False].keys() <= found[True].keys()
        pauses += len(found[True]) - len(found[False])
        for emitted, feedback in found[False].items():
            ours, theirs = feedback.candidates, found[True][emitted].candidates
            assert tree_of(ours) == tree_of(theirs)
            assert ours.scores == theirs.scores
            compared += len(ours) > 0
    assert pauses > 20 and compared > 20, "the test shows little"


# --- Exported models ------------------------------------------------------------------------------

SWITCHED = [
    Pausing(Eagle2(12, 4, 3), idle=0, seed=1),
    Pausing(Eagle2(9, 9, 1), idle=2, seed=2, segment=6),
    Pausing(RollingBestN(10, 4, 3, 4), idle=5, seed=3, share=0.3),
]


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("draft", ["model", "ngram", "model+ngram"])
@pytest.mark.parametrize("images", [0, 1])
def test_exported_models_that_pause_are_plain(
    zoo: Zoo, images: int, draft: str, lowering: str
) -> None:
    model = zoo.model("gqa", "shared", lowering)
    pictures = [zoo.picture("gqa", 3)] * images
    accepted = 0
    for i, sampling in enumerate(SAMPLING):
        prompt = "tell me more, tell me more " + "abc" * i
        given_: dict[str, Any] = {**sampling, "max_new_tokens": 30}
        plain = model.generate(pictures, prompt, draft="none", **given_)
        for policy in SWITCHED:
            request: Any = model.stream(pictures, prompt, draft=draft, policy=policy, **given_)
            ngram = getattr(request._draft, "_ngram", request._draft)
            ngram._corpus = heard(plain.token_ids)
            records = list(request)
            tokens = [record.token for record in records]
            assert_same_tokens(model, pictures, prompt, given_, plain.token_ids, tokens)
            assert sum(record.prepare_ms > 0 for record in records) == 1
            assert request.stats.prepare_ms == sum(record.prepare_ms for record in records)
            accepted += sum(record.from_draft for record in records)
    assert accepted > 60, "hardly anything was accepted: the test shows little"


@pytest.mark.parametrize("policy", SWITCHED)
@pytest.mark.parametrize("images", [0, 1])
def test_caches_of_a_draft_that_pauses_are_fresh_prefills(
    zoo: Zoo, images: int, policy: Policy
) -> None:
    pictures = [zoo.picture("gqa", i) for i in range(images)]
    model = zoo.model("gqa")
    request = model.stream(pictures, "tell me", policy=policy, max_new_tokens=40)
    deepest = check_kv(model, request)
    assert deepest >= (1 if images else 2), "no path was long enough: the test shows little"


@pytest.mark.parametrize("sampling", [SAMPLING[0], SAMPLING[5]])
def test_an_answer_without_drafting_does_not_pay_for_a_draft(
    zoo: Zoo, sampling: dict[str, Any]
) -> None:
    model = zoo.model("gqa")
    given_: dict[str, Any] = {**sampling, "max_new_tokens": 12}
    plain = model.generate([], "say it", draft="none", **given_)
    for draft in ("model", "ngram", "model+ngram"):
        request: Any = model.stream([], "say it", draft=draft, policy="plain", **given_)
        records = list(request)
        assert tuple(record.token for record in records) == plain.token_ids
        assert {(r.tree_nodes, r.prepare_ms, r.from_draft) for r in records} == {(0, 0.0, False)}
        assert not request._draft.prepared and request._draft.engine_s == 0
        assert request.stats.prepare_ms == 0 and request.stats.accepted_length == 1
