"""Drafting ahead changes when candidates are made, never which: whatever was guessed, and however
far it got, the draft's cache and proposals are those of one that waits."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgespec_runtime
from edgespec.acceptance import StopRules, Verdict
from edgespec.sampling import Noise, SamplingParams
from edgespec.sizing import Eagle2, Growth, Policy, RollingBestN, Root, Setting
from edgespec.sizing.contract import Steady
from edgespec.tree import ROOT, Candidates
from edgespec_export.family import sample_image
from edgespec_runtime.decoder import Round, decode
from edgespec_runtime.drafts import Drafter, NoDraft
from edgespec_runtime.drafts.ahead import AheadDraft
from edgespec_runtime.drafts.cascade import CascadeDraft
from edgespec_runtime.drafts.coupling import Coupling
from edgespec_runtime.drafts.ngram import NgramDraft
from edgespec_runtime.drafts.opening import DraftModel
from edgespec_runtime.drafts.vlm import VlmDraft
from edgespec_runtime.prefill import prefill
from tests.support.compare import host_rows
from tests.support.fakes import ToySession, toy_draft, toy_table, toy_verifier
from tests.support.sizers import Pausing, drafted, tree_of
from tests.support.waiting import WaitingVerifier, wait_for
from tests.test_lossless import policies, run, samplings, tokens_of

VOCAB = 6
PROMPT = [1, 2, 3]
AGES = 1_000_000
"""A wait that no drafting outlasts."""


def draft_of(
    params: SamplingParams, disagree: float, *, chain_steps: int = 0, coupled: bool = False
) -> VlmDraft:
    coupling = None
    if coupled and params.temperature:
        coupling = Coupling(Noise(params.seed, VOCAB), params.temperature)
    return toy_draft(
        PROMPT, VOCAB, top_k=3, disagree=disagree, chain_steps=chain_steps, coupling=coupling
    )


def waits_of(seed: int, most: int = 8) -> Callable[[], int | None]:
    """Of a network that is sometimes slow, and of answers that are there at once."""
    rng = random.Random(seed)
    return lambda: rng.choice([None, AGES, AGES, *range(most)])


# --- Against one that waits -----------------------------------------------------------------------


class Again(Steady):
    """Grows what was grown before, one node a call."""

    def __init__(self, policy: Policy, arena: Candidates) -> None:
        super().__init__(policy)
        starts = np.cumsum([0, *arena.families[:-1]])
        self._parents = [arena.parents[i] for i, n in zip(starts, arena.families, strict=True) if n]

    def begin(self, root: Root) -> Growth:
        return Growth.STEPS

    def beam(self, candidates: Candidates, level: int, root: Root) -> list[int]:
        return self._parents[level : level + 1]

    def choose(self, candidates: Candidates) -> list[int]:
        return []


def check(
    policy: Policy, params: SamplingParams, waits: Callable[[], int | None], **draft: Any
) -> AheadDraft:
    """Every round of an answer: the cache, what is unseen, and the proposals."""
    limit = 24
    mine = draft_of(params, **draft)
    ahead = AheadDraft(mine)
    verifier = WaitingVerifier(toy_verifier(PROMPT, VOCAB, params), waits)
    committed: list[int] = []
    for outcome in decode(verifier, ahead, policy.start(Setting()), StopRules((), limit)):
        feedback = outcome.feedback
        if feedback is not None and len(feedback.candidates):
            assert feedback.root.ready == 0 or feedback.root.unseen == 0
            check_proposals(policy, params, committed, feedback.root, feedback.candidates, draft)
        committed += outcome.tokens
        if len(committed) > 1:
            check_cache(mine, committed)
    plain = run(toy_verifier(PROMPT, VOCAB, params), NoDraft(), limit)
    assert committed == tokens_of(plain)
    return ahead


def check_proposals(
    policy: Policy,
    params: SamplingParams,
    committed: Sequence[int],
    root: Root,
    found: Candidates,
    draft: dict[str, Any],
) -> None:
    fresh = draft_of(params, draft["disagree"], coupled=draft.get("coupled", False))
    fresh.begin(Verdict((), tuple(committed)))
    fresh.prepare()
    expected = fresh.grow(Again(policy, found), Growth.STEPS, root)
    assert tree_of(found) == tree_of(expected)
    assert found.scores == expected.scores


def check_cache(draft: VlmDraft, committed: Sequence[int]) -> None:
    """It holds what a prefill of the committed rows would give, and the rest is unseen."""
    if not draft.prepared:
        return
    length = draft.cached
    known = [*PROMPT, *committed][:length]
    assert [*known, *draft._unseen] == [*PROMPT, *committed]
    fresh = ToySession(VOCAB, 7, top_k=1)
    prefill(fresh, toy_table(VOCAB)[known])
    ours, theirs = (host_rows(c)[..., :length, :] for c in (draft._session.cache, fresh.cache))
    np.testing.assert_array_equal(ours, theirs)


@settings(max_examples=40)
@given(
    policy=policies,
    share=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 999),
    chain_steps=st.integers(0, 3),
    coupled=st.booleans(),
    params=samplings,
    disagree=st.sampled_from([0.0, 0.1, 0.4]),
)
def test_candidates_and_caches_are_those_of_a_draft_that_waits(
    policy: Policy,
    share: float,
    seed: int,
    chain_steps: int,
    coupled: bool,
    params: SamplingParams,
    disagree: float,
) -> None:
    """Trees and chains, kinds that alternate, pauses, guesses that are cut short anywhere."""
    pausing = Pausing(policy, 0, seed, share, segment=max(chain_steps, 1))
    check(
        pausing, params, waits_of(seed), disagree=disagree, chain_steps=chain_steps, coupled=coupled
    )


CONSTANT: dict[str, tuple[Policy, int]] = {
    "tree": (Eagle2(10, 4, 3), 0),
    "chain": (Pausing(Eagle2(12, 6, 2, beam_width=1), share=0.0, segment=2), 2),
    "rolling": (RollingBestN(9, 4, 3, 4), 0),
}


def check_fixed(name: str) -> tuple[int, int]:
    """(hits, guesses) of fixed cases."""
    policy, steps = CONSTANT[name]
    hits = tried = 0
    for seed in range(6):
        params = SamplingParams(temperature=0.0 if seed % 2 else 1.0, seed=seed)
        ahead = check(
            policy, params, waits_of(seed, 4), disagree=0.03, chain_steps=steps, coupled=True
        )
        hits, tried = hits + ahead.hits, tried + ahead.tried
    return hits, tried


@pytest.mark.parametrize("name", CONSTANT)
def test_some_guesses_are_right_and_some_are_wrong(name: str) -> None:
    hits, tried = check_fixed(name)
    assert 2 < hits < tried - 2


@pytest.mark.parametrize("coupled", [False, True])
def test_trees_are_those_of_a_draft_that_waits(coupled: bool) -> None:
    """A policy that always grows alike: not only are candidates right, they are the same ones, in
    their order, in every round."""
    compared = 0
    for seed in range(8):
        params = SamplingParams(temperature=0.0 if seed % 2 else 1.0, seed=seed)
        found = []
        for ahead in (False, True):
            draft: Drafter = draft_of(params, 0.1, coupled=coupled)
            draft = AheadDraft(draft) if ahead and isinstance(draft, VlmDraft) else draft
            verifier = WaitingVerifier(toy_verifier(PROMPT, VOCAB, params), waits_of(seed))
            found.append(run(verifier, draft, 40, Eagle2(10, 4, 3)))
        assert tokens_of(found[0]) == tokens_of(found[1])
        for one, other in zip(*(drafted(rounds) for rounds in found), strict=True):
            assert tree_of(one.candidates) == tree_of(other.candidates)
            assert one.candidates.scores == other.candidates.scores
            compared += other.root.ready > 0
    assert compared > 10


# --- What it saves --------------------------------------------------------------------------------


def rounds_of(waits: Callable[[], int | None], depth: int = 4) -> tuple[list[Round], AheadDraft]:
    """Of a draft that is the target."""
    ahead = AheadDraft(draft_of(SamplingParams(), 0.0))
    verifier = WaitingVerifier(toy_verifier(PROMPT, VOCAB, SamplingParams()), waits)
    return run(verifier, ahead, 40, Eagle2(8, depth, 1)), ahead


def test_a_draft_that_is_always_right_drafts_while_it_waits_only() -> None:
    rounds, ahead = rounds_of(lambda: AGES)
    first, *others = drafted(rounds)
    assert first.root.ready == 0 and first.calls == (1, 1, 1, 1)
    # The last rounds are cut by the length limit.
    assert [f.calls for f in others[:-1]] == [()] * (len(others) - 1)
    assert [f.root.ready for f in others[:-1]] == [4] * (len(others) - 1)
    assert ahead.hits == ahead.tried > 4
    assert [len(r.tokens) for r in rounds[1:-1]] == [5] * (len(rounds) - 2)


def test_a_coupled_draft_that_is_the_target_guesses_its_draw() -> None:
    check_hits_of_a_coupled_target()


def check_hits_of_a_coupled_target() -> None:
    params = SamplingParams(temperature=1.0, seed=3)
    ahead = AheadDraft(draft_of(params, 0.0, coupled=True))
    verifier = WaitingVerifier(toy_verifier(PROMPT, VOCAB, params), lambda: AGES)
    run(verifier, ahead, 40, Eagle2(8, 3, 1))
    assert ahead.hits == ahead.tried > 5


@pytest.mark.parametrize("asked", range(7))
def test_what_was_not_reached_while_waiting_is_drafted_afterwards(asked: int) -> None:
    """Asked once before the leaf is fed, once before the guess, once before every further level."""
    rounds, ahead = rounds_of(lambda: asked)
    levels = min(max(asked - 1, 0), 4)
    for feedback in drafted(rounds)[1:-2]:
        assert feedback.root.ready == levels
        again = () if levels else (1 if asked else 2,)
        assert feedback.calls == (*again, *[1] * (4 - max(levels, 1)))
    assert bool(ahead.tried) == (asked > 0)


def test_nothing_is_guessed_for_an_answer_that_is_there_at_once() -> None:
    rounds, ahead = rounds_of(lambda: None)
    assert ahead.tried == 0 and {f.root.ready for f in drafted(rounds)} == {0}


def test_a_wrong_guess_keeps_the_rows_that_it_shares_with_the_text() -> None:
    """No more rows are fed again than what the target said beyond the guess."""
    params = SamplingParams()
    ahead = AheadDraft(draft_of(params, 0.3))
    verifier = WaitingVerifier(toy_verifier(PROMPT, VOCAB, params), lambda: AGES)
    rounds = drafted(run(verifier, ahead, 60, Pausing(Eagle2(8, 4, 1), share=0.0)))
    for before, feedback in zip(rounds, rounds[1:], strict=False):
        accepted = len(before.rows)
        leaf = max((before.candidates.depths[i] for i in before.chosen), default=0)
        if accepted < leaf:  # a chain: the guess was wrong behind the last accepted one
            assert feedback.root.unseen == 1
    assert ahead.hits < ahead.tried


# --- With n-grams, and exported models ------------------------------------------------------------


@settings(max_examples=40)
@given(
    policy=policies,
    seed=st.integers(0, 999),
    chain_steps=st.integers(0, 3),
    params=samplings,
    disagree=st.sampled_from([0.0, 0.3]),
)
def test_beside_n_grams_texts_are_plain(
    policy: Policy, seed: int, chain_steps: int, params: SamplingParams, disagree: float
) -> None:
    inner = draft_of(params, disagree, chain_steps=chain_steps)
    both = CascadeDraft(AheadDraft(inner), NgramDraft(PROMPT))
    verifier = WaitingVerifier(toy_verifier(PROMPT, VOCAB, params), waits_of(seed))
    pausing = Pausing(policy, 0, seed, 0.2, segment=max(chain_steps, 1))
    committed: list[int] = []
    for outcome in decode(verifier, both, pausing.start(Setting()), StopRules((), 30)):
        committed += outcome.tokens
        if len(committed) > 1:
            check_cache(inner, committed)
    assert committed == tokens_of(run(toy_verifier(PROMPT, VOCAB, params), NoDraft(), 30))


def test_best_token_of_a_root_without_a_tree() -> None:
    """A round that drafts and verifies nothing: the guess is the best child."""

    class Shy(Eagle2):
        def start(self, setting: Setting) -> Any:
            sizer = Eagle2(8, 2, 2).start(setting)
            sizer.choose = lambda candidates: []  # type: ignore[method-assign]
            return sizer

    ahead = AheadDraft(draft_of(SamplingParams(), 0.0))
    verifier = WaitingVerifier(toy_verifier(PROMPT, VOCAB, SamplingParams()), lambda: AGES)
    rounds = drafted(run(verifier, ahead, 20, Shy()))
    assert ahead.hits == ahead.tried > 10
    assert {f.root.ready for f in rounds[1:]} == {2, 1}


POLICIES: list[Policy] = [
    Eagle2(12, 4, 3),
    Pausing(Eagle2(14, 14, 2, beam_width=1), seed=3, share=0.0, segment=6),
    Pausing(Eagle2(9, 9, 1), idle=1, seed=2, share=0.3, segment=6),
]
ASKED: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0, "seed": 4, "coupled": True},
]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("asked", ASKED)
def test_the_built_in_family(
    builtin_bundle: Path, asked: dict[str, Any], policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = edgespec_runtime.load(builtin_bundle, threads=1)
    opened = DraftModel.open

    def open_ahead(self: DraftModel, *given: Any, **named: Any) -> Drafter:
        return opened(self, *given, **{**named, "ahead": True})

    found = []
    for ahead in (False, True):
        with monkeypatch.context() as patch:
            if ahead:
                patch.setattr(DraftModel, "open", open_ahead)
            request: Any = model.stream(
                sample_image(),
                "Describe this image in detail.",
                policy=policy,
                max_new_tokens=80,
                **asked,
            )
        wait_for(request._verifier, waits_of(5, 4))
        rounds: list[Any] = []
        request.listen(rounds.append)
        found.append(([record.token for record in request], drafted(rounds)))
    (said, waiting), (expected, went_ahead) = found
    assert said == expected
    assert 2 < request._draft.hits < request._draft.tried
    # Ahead it may have grown on where the sizer would have stopped, and more was accepted.
    waited = {feedback.root.emitted: feedback.candidates for feedback in waiting}
    compared = 0
    for feedback in went_ahead:
        if feedback.root.emitted in waited:
            arenas = (feedback.candidates, waited[feedback.root.emitted])
            ours, theirs = (dict(zip(paths_of(a), a.scores, strict=True)) for a in arenas)
            both = ours.keys() & theirs.keys()
            assert both, "the roots are the same"
            assert [ours[path] for path in both] == pytest.approx(
                [theirs[path] for path in both], rel=1e-3, abs=5e-3
            )
            compared += feedback.root.ready > 0
    assert compared


def paths_of(candidates: Candidates) -> list[tuple[int, ...]]:
    """Every candidate as the tokens down to it."""
    paths: list[tuple[int, ...]] = []
    for token, parent in zip(candidates.tokens, candidates.parents, strict=True):
        paths.append((*(() if parent == ROOT else paths[parent]), token))
    return paths
