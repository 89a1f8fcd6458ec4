"""Look-up drafts: index against scan, tree against every path, text against plain decoding."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgespec.acceptance import Verdict
from edgespec.errors import ConfigError
from edgespec.sampling import SamplingParams
from edgespec.sizing import Eagle2, Policy, RollingBestN, Root, Setting, Threshold
from edgespec.tree import ROOT, Candidates, TokenTree
from edgespec_runtime.defaults import DEFAULT_POLICY, LOOKUP_POLICY
from edgespec_runtime.drafts import NoDraft
from edgespec_runtime.drafts.continuations import WIDTH, Continuations
from edgespec_runtime.drafts.ngram import NgramDraft
from tests.support.compare import assert_same_tokens
from tests.support.fakes import ScriptedVerifier, grown_by, toy_verifier
from tests.test_lossless import POLICIES, SAMPLING, policies, run, samplings, tokens_of

if TYPE_CHECKING:
    from tests.support.zoo import Zoo

IMAGE = 0
WIDE = Eagle2(nodes=30, depth=6, top_k=8)
texts = st.lists(st.integers(IMAGE, 4), max_size=30)  # token IMAGE now and then


# --- The index ------------------------------------------------------------------------------------


def segments(history: Sequence[Sequence[int]]) -> list[list[int]]:
    """What pictures and the ends of texts leave in one piece."""
    pieces: list[list[int]] = []
    for text in history:
        pieces.append([])
        for token in text:
            if token == IMAGE:
                pieces.append([])
            else:
                pieces[-1].append(token)
    return pieces


def scan(history: Sequence[Sequence[int]], context: Sequence[int], max_n: int) -> dict[int, float]:
    """The estimate as its docstring states it, by reading the whole history again."""
    found: dict[int, float] = {}
    for n in range(1, min(max_n, len(context)) + 1):
        suffix = list(context[len(context) - n :])
        counts = Counter(
            piece[i + n]
            for piece in segments(history)
            for i in range(len(piece) - n)
            if piece[i : i + n] == suffix
        )
        if not counts:
            break
        total = sum(counts.values()) + len(counts)
        tokens = found.keys() | counts.keys()
        found = {t: (counts[t] + len(counts) * found.get(t, 0.0)) / total for t in tokens}
    return found


def learnt(history: Sequence[Sequence[int]], max_n: int = 4) -> Continuations:
    index = Continuations(max_n, IMAGE)
    for text in history:
        index.cut()
        index.learn(text)
    return index


@settings(max_examples=150)
@given(history=st.lists(texts, max_size=3), ask=texts, max_n=st.integers(1, 5))
def test_index_is_a_scan_of_the_history(
    history: list[list[int]], ask: list[int], max_n: int
) -> None:
    index = learnt(history, max_n)
    for context in (index.context, tuple(ask[-max_n:])):
        expected = scan(history, context, max_n)
        predicted = dict(index.predict(context, 5))
        assert predicted == pytest.approx(expected)
        ranked = [p for _, p in index.predict(context, 5)]
        assert ranked == sorted(ranked, reverse=True) and sum(ranked) < 1
        for count in (1, 2):
            best = index.predict(context, count)
            assert len(best) == min(count, len(expected))
            assert dict(best) == pytest.approx({t: expected[t] for t, _ in best})


@given(text=texts, cuts=st.lists(st.integers(0, 30), max_size=4))
def test_learning_piece_by_piece_is_learning_at_once(text: list[int], cuts: list[int]) -> None:
    index = Continuations(4, IMAGE)
    places = [0, *sorted(cuts), len(text)]
    for start, end in zip(places, places[1:], strict=False):
        index.learn(text[start:end])
    whole = learnt([text])
    assert index.context == whole.context
    assert index.predict(index.context, 5) == whole.predict(whole.context, 5)


def test_a_longer_match_weighs_more() -> None:
    """Behind one single occurrence: 1/2, 3/4, 7/8, ... for matches of 1, 2, 3, ... tokens."""
    index = learnt([[1, 2, 3, 4, 9]])
    matches = [(4,), (3, 4), (2, 3, 4), (1, 2, 3, 4)]
    assert [index.predict(context, 1) for context in matches] == [
        [(9, 1 - 0.5 ** len(context))] for context in matches
    ]


def test_among_equals_the_latest_comes_first() -> None:
    index = learnt([[1, 5, 1, 6, 1, 7, 1]])
    assert [token for token, _ in index.predict((1,), 3)] == [7, 6, 5]
    index.learn([5, 1])
    assert [token for token, _ in index.predict((1,), 3)] == [5, 7, 6]


def test_a_frequent_word_costs_no_more_than_a_rare_one() -> None:
    index = Continuations(4)
    for follower in range(10, 1000):
        index.learn([1, follower])
    assert [token for token, _ in index.predict((1,), 3)] == [999, 998, 997]
    assert len(index.predict((1,), 100)) == WIDTH


# --- The drafter ----------------------------------------------------------------------------------


def begun(prompt: Sequence[int], first: int, **given_: Any) -> NgramDraft:
    draft = NgramDraft(prompt, image_token_id=IMAGE, **given_)
    draft.begin(Verdict((), (first,)))
    return draft


def paths(candidates: Candidates) -> dict[tuple[int, ...], float]:
    found: list[tuple[int, ...]] = []
    for token, parent in zip(candidates.tokens, candidates.parents, strict=True):
        found.append((*(found[parent] if parent != ROOT else ()), token))
    return dict(zip(found, candidates.scores, strict=True))


def every_path(
    history: Sequence[int], levels: int, top_k: int, max_n: int = 4
) -> dict[tuple[int, ...], float]:
    """All paths down to ``levels`` with their log-probabilities, each asked for by a scan."""
    open_paths: dict[tuple[int, ...], float] = {(): 0.0}
    found: dict[tuple[int, ...], float] = {}
    start = segments([history])[-1]
    for _ in range(levels):
        deeper = {}
        for path, score in open_paths.items():
            estimates = scan([history], [*start, *path][-max_n:], max_n)
            for token, p in sorted(estimates.items(), key=lambda item: -item[1])[:top_k]:
                deeper[path + (token,)] = score + math.log(p)
        found |= deeper
        open_paths = deeper
    return found


@settings(max_examples=60)
@given(
    prompt=texts,
    first=st.integers(1, 4),
    nodes=st.integers(1, 12),
    depth=st.integers(1, 4),
    left=st.integers(0, 5),
)
def test_grown_nodes_are_the_best_of_every_path(
    prompt: list[int], first: int, nodes: int, depth: int, left: int
) -> None:
    policy = Eagle2(nodes, depth, top_k=5)
    candidates = grown_by(begun(prompt, first), policy, left)
    expected = every_path([*prompt, first], min(depth, left), top_k=5)
    best = sorted(expected.values(), reverse=True)[:nodes]
    assert candidates.scores == pytest.approx(best)
    assert all(expected[path] == pytest.approx(score) for path, score in paths(candidates).items())


@settings(max_examples=60)
@given(prompt=texts, first=st.integers(1, 4), floor=st.sampled_from([0.2, 0.45, 0.6]))
def test_paths_below_the_floor_are_not_proposed(
    prompt: list[int], first: int, floor: float
) -> None:
    policy = Threshold(depth=4, min_path=floor, top_k=5, width=3, nodes=12)
    candidates = grown_by(begun(prompt, first), policy, 4)
    expected = every_path([*prompt, first], 4, top_k=5)
    likely = [score for score in expected.values() if score > math.log(floor) - 1e-9]
    assert candidates.scores == pytest.approx(sorted(likely, reverse=True)[:12])
    everything = begun(prompt, first)
    everything.prepare()
    found = everything.paths(policy, Root(4, 0, 0, prepared=True, emitted=1))
    sizer = policy.start(Setting())
    assert sizer.choose(found) == sizer.choose(candidates)


@settings(max_examples=100)
@given(prompt=texts, first=st.integers(1, 4), policy=policies, left=st.integers(0, 6))
def test_candidates_obey_the_policy(
    prompt: list[int], first: int, policy: Policy, left: int
) -> None:
    candidates = grown_by(begun(prompt, first), policy, left)
    assert len(candidates) <= policy.max_nodes
    assert all(depth <= min(policy.levels, left) for depth in candidates.depths)
    assert all(count <= policy.top_k for count in Counter(candidates.parents).values())
    assert candidates.scores == sorted(candidates.scores, reverse=True)
    assert all(parent < index for index, parent in enumerate(candidates.parents))
    chosen = policy.start(Setting()).choose(candidates)
    TokenTree.select(candidates, chosen)  # refuses orphans and twins


def test_nothing_is_proposed_where_nothing_matches() -> None:
    draft = begun([1, 2, 3], 4)
    assert len(grown_by(draft, WIDE, 10)) == 0
    draft.commit([], Verdict((), (2,)))
    assert grown_by(draft, WIDE, 10).tokens[0] == 3
    assert len(grown_by(draft, WIDE, 0)) == 0


def test_tokens_committed_before_the_prompt_is_taken_in_are_learnt() -> None:
    draft = begun([], 1)
    draft.commit([], Verdict((), (2, 3, 4, 1)))
    assert paths(grown_by(draft, Eagle2(3, 3, 1), 10)).keys() == {(2,), (2, 3), (2, 3, 4)}


def test_committed_tokens_are_learnt() -> None:
    draft = begun([], 1)
    assert len(grown_by(draft, WIDE, 10)) == 0
    draft.commit([], Verdict((), (2, 3, 4, 1)))
    assert paths(grown_by(draft, Eagle2(3, 3, 1), 10)).keys() == {(2,), (2, 3), (2, 3, 4)}


def test_a_corpus_is_looked_up_but_not_across_its_texts() -> None:
    corpus = [[7, 8, 9], [1, 2]]
    assert grown_by(begun([5], 7, corpus=corpus), WIDE, 9).tokens == [8, 9]
    assert len(grown_by(begun([5], 9, corpus=corpus), WIDE, 9)) == 0  # a text ends with 9
    assert len(grown_by(begun([5], 2, corpus=corpus), WIDE, 9)) == 0  # and one before the prompt


def test_pictures_are_neither_proposed_nor_matched_across() -> None:
    picture = [IMAGE] * 5
    # Behind 3 comes a picture, and behind the picture 4: neither follows 3.
    draft = begun([1, 2, 3, *picture, 4, 5, 6], 3)
    assert len(grown_by(draft, WIDE, 9)) == 0
    # 2 is followed by 3; then the picture ends what can be copied.
    assert grown_by(begun([1, 2, 3, *picture, 4, 5, 6], 2), WIDE, 9).tokens == [3]
    # A picture right before the text: nothing before it is a context.
    assert len(grown_by(begun([1, 2, *picture], 1), WIDE, 9)) == 1
    # Even a target that says the placeholder itself does not get it proposed.
    draft.commit([], Verdict((), (4, IMAGE)))
    assert len(grown_by(draft, WIDE, 9)) == 0
    draft.commit([], Verdict((), (4,)))
    assert grown_by(draft, Eagle2(2, 2, 4), 9).tokens == [5, 6]


@settings(max_examples=60)
@given(prompt=texts, first=st.integers(1, 4), policy=policies)
def test_the_placeholder_is_never_proposed(prompt: list[int], first: int, policy: Policy) -> None:
    assert IMAGE not in grown_by(begun(prompt, first), policy, 9).tokens


def test_suffixes_have_at_least_one_token() -> None:
    with pytest.raises(ConfigError, match="max_n is 0"):
        NgramDraft([1], max_n=0)


# --- The loop -------------------------------------------------------------------------------------


@settings(max_examples=80)
@given(
    prompt=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    policy=policies,
    params=samplings,
    limit=st.integers(1, 20),
)
def test_toy_models_with_look_up_are_plain(
    prompt: list[int], policy: Policy, params: SamplingParams, limit: int
) -> None:
    check_toy(prompt, policy, params, limit)


def check_toy(prompt: list[int], policy: Policy, params: SamplingParams, limit: int) -> int:
    """The text is that of plain decoding; returns how many tokens were drafted."""
    vocab, eos = 5, [4]
    plain = run(toy_verifier(prompt, vocab, params), NoDraft(), limit, eos=eos)
    draft = NgramDraft(prompt, image_token_id=IMAGE)
    rounds = run(toy_verifier(prompt, vocab, params), draft, limit, policy, eos)
    assert tokens_of(rounds) == tokens_of(plain)
    assert rounds[-1].finish_reason == plain[-1].finish_reason
    assert all(r.tree_nodes <= policy.max_nodes for r in rounds)
    return sum(r.drafted for r in rounds)


@pytest.mark.parametrize("policy", [Eagle2(8, 8, 1), Eagle2(8, 4, 2), RollingBestN(8, 4, 2)])
def test_a_text_that_repeats_itself_is_accepted(policy: Policy) -> None:
    verifier = ScriptedVerifier(lambda path: 10 + len(path) % 6)
    rounds = run(verifier, NgramDraft([1, 2, 3]), 60, policy)
    assert tokens_of(rounds) == [10 + i % 6 for i in range(60)]
    assert [len(r.tokens) for r in rounds[:7]] == [1] * 7, "nothing to look up yet"
    later = [r for r in rounds[9:] if r.finish_reason is None]
    assert all(r.drafted == min(policy.levels, policy.max_nodes) for r in later)


def test_a_prompt_that_is_read_out_is_accepted() -> None:
    said = list(range(100, 130))
    verifier = ScriptedVerifier(lambda path: (said + [5] * 99)[len(path)])
    rounds = run(verifier, NgramDraft([1, *said, 2]), 30, Eagle2(8, 8, 1))
    assert tokens_of(rounds) == said
    assert [len(r.tokens) for r in rounds] == [1, 9, 9, 9, 2]


def heard(text: Sequence[int]) -> list[list[int]]:
    """A corpus in which a look-up finds most of ``text``: every seventh token is another one."""
    return [[token if i % 7 else token ^ 1 for i, token in enumerate(text)]]


@pytest.mark.parametrize("bundle", [("gqa", "none"), ("qwen2", "shared")])
@pytest.mark.parametrize("images", [0, 1])
def test_look_up_is_plain(zoo: Zoo, bundle: tuple[str, str], images: int) -> None:
    """On exported models, one of them without a draft in its bundle."""
    model = zoo.model(*bundle)
    pictures = [zoo.picture(bundle[0], 3)] * images
    for i, sampling in enumerate(SAMPLING):
        prompt = "tell me more, tell me more " + "abc" * i
        given_: dict[str, Any] = {**sampling, "max_new_tokens": 30}
        plain = model.generate(pictures, prompt, draft="none", **given_)
        for policy in POLICIES:
            request = model.stream(pictures, prompt, draft="ngram", policy=policy, **given_)
            request._draft._corpus = heard(plain.token_ids)  # type: ignore[attr-defined]
            tokens = [record.token for record in request]
            assert_same_tokens(model, pictures, prompt, given_, plain.token_ids, tokens)
            assert request.stats.accepted_length > 1.4, "too little was accepted to show anything"


def test_a_name_that_is_none(zoo: Zoo) -> None:
    model = zoo.model("gqa", "none")
    with pytest.raises(ConfigError, match="'ngrams'; did you mean 'ngram'.* auto, none, model"):
        model.stream([], "hello", draft="ngrams")
    for name in ("model", "model+ngram"):
        with pytest.raises(ConfigError, match="holds no draft"):
            model.stream([], "hello", draft=name)


def test_alone_it_drafts_what_the_match_vouches_for(zoo: Zoo) -> None:
    """Without a profile; beside a model the model's own default holds."""
    model = zoo.model("gqa", "shared")
    assert model.stream([], "abc abc", draft="ngram").sizer.policy == LOOKUP_POLICY
    assert model.stream([], "abc abc", draft="model+ngram").sizer.policy == DEFAULT_POLICY
