"""Chains in segments: several levels per engine call, gone on with or ended after each, are the
same trees as one level per call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgespec_runtime
from edgespec.sampling import SamplingParams
from edgespec.sizing import Eagle2, Feedback, Growth, Policy
from edgespec_export.family import sample_image
from edgespec_runtime.drafts import NoDraft
from edgespec_runtime.prefill import prefill
from tests.support.fakes import ToySession, toy_draft, toy_table, toy_verifier
from tests.support.random_heads import VARIANTS
from tests.support.sizers import Pausing, drafted, tree_of
from tests.test_feature_draft import NAME, lead
from tests.test_lossless import SAMPLING, check_kv, run, samplings, tokens_of

if TYPE_CHECKING:
    from tests.support.zoo import Zoo

VOCAB = 6
STEPS = 6
"""Levels of one call of an exported chain graph."""


# --- Toy models, bit for bit ----------------------------------------------------------------------


@settings(max_examples=50)
@given(
    steps=st.integers(1, 4),
    depth=st.integers(1, 9),
    top_k=st.integers(1, 3),
    seed=st.integers(0, 999),
    share=st.sampled_from([0.0, 0.4]),
    params=samplings,
    disagree=st.sampled_from([0.0, 0.1, 0.4]),
)
def test_toy_segments_are_the_chain_step_by_step(
    steps: int,
    depth: int,
    top_k: int,
    seed: int,
    share: float,
    params: SamplingParams,
    disagree: float,
) -> None:
    policy = Pausing(Eagle2(30, depth, top_k, beam_width=1), 0, seed, share, segment=steps)
    check_toy(policy, params, disagree)


def check_toy(policy: Pausing, params: SamplingParams, disagree: float) -> int:
    """Returns the longest chain of one round, in calls."""
    prompt, limit, steps = [1, 2, 3], 24, policy.segment
    found = []
    for chained in (True, False):
        draft = toy_draft(
            prompt, VOCAB, top_k=3, disagree=disagree, chain_steps=steps if chained else 0
        )
        rounds = run(toy_verifier(prompt, VOCAB, params), draft, limit, policy)
        assert_fresh(draft, prompt, tokens_of(rounds))
        found.append(drafted(rounds))
    plain = run(toy_verifier(prompt, VOCAB, params), NoDraft(), limit)
    assert tokens_of(rounds) == tokens_of(plain)
    for ours, theirs in zip(*found, strict=True):
        assert tree_of(ours.candidates) == tree_of(theirs.candidates)
        assert ours.candidates.scores == theirs.candidates.scores
        assert (ours.root, ours.chosen, ours.rows) == (theirs.root, theirs.chosen, theirs.rows)
        check_calls(ours, theirs, steps)
    return max(len(feedback.calls) for feedback in found[0])


def check_calls(ours: Feedback, theirs: Feedback, steps: int) -> None:
    """A call takes in the unseen rows or feeds one tip, and gives up to ``steps`` levels."""
    levels = max(theirs.candidates.depths)
    assert theirs.calls == (theirs.root.unseen, *[1] * (levels - 1))
    assert ours.calls == (ours.root.unseen, *[1] * (-(-levels // steps) - 1))


def assert_fresh(draft: Any, prompt: Sequence[int], committed: Sequence[int]) -> None:
    """The draft's cache holds what a prefill of the committed rows would give."""
    cache = draft._session.cache
    known = [*prompt, *committed][: cache.length]
    assert cache.pending == 0
    fresh = ToySession(VOCAB, 7, top_k=1)
    prefill(fresh, toy_table(VOCAB)[known])
    ours, theirs = (c.rows[..., : cache.length, :] for c in (cache, fresh.cache))
    np.testing.assert_array_equal(ours, theirs)


def test_chains_of_several_calls_that_are_accepted() -> None:
    """Fixed cases of the above, with a draft that mostly says what the target will."""
    calls = []
    for seed in range(5):
        policy = Pausing(Eagle2(30, 9, 2, beam_width=1), 0, seed, 0.2, segment=2)
        calls.append(check_toy(policy, SamplingParams(), 0.05))
    assert max(calls) >= 4


# --- Exported models ------------------------------------------------------------------------------

CHAINS: list[Policy] = [
    Eagle2(16, 16, 1),  # three calls, whatever they say
    Pausing(Eagle2(14, 14, 2, beam_width=1), seed=3, share=0.0, segment=STEPS),
    Pausing(Eagle2(18, 18, 1), idle=2, seed=5, share=0.3, segment=STEPS),
]


def chains_of(request: Any, chained: bool) -> tuple[list[int], list[Feedback]]:
    """The text, and what the sizer was told of every round that drafted."""
    chain = request._draft._chain
    assert chain.steps == STEPS
    if not chained:
        request._draft._chain = None
    rounds: list[Any] = []
    request.listen(rounds.append)
    return [record.token for record in request], drafted(rounds)


def assert_same_trees(found: Sequence[tuple[list[int], list[Feedback]]]) -> int:
    """Returns the most calls that one chain took."""
    (said, ours), (expected, theirs) = found
    assert said == expected
    for one, other in zip(ours, theirs, strict=True):
        assert tree_of(one.candidates) == tree_of(other.candidates)
        assert (one.chosen, one.rows) == (other.chosen, other.rows)
        np.testing.assert_allclose(
            one.candidates.scores, other.candidates.scores, rtol=1e-3, atol=5e-3
        )
        if one.growth is Growth.CHAIN:
            levels = max(other.candidates.depths)
            assert len(one.calls) == -(-levels // STEPS) and len(other.calls) == levels
    return max(len(one.calls) for one in ours)


@pytest.mark.parametrize("policy", CHAINS)
@pytest.mark.parametrize("sampling", [SAMPLING[0], SAMPLING[5]])
def test_segments_of_a_draft_vlm(zoo: Zoo, sampling: dict[str, Any], policy: Policy) -> None:
    model, picture = zoo.model("gqa"), zoo.picture("gqa", 2)
    found = [
        chains_of(
            model.stream([picture], "go on", policy=policy, max_new_tokens=40, **sampling), chained
        )
        for chained in (True, False)
    ]
    assert assert_same_trees(found) == 3


@pytest.mark.parametrize("policy", CHAINS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_segments_of_a_feature_draft(zoo: Zoo, variant: str, policy: Policy) -> None:
    """The tip that goes on is fed with the output of the call before."""
    model = edgespec_runtime.load(zoo.head_bundle(NAME, variant), threads=1)
    found = []
    for chained in (True, False):
        request = model.stream(
            [zoo.picture(NAME, 1)],
            "tell me",
            policy=policy,
            max_new_tokens=40,
            temperature=1.0,
            coupled=policy is CHAINS[2],
        )
        lead(request, 8)
        found.append(chains_of(request, chained))
    assert assert_same_trees(found) == 3


@pytest.mark.parametrize("policy", CHAINS)
def test_caches_behind_segments_are_fresh_prefills(zoo: Zoo, policy: Policy) -> None:
    model = zoo.model("gqa")
    request = model.stream([], "tell me", policy=policy, max_new_tokens=40)
    assert check_kv(model, request) >= 3, "no path was long enough: the test shows little"


def test_segments_on_the_built_in_family(builtin_bundle: Path) -> None:
    """Chains that are accepted far beyond the first segment."""
    model = edgespec_runtime.load(builtin_bundle, threads=1)
    prompt = "Describe this image in detail."
    given_: dict[str, Any] = {"max_new_tokens": 80, "temperature": 0.0}
    expected = model.generate(sample_image(), prompt, draft="none", **given_)
    for policy in CHAINS[::2]:
        found = [
            chains_of(model.stream(sample_image(), prompt, policy=policy, **given_), chained)
            for chained in (True, False)
        ]
        assert found[0][0] == list(expected.token_ids)
        assert assert_same_trees(found) == 3
        assert max(len(feedback.rows) for feedback in found[0][1]) > 2 * STEPS
