"""A model's tree and n-grams in one arena: closed, budgeted, and both parts told the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgespec_runtime
from edgespec.acceptance import Verdict
from edgespec.sampling import SamplingParams
from edgespec.sizing import Eagle2, Growth, Policy, Root, Setting, Sizer
from edgespec.tree import ROOT, Candidates, TokenTree
from edgespec_export.family import sample_image
from edgespec_runtime.drafts import NoDraft
from edgespec_runtime.drafts.cascade import CascadeDraft, merge
from edgespec_runtime.drafts.ngram import NgramDraft
from tests.support.compare import assert_same_tokens
from tests.support.fakes import (
    ScriptedDraft,
    ScriptedVerifier,
    chain,
    grown_by,
    toy_draft,
    toy_verifier,
)
from tests.test_lossless import (
    POLICIES,
    SAMPLING,
    check_kv,
    count_up,
    policies,
    run,
    samplings,
    tokens_of,
)
from tests.test_ngram import heard, paths
from tests.test_tree import arenas, grown

if TYPE_CHECKING:
    from tests.support.zoo import Zoo

HALF = math.log(0.5)
SURE = math.log(0.9)


# --- Merging --------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(arena=arenas(), extra=arenas(), nodes=st.integers(1, 12))
def test_merged_arenas_are_closed_unions(arena: Candidates, extra: Candidates, nodes: int) -> None:
    check_merge(arena, extra, nodes)


def check_merge(arena: Candidates, extra: Candidates, nodes: int) -> None:
    own = list(zip(arena.tokens, arena.parents, arena.depths, strict=True))
    before, added = paths(arena), paths(extra)
    merge(arena, extra)
    merged = list(zip(arena.tokens, arena.parents, arena.depths, strict=True))
    assert merged[: len(own)] == own, "the model's nodes keep their indices"
    after = paths(arena)
    assert len(after) == len(arena) and after.keys() == before.keys() | added.keys()
    assert all(after[path] >= before[path] - 1e-9 for path in before)
    for index, parent in enumerate(arena.parents):
        assert not math.isnan(arena.scores[index])
        if parent != ROOT:
            assert parent < index and arena.depths[index] == arena.depths[parent] + 1
            assert arena.scores[index] <= arena.scores[parent]
    TokenTree.select(arena, arena.ranked()[:nodes])  # refuses orphans and twins


def test_new_nodes_hang_below_the_matching_path() -> None:
    arena = grown([(ROOT, 5, SURE), (0, 6, SURE)])
    merge(arena, grown([(ROOT, 5, HALF), (0, 6, HALF), (1, 7, HALF), (2, 8, HALF)]))
    assert (arena.tokens, arena.parents) == ([5, 6, 7, 8], [ROOT, 0, 1, 2])
    assert arena.depths == [1, 2, 3, 4]
    expected = [SURE, 2 * SURE, 2 * SURE + HALF, 2 * SURE + 2 * HALF]
    assert arena.scores == pytest.approx(expected)


def test_the_better_estimate_lifts_a_path_and_all_below_it() -> None:
    arena = grown([(ROOT, 5, HALF), (ROOT, 6, HALF - 0.1), (1, 7, HALF)])
    merge(arena, grown([(ROOT, 6, SURE)]))
    assert arena.scores == pytest.approx([HALF, SURE, SURE + HALF])


def test_n_grams_do_not_shout_down_a_sure_model() -> None:
    """Beside a child of 0.9, another token has 0.1 at most, however sure the n-gram is of it."""
    arena = grown([(ROOT, 5, SURE)])
    merge(arena, grown([(ROOT, 6, SURE), (0, 7, SURE)]))
    assert arena.scores == pytest.approx([SURE, math.log(0.1), math.log(0.1) + SURE])
    # Where a model spreads itself, what it did not list is below the least of what it did.
    spread = grown([(ROOT, 5, math.log(0.3)), (ROOT, 6, math.log(0.2))])
    merge(spread, grown([(ROOT, 7, SURE)]))
    assert spread.scores[2] == pytest.approx(math.log(0.2))
    # Where it is silent, the n-gram speaks for itself.
    silent = Candidates()
    merge(silent, grown([(ROOT, 7, SURE)]))
    assert silent.scores == pytest.approx([SURE])


def test_a_certain_model_leaves_a_finite_rest() -> None:
    arena = grown([(ROOT, 5, 0.0)])
    merge(arena, grown([(ROOT, 6, SURE)]))
    assert -30 < arena.scores[1] < -10


# --- The drafter ----------------------------------------------------------------------------------


class Watch:
    """Counts accepted nodes that the model had not proposed, and checks what both parts hear."""

    def __init__(self, draft: CascadeDraft) -> None:
        self.foreign = 0
        self._draft = draft
        self._model_grow, self._commit = draft._model.grow, draft.commit
        draft._model.grow, draft.commit = self.grow, self.commit  # type: ignore[method-assign]
        self._own = 0

    def grow(self, sizer: Sizer, growth: Growth, root: Root) -> Candidates:
        candidates = self._model_grow(sizer, growth, root)
        self._own = len(candidates)
        return candidates

    def commit(self, chosen: Sequence[int], verdict: Verdict) -> None:
        self.foreign += sum(chosen[row - 1] >= self._own for row in verdict.rows)
        self._commit(chosen, verdict)


@settings(max_examples=100)
@given(
    prompt=st.lists(st.integers(0, 4), min_size=1, max_size=8),
    policy=policies,
    params=samplings,
    limit=st.integers(1, 20),
    disagree=st.sampled_from([0.0, 0.2, 0.6, 1.0]),
)
def test_toy_models_with_both_drafts_are_plain(
    prompt: list[int], policy: Policy, params: SamplingParams, limit: int, disagree: float
) -> None:
    check_toy(prompt, policy, params, limit, disagree)


def check_toy(
    prompt: list[int], policy: Policy, params: SamplingParams, limit: int, disagree: float
) -> int:
    """The text is that of plain decoding; returns how many n-gram nodes were accepted."""
    vocab, eos = 5, [4]
    plain = run(toy_verifier(prompt, vocab, params), NoDraft(), limit, eos=eos)
    draft = CascadeDraft(toy_draft(prompt, vocab, disagree=disagree), NgramDraft(prompt))
    watch = Watch(draft)
    rounds = run(toy_verifier(prompt, vocab, params), draft, limit, policy, eos)
    assert tokens_of(rounds) == tokens_of(plain)
    assert rounds[-1].finish_reason == plain[-1].finish_reason
    assert all(r.tree_nodes <= policy.max_nodes for r in rounds)
    return watch.foreign


def test_n_gram_nodes_are_accepted_beside_a_model_that_is_always_wrong() -> None:
    verifier = ScriptedVerifier(lambda path: 10 + len(path) % 6)
    model = ScriptedDraft(lambda path, left: chain([3], HALF)[:left])
    draft = CascadeDraft(model, NgramDraft([1, 2]))
    watch = Watch(draft)
    rounds = run(verifier, draft, 60, Eagle2(8, 6, 1))
    assert tokens_of(rounds) == [10 + i % 6 for i in range(60)]
    assert watch.foreign == sum(r.drafted for r in rounds) > 30
    # ScriptedDraft's own commit has checked that accepted indices and tokens belong together.
    assert model.committed == tokens_of(rounds)


def test_a_model_goes_on_where_n_grams_find_nothing() -> None:
    """Texts that count up never repeat: all that is accepted is the model's."""
    model = ScriptedDraft(lambda path, left: chain([100 + len(path) + i for i in range(3)])[:left])
    draft = CascadeDraft(model, NgramDraft([1, 2, 1, 2]))
    watch = Watch(draft)
    rounds = run(ScriptedVerifier(count_up), draft, 21, Eagle2(8, 6, 1))
    assert [r.drafted for r in rounds] == [0, 3, 3, 3, 3, 3]
    assert watch.foreign == 0


def test_both_parts_share_one_budget() -> None:
    model = ScriptedDraft(lambda path, left: chain([50, 51, 52, 53], HALF))
    draft = CascadeDraft(model, NgramDraft([7, 8, 9, 10, 11]))
    draft.begin(Verdict((), (7,)))
    policy = Eagle2(nodes=4, depth=4, top_k=1)
    candidates = grown_by(draft, policy, 9)
    assert len(candidates) == 8
    tree = TokenTree.select(candidates, policy.start(Setting()).choose(candidates))
    assert len(tree) == 4 and {50, 8} < set(tree.tokens)


@pytest.mark.parametrize("images", [0, 1])
@pytest.mark.parametrize("name", ["gqa", "siglip"])
def test_both_drafts_are_plain(zoo: Zoo, name: str, images: int) -> None:
    model = zoo.model(name)
    pictures = [zoo.picture(name, 3)] * images
    foreign = 0
    for i, sampling in enumerate(SAMPLING):
        prompt = "tell me more, tell me more " + "abc" * i
        given_: dict[str, Any] = {**sampling, "max_new_tokens": 30}
        plain = model.generate(pictures, prompt, draft="none", **given_)
        for policy in POLICIES:
            request = model.stream(pictures, prompt, draft="model+ngram", policy=policy, **given_)
            request._draft._ngram._corpus = heard(plain.token_ids)  # type: ignore[attr-defined]
            watch = Watch(request._draft)  # type: ignore[arg-type]
            tokens = [record.token for record in request]
            assert_same_tokens(model, pictures, prompt, given_, plain.token_ids, tokens)
            foreign += watch.foreign
    assert foreign > 20, "hardly any n-gram was accepted: the test shows nothing"


@pytest.mark.parametrize("policy", [POLICIES[0], POLICIES[2], POLICIES[4]])
def test_caches_are_fresh_prefills_whoever_proposed(zoo: Zoo, policy: str) -> None:
    check_caches(zoo, policy)


def check_caches(zoo: Zoo, policy: str) -> None:
    """The model's cache holds what was committed, n-grams' tokens among it."""
    model = zoo.model("gqa")
    plain = model.generate([], "tell me", draft="none", max_new_tokens=80)
    request = model.stream([], "tell me", policy=policy, draft="model+ngram", max_new_tokens=80)
    request._draft._ngram._corpus = heard(plain.token_ids)  # type: ignore[attr-defined]
    watch = Watch(request._draft)  # type: ignore[arg-type]
    check_kv(model, request)
    assert watch.foreign > 3, "hardly any n-gram was accepted: the test shows nothing"


def test_the_chain_graph_and_n_grams(builtin_bundle: Path) -> None:
    """The default policy, which drafts in one engine call, on the built-in family."""
    model = edgespec_runtime.load(builtin_bundle, threads=1)
    prompt = "Describe this image in detail."
    for sampling in ({"temperature": 0.0}, {"temperature": 1.0, "seed": 5}):
        given_: dict[str, Any] = {**sampling, "max_new_tokens": 100}
        texts = {
            draft: model.generate(sample_image(), prompt, draft=draft, **given_)
            for draft in ("none", "model", "ngram", "model+ngram")
        }
        for draft, text in texts.items():
            plain = texts["none"].token_ids
            assert_same_tokens(model, [sample_image()], prompt, given_, plain, text.token_ids)
            assert draft == "none" or text.stats.accepted_length > 1
    assert texts["model+ngram"].stats.accepted_length > 2
