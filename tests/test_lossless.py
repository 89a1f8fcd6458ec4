"""Losslessness of the loop: scripted drafts, the tree and KV oracles, speculative == plain."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgespec.acceptance import StopRules
from edgespec.errors import EngineError
from edgespec.sampling import SamplingParams
from edgespec.sizing import Eagle2, Policy, RollingBestN, Setting, parse_policy
from edgespec.tree import ROOT, Candidates, TokenTree
from edgespec_runtime.decoder import Round, decode
from edgespec_runtime.drafts import NoDraft
from edgespec_runtime.drafts.coupling import Coupling
from edgespec_runtime.prefill import causal_mask, prefill
from tests.support.compare import assert_same_tokens, host_rows
from tests.support.fakes import (
    ScriptedDraft,
    ScriptedVerifier,
    ToySession,
    chain,
    random_tree,
    toy_draft,
    toy_table,
    toy_verifier,
)
from tests.support.sizers import Pausing, drafted
from tests.support.zoo import LOWERINGS

if TYPE_CHECKING:
    from edgespec_runtime import Model, Record
    from edgespec_runtime.engines import StepSession
    from edgespec_runtime.request import Request
    from tests.support.zoo import Zoo

POLICIES = [
    "eagle2:nodes=12,depth=4,top_k=3",
    "eagle2:nodes=1,depth=1,top_k=1",
    "eagle2:nodes=6,depth=6,top_k=1",
    "eagle2:nodes=30,depth=5,top_k=4,min_prob=0.02",
    "rolling:nodes=10,steps=4,top_k=3,width=4",
    "rolling:nodes=16,steps=5,top_k=4,width=8,min_prob=0.01",
]
SAMPLING: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.3},
    {"temperature": 0.7, "top_p": 0.9, "seed": 1},
    {"temperature": 1.0, "top_k": 8, "seed": 2},
    {"temperature": 1.0, "repetition_penalty": 1.2, "min_p": 0.02, "seed": 3},
    {"temperature": 1.5, "seed": 4},
    {"temperature": 1.5, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.1, "seed": 5},
]


# --- Scripted targets and drafts: what every round must bring -------------------------------------


def run(
    verifier: Any, draft: Any, limit: int, policy: Policy | None = None, eos: Sequence[int] = ()
) -> list[Round]:
    sizer = (policy or Eagle2()).start(Setting())
    return list(decode(verifier, draft, sizer, StopRules(eos, limit)))


def tokens_of(rounds: Sequence[Round]) -> list[int]:
    return [token for r in rounds for token in r.tokens]


def count_up(path: Sequence[int]) -> int:
    """A target that counts: 100, 101, 102, ..."""
    return 100 + len(path)


def test_draft_never_accepted() -> None:
    draft = ScriptedDraft(lambda path, left: chain([1, 2, 3][:left]))
    rounds = run(ScriptedVerifier(count_up), draft, 6)
    assert [r.tokens for r in rounds] == [(100 + i,) for i in range(6)]
    assert [r.drafted for r in rounds] == [0] * 6
    assert [r.tree_nodes for r in rounds] == [0, 3, 3, 2, 1, 0]
    assert draft.accepted == [()] * 5


def test_draft_always_accepted() -> None:
    draft = ScriptedDraft(
        lambda path, left: chain([100 + len(path) + i for i in range(min(3, left))])
    )
    rounds = run(ScriptedVerifier(count_up), draft, 10)
    assert [len(r.tokens) for r in rounds] == [1, 4, 4, 1]
    assert [r.drafted for r in rounds] == [0, 3, 3, 0]
    assert tokens_of(rounds) == list(range(100, 110))
    assert [r.finish_reason for r in rounds] == [None, None, None, "length"]
    assert draft.depths_left == [8, 4], "where nothing can be accepted, nothing is asked"


def test_draft_sometimes_accepted() -> None:
    def propose(path: Sequence[int], left: int) -> list[tuple[int, int, float]]:
        right = 100 + len(path)
        return chain([right, right + 1 if len(path) % 3 == 0 else 5, right + 2][:left])

    rounds = run(ScriptedVerifier(count_up), ScriptedDraft(propose), 12)
    # 1 committed: one guess holds (2 tokens); 3 committed: all three hold (4 tokens); and so on.
    assert [len(r.tokens) for r in rounds] == [1, 2, 4, 2, 3]
    assert [r.drafted for r in rounds] == [0, 1, 3, 1, 2]
    assert tokens_of(rounds) == list(range(100, 112))


def test_second_child_accepted() -> None:
    def propose(path: Sequence[int], left: int) -> list[tuple[int, int, float]]:
        right = 100 + len(path)
        return [
            (ROOT, 7, -0.1),
            (ROOT, right, -1.0),
            (0, 8, -0.1),
            (1, 9, -0.1),
            (1, right + 1, -0.5),
        ]

    draft, verifier = ScriptedDraft(propose), ScriptedVerifier(count_up)
    rounds = run(verifier, draft, 7)
    assert [r.tokens for r in rounds[1:]] == [(101, 102, 103), (104, 105, 106)]
    assert draft.accepted == [(1, 4), (1, 4)]
    # Tree order is by score: 7, 8, right, 9, right + 1.
    assert verifier.trees[0].tokens == (7, 8, 101, 9, 102)
    assert verifier.trees[0].parents == (0, 1, 0, 3, 3)


@pytest.mark.parametrize("policy", [Eagle2(nodes=1), RollingBestN(nodes=1)])
def test_budget_of_one_node(policy: Policy) -> None:
    def propose(path: Sequence[int], left: int) -> list[tuple[int, int, float]]:
        right = 100 + len(path)
        return [(ROOT, right, -0.2), (ROOT, 3, -2.0), (0, right + 1, -0.1)]

    rounds = run(ScriptedVerifier(count_up), ScriptedDraft(propose), 9, policy)
    assert [r.tree_nodes for r in rounds] == [0, 1, 1, 1, 1]
    assert [len(r.tokens) for r in rounds] == [1, 2, 2, 2, 2]


@pytest.mark.parametrize("at", range(8))
def test_end_of_sequence_inside_the_path(at: int) -> None:
    draft = ScriptedDraft(lambda path, left: chain([100 + len(path) + i for i in range(4)]))
    rounds = run(ScriptedVerifier(count_up), draft, 50, eos=[100 + at])
    assert tokens_of(rounds) == list(range(100, 101 + at))
    assert rounds[-1].finish_reason == "eos"
    assert all(r.finish_reason is None for r in rounds[:-1])
    assert rounds[-1].drafted <= len(rounds[-1].tokens)
    # The last token of a cut round came from the draft; a whole round ends in the bonus.
    expected = [0, 1, 2, 3, 4, 4, 1, 2][at]
    assert rounds[-1].drafted == expected


@pytest.mark.parametrize("limit", range(1, 12))
def test_length_limit_inside_the_path(limit: int) -> None:
    """Even a draft that ignores the depth it was given cannot make the text too long."""
    draft = ScriptedDraft(lambda path, left: chain([100 + len(path) + i for i in range(6)]))
    rounds = run(ScriptedVerifier(count_up), draft, limit)
    assert tokens_of(rounds) == list(range(100, 100 + limit))
    assert rounds[-1].finish_reason == "length"
    assert draft.depths_left == list(range(limit - 2, 0, -7))


def test_a_first_token_that_ends_the_text_starts_no_draft() -> None:
    draft = ScriptedDraft(lambda path, left: chain([1]))
    assert tokens_of(run(ScriptedVerifier(count_up), draft, 5, eos=[100])) == [100]
    assert draft.committed == [] and draft.depths_left == []


def test_no_draft_is_the_same_loop() -> None:
    rounds = run(ScriptedVerifier(count_up), NoDraft(), 4)
    assert [r.tokens for r in rounds] == [(100,), (101,), (102,), (103,)]
    assert {r.tree_nodes for r in rounds} == {0}


# --- The real verifier and draft over toy sessions, which see every wrong bit ---------------------

policies = st.one_of(
    st.builds(
        Eagle2,
        nodes=st.integers(1, 12),
        depth=st.integers(1, 5),
        top_k=st.integers(1, 4),
        min_prob=st.sampled_from([0.0, 0.05]),
    ),
    st.builds(
        RollingBestN,
        nodes=st.integers(1, 12),
        steps=st.integers(1, 4),
        top_k=st.integers(1, 4),
        width=st.integers(1, 6),
    ),
)
samplings = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.7, 1.0, 2.0]),
    top_k=st.sampled_from([0, 3]),
    top_p=st.sampled_from([1.0, 0.8]),
    repetition_penalty=st.sampled_from([1.0, 1.5]),
    seed=st.integers(0, 2**64 - 1),
)


@settings(max_examples=120)
@given(
    prompt=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    policy=policies,
    params=samplings,
    limit=st.integers(1, 20),
    disagree=st.sampled_from([0.0, 0.2, 0.6, 1.0]),
)
def test_toy_models_speculative_is_plain(
    prompt: list[int], policy: Policy, params: SamplingParams, limit: int, disagree: float
) -> None:
    check_toy(prompt, policy, params, limit, disagree)


def check_toy(
    prompt: list[int], policy: Policy, params: SamplingParams, limit: int, disagree: float
) -> None:
    vocab, eos = 10, [9]
    plain = run(toy_verifier(prompt, vocab, params), NoDraft(), limit, eos=eos)
    draft = toy_draft(prompt, vocab, disagree=disagree)
    rounds = run(toy_verifier(prompt, vocab, params), draft, limit, policy, eos)
    assert tokens_of(rounds) == tokens_of(plain)
    assert rounds[-1].finish_reason == plain[-1].finish_reason
    assert all(r.tree_nodes <= policy.max_nodes for r in rounds)


@pytest.mark.parametrize("policy", [Eagle2(8, 4, 2), RollingBestN(8, 4, 2, 4)])
def test_a_draft_that_is_the_target_is_never_refused(policy: Policy) -> None:
    """The draft's own cache, mask and positions: a wrong bit there makes it guess wrong."""
    params = SamplingParams()
    draft = toy_draft([1, 2, 3], 10, disagree=0.0)
    rounds = run(toy_verifier([1, 2, 3], 10, params), draft, 40, policy)
    assert all(r.drafted == min(1, r.tree_nodes) or r.drafted > 1 for r in rounds[1:])
    assert sum(r.drafted for r in rounds) >= 20


@pytest.mark.parametrize("chain_steps", [0, 2])
@pytest.mark.parametrize(
    "policy",
    [Eagle2(9, 7, 1), Eagle2(9, 4, 3), RollingBestN(9, 5, 3, 4), Pausing(Eagle2(9, 7, 1), 1, 3)],
)
def test_a_coupled_draft_that_is_the_target_ranks_its_draw_first(
    policy: Policy, chain_steps: int
) -> None:
    """At every node that it expands: noise of the right position, at the right temperature."""
    prompt, vocab, compared = [1, 2, 3], 10, 0
    for seed in range(3):
        params = SamplingParams(temperature=1.7, seed=seed)
        verifier = toy_verifier(prompt, vocab, params)
        coupling = Coupling(verifier._sampler.noise, params.temperature)
        draft = toy_draft(prompt, vocab, disagree=0.0, chain_steps=chain_steps, coupling=coupling)
        rounds = run(verifier, draft, 20, policy)
        said = tokens_of(rounds)
        assert said == tokens_of(run(toy_verifier(prompt, vocab, params), NoDraft(), 20))
        for feedback in drafted(rounds):
            committed = [*prompt, *said[: feedback.root.emitted]]
            for path, best in best_children(feedback.candidates).items():
                assert best == drawn_after([*committed, *path], vocab, params)
                compared += 1
    assert compared > 30


def best_children(candidates: Candidates) -> dict[tuple[int, ...], int]:
    """Of every expanded node, by its path: the first of its children, which is the best."""
    paths: dict[int, tuple[int, ...]] = {ROOT: ()}
    found: dict[tuple[int, ...], int] = {}
    for index, (token, parent) in enumerate(
        zip(candidates.tokens, candidates.parents, strict=True)
    ):
        paths[index] = (*paths[parent], token)
        found.setdefault(paths[parent], token)
    return found


def drawn_after(tokens: Sequence[int], vocab: int, params: SamplingParams) -> int:
    """What the toy target draws behind ``tokens``, by one plain forward."""
    fresh = toy_verifier(tokens, vocab, params)
    return fresh.begin().tokens[0]


def test_causal_mask() -> None:
    expected = [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    np.testing.assert_array_equal(causal_mask(2, 3), np.array(expected, dtype=np.bool_))


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), nodes=st.integers(0, 12))
def test_toy_tree_forward_is_the_forward_over_the_path(seed: int, nodes: int) -> None:
    rng = np.random.default_rng(seed)
    check_tree_forward(lambda: ToySession(10, 7), toy_table(10), rng, nodes, tolerance=0.0)


# --- Oracles on exported graphs -------------------------------------------------------------------


def tree_logits(session: StepSession, table: Any, root: int, tree: TokenTree) -> Any:
    """Logits of every row, as LocalVerifier asks for them; the cache is left as it was."""
    cached, rows = session.cache.length, len(tree) + 1
    mask = np.ones((rows, cached + rows), dtype=np.bool_)
    tree.write_mask(mask[:, cached:])
    positions = [cached, *(cached + depth for depth in tree.depths)]
    logits = session.step(table[[root, *tree.tokens]], positions, mask)[0].copy()
    session.cache.commit([])
    return logits


def path_logits(session: StepSession, table: Any, tokens: Sequence[int]) -> Any:
    """Logits after ``tokens``, by one plain causal forward."""
    cached, new = session.cache.length, len(tokens)
    positions = range(cached, cached + new)
    logits = session.step(table[list(tokens)], positions, causal_mask(cached, new), True)[0]
    session.cache.commit([])
    return logits[0].copy()


def check_tree_forward(
    open_session: Any, table: Any, rng: np.random.Generator, nodes: int, tolerance: float
) -> None:
    vocab = len(table)
    prompt = rng.integers(vocab, size=int(rng.integers(1, 12)))
    session = open_session()
    prefill(session, table[prompt])
    root = int(rng.integers(vocab))
    tree = random_tree(rng, nodes, vocab)
    logits = tree_logits(session, table, root, tree)
    for row in range(nodes + 1):
        alone = path_logits(session, table, [root, *tree.path(row)])
        assert np.abs(logits[row] - alone).max() <= tolerance, f"row {row} of {tree}"


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("name", ["mha", "gqa", "qwen2", "tied"])
def test_tree_forward_oracle(zoo: Zoo, name: str, lowering: str) -> None:
    model = zoo.model(name, "shared", lowering)
    for role in ("target", "draft"):
        step, table = model.steps[role], model.tables[role]
        for seed, nodes in enumerate((0, 1, 2, 5, 9, 17, 30)):
            rng = np.random.default_rng([seed, len(name)])
            check_tree_forward(lambda: step.open(80), table, rng, nodes, tolerance=2e-4)  # noqa: B023


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_order_of_siblings_does_not_matter(zoo: Zoo, lowering: str) -> None:
    model = zoo.model("gqa", "shared", lowering)
    table = model.tables["target"]
    session = model.steps["target"].open(100)
    rng = np.random.default_rng(11)
    prefill(session, table[rng.integers(len(table), size=20)])
    for nodes in (4, 8, 20):
        tree = random_tree(rng, nodes, len(table))
        # Any order that puts parents first: sort by depth, shuffled within a depth.
        order = sorted(range(nodes), key=lambda i: (tree.depths[i], rng.random()))
        rows = {0: 0, **{i + 1: at + 1 for at, i in enumerate(order)}}
        other = TokenTree.build(
            [tree.tokens[i] for i in order], [rows[tree.parents[i]] for i in order]
        )
        first = tree_logits(session, table, 5, tree)
        second = tree_logits(session, table, 5, other)
        assert np.abs(first - second[[rows[r] for r in range(nodes + 1)]]).max() < 1e-4


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_draft_scores_are_log_probabilities(zoo: Zoo, lowering: str) -> None:
    check_draft_scores(zoo.model("gqa", "shared", lowering))


def check_draft_scores(model: Model) -> None:
    """Scores that add up along a path and rank paths: log-softmax, best first, in float32."""
    table = model.tables["draft"]
    outputs = ("logits", "topk_logprobs", "topk_ids")
    session = model.steps["draft"].open(40, outputs)
    tokens = np.random.default_rng(1).integers(len(table), size=30)
    logits, scores, ids = session.step(table[tokens], range(30), causal_mask(0, 30))
    wide = logits.astype(np.float64)
    top = wide.max(axis=-1, keepdims=True)
    logprobs = wide - top - np.log(np.exp(wide - top).sum(axis=-1, keepdims=True))
    assert scores.dtype == np.float32
    assert np.abs(scores - np.take_along_axis(logprobs, ids, axis=-1)).max() < 1e-4
    best = np.sort(logprobs, axis=-1)[:, ::-1][:, : scores.shape[1]]
    assert np.abs(scores - best).max() < 1e-4


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("policy", [POLICIES[0], POLICIES[4]])
@pytest.mark.parametrize(
    ("name", "draft", "images"), [("gqa", "shared", 0), ("gqa", "shared", 1), ("mha", "own", 2)]
)
def test_kv_cache_is_a_fresh_prefill(
    zoo: Zoo, name: str, draft: str, images: int, policy: str, lowering: str
) -> None:
    model = zoo.model(name, draft, lowering)
    pictures = [zoo.picture(name, i) for i in range(images)]
    request = model.stream(pictures, "tell me", policy=policy, max_new_tokens=30)
    deepest = check_kv(model, request)
    assert deepest >= (1 if images else 3), "no path was long enough: the test shows little"


def check_kv(model: Model, request: Any, tolerance: float = 2e-4) -> int:
    """After every round both caches hold what prefilling the committed tokens would give.

    Returns the length of the longest accepted path.
    """
    committed: list[int] = []
    deepest = 0
    for outcome in request._rounds:
        committed += outcome.tokens
        deepest = max(deepest, outcome.drafted)
        if outcome.finish_reason is not None:  # the last tokens may be cut off the text alone
            break
        sides: list[tuple[str, Any, int | None]] = [
            ("target", request._verifier, len(committed) - 1)
        ]
        if len(committed) > 1:
            # Beside n-grams, the model is a part of the drafter.
            sides.append(("draft", getattr(request._draft, "_model", request._draft), None))
        for role, side, wanted in sides:
            prompt, session = side._prompt(), side._session
            length = session.cache.length
            assert session.cache.pending == 0
            if role == "draft" and not side.prepared:
                assert length == 0 and side._unseen == committed
                continue
            known = length - len(prompt)
            assert wanted is None or known == wanted
            unseen = committed[known:]
            assert role == "target" or side._unseen == unseen
            table = model.tables[role]
            fresh = model.steps[role].open(length, session.outputs)
            prefill(fresh, np.concatenate([prompt, table[committed[:known]]]))
            ours = host_rows(session.cache)[..., :length, :]
            theirs = host_rows(fresh.cache)[..., :length, :]
            assert np.abs(ours - theirs).max() < tolerance, f"{role} cache after {committed}"
    return deepest


# --- Speculative == plain, token for token, on exported models ------------------------------------


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("name", ["gqa", "qwen2", "small-vocab", "siglip"])
@pytest.mark.parametrize("images", [0, 1])
def test_speculative_is_plain(zoo: Zoo, name: str, images: int, lowering: str) -> None:
    model = zoo.model(name, "shared", lowering)
    pictures = [zoo.picture(name, 3)] * images
    accepted = 0.0
    for i, sampling in enumerate(SAMPLING):
        prompt = "tell me more " + "abc" * i
        given_: dict[str, Any] = {**sampling, "max_new_tokens": 30}
        plain = model.generate(pictures, prompt, draft="none", **given_)
        for policy in POLICIES:
            spec = model.generate(pictures, prompt, draft="model", policy=policy, **given_)
            assert_same_tokens(model, pictures, prompt, given_, plain.token_ids, spec.token_ids)
            if spec.token_ids == plain.token_ids:
                assert (spec.text, spec.finish_reason) == (plain.text, plain.finish_reason)
            accepted = max(accepted, spec.stats.accepted_length)
    assert accepted > 1.2, "hardly anything was accepted: the test shows nothing"


def test_seed_decides_the_text(zoo: Zoo) -> None:
    model = zoo.model("gqa")
    texts = {
        model.generate([], "hello", temperature=1.5, seed=s, max_new_tokens=12).token_ids
        for s in range(6)
    }
    assert len(texts) == 6
    again = model.generate([], "hello", temperature=1.5, seed=3, max_new_tokens=12).token_ids
    assert again in texts


@pytest.mark.parametrize("sampling", [SAMPLING[0], SAMPLING[5]])
@pytest.mark.parametrize("limit", range(1, 11))
def test_max_new_tokens_is_exact(zoo: Zoo, limit: int, sampling: dict[str, Any]) -> None:
    model = zoo.model("gqa")
    whole = model.generate([], "go on", draft="none", max_new_tokens=10, **sampling)
    assert len(whole.token_ids) == 10
    for draft in ("none", "auto"):
        short = model.generate([], "go on", draft=draft, max_new_tokens=limit, **sampling)
        assert short.token_ids == whole.token_ids[:limit]
        assert short.finish_reason == "length"


def with_eos(model: Model, *ids: int) -> None:
    """Makes these the model's end-of-sequence tokens (a model of the test's own)."""
    generation = {**model.manifest.generation, "eos_token_ids": list(ids)}
    model.manifest = dataclasses.replace(model.manifest, generation=generation)


@pytest.mark.parametrize("sampling", [SAMPLING[0], SAMPLING[3]])
def test_end_of_sequence_in_the_tree(zoo: Zoo, sampling: dict[str, Any]) -> None:
    """Ends the text at a token that the draft had right and behind which more was accepted."""
    model = zoo.load("gqa")
    with_eos(model)
    tried = 0
    for seed in range(8):
        prompt = "count " + "xyz" * seed
        records = list(model.stream([], prompt, max_new_tokens=30, **sampling))
        tokens = [r.token for r in records]
        for i in range(1, len(records) - 1):
            inside = records[i].from_draft and records[i + 1].draft_ms == 0.0
            if not inside or tokens[i] in tokens[:i]:
                continue
            with_eos(model, tokens[i])
            for draft in ("none", "auto"):
                cut = model.generate([], prompt, draft=draft, max_new_tokens=30, **sampling)
                assert list(cut.token_ids) == tokens[: i + 1]
                assert cut.finish_reason == "eos"
            with_eos(model)
            tried += 1
            break
    assert tried >= 2, "no accepted path was found to cut"


@pytest.mark.parametrize("sampling", [SAMPLING[0], SAMPLING[5]])
def test_stop_strings_in_the_tree(zoo: Zoo, sampling: dict[str, Any]) -> None:
    model = zoo.model("gqa")
    tried = 0
    for seed in range(6):
        prompt = "say it " + "abc" * seed
        whole = model.generate([], prompt, draft="none", max_new_tokens=30, **sampling)
        for start, length in ((3, 1), (6, 2), (9, 4), (14, 3)):
            stop = whole.text[start : start + length]
            if not stop or "\ufffd" in stop:
                continue
            runs = [
                model.generate([], prompt, draft=d, stop=[stop], max_new_tokens=30, **sampling)
                for d in ("none", "auto")
            ]
            assert runs[0].text == runs[1].text
            assert runs[0].token_ids == runs[1].token_ids
            assert runs[0].finish_reason == runs[1].finish_reason == "stop"
            assert stop not in runs[0].text and whole.text.startswith(runs[0].text)
            tried += 1
    assert tried >= 6


def test_abandoned_generator_leaves_the_model_usable(zoo: Zoo) -> None:
    model = zoo.model("gqa")
    pictures = [zoo.picture("gqa", 1)]
    before = model.generate(pictures, "first", max_new_tokens=20)
    request = model.stream(pictures, "another one", temperature=1.0, max_new_tokens=20)
    for _ in range(5):
        next(request)
    del request
    assert model.generate(pictures, "first", max_new_tokens=20).token_ids == before.token_ids


def test_interleaved_requests_are_independent(zoo: Zoo) -> None:
    model = zoo.load("gqa")
    jobs: list[tuple[list[Any], str, dict[str, Any]]] = [
        ([], "the first prompt", {"temperature": 0.0}),
        ([zoo.picture("gqa", 2)], "second", {"temperature": 1.0, "seed": 9}),
        ([], "third", {"repetition_penalty": 1.4, "policy": POLICIES[4]}),
    ]

    def story(record: Record) -> tuple[int, bool, int, int]:
        return record.token, record.from_draft, record.accepted, record.tree_nodes

    def start(job: int) -> Request:
        images, text, given_ = jobs[job]
        return model.stream(images, text, max_new_tokens=20, **given_)

    alone = [[story(record) for record in start(i)] for i in range(len(jobs))]
    requests = [start(i) for i in range(len(jobs))]
    mixed: list[list[tuple[int, bool, int, int]]] = [[] for _ in jobs]
    pending = set(range(len(jobs)))
    while pending:
        for i in sorted(pending):
            record = next(requests[i], None)
            if record is None:
                pending.discard(i)
            else:
                mixed[i].append(story(record))
    # Not only the text, which the target guards: what the drafts had proposed is the same too.
    assert mixed == alone


@pytest.mark.parametrize("idle", [0, 4, 12])
def test_the_draft_may_run_out_of_context_first(zoo: Zoo, idle: int) -> None:
    """A draft whose context is shorter than the text proposes less and less, then nothing."""
    model = zoo.model("gqa")
    plain = model.generate([], "abcdefgh", draft="none", max_new_tokens=24)
    policy = Pausing(Eagle2(12, 12, 1), idle, share=0.0)
    request = model.stream([], "abcdefgh", policy=policy, max_new_tokens=24)
    request._draft._max_positions = request.prompt_tokens + 12  # type: ignore[attr-defined]
    records = list(request)
    assert tuple(r.token for r in records) == plain.token_ids
    assert records[-1].tree_nodes == 0 and any(r.tree_nodes for r in records) == (idle < 12)


def test_text_up_to_the_very_end_of_the_context(zoo: Zoo) -> None:
    model = zoo.model("gqa")
    room = int(model.manifest.text["max_positions"])
    plain = model.generate([], "a" * (room - 40), draft="none")
    spec = model.generate([], "a" * (room - 40))
    assert plain.token_ids == spec.token_ids
    assert plain.prompt_tokens + len(plain.token_ids) == room


def test_logits_that_are_not_numbers_are_an_error(zoo: Zoo) -> None:
    model = zoo.load("gqa")
    model.tables = {**model.tables, "target": np.full_like(model.tables["target"], np.nan)}
    with pytest.raises(EngineError, match="not finite"):
        model.generate([], "hello", draft="none", max_new_tokens=4)


def test_policies_of_this_file_parse() -> None:
    assert len({repr(parse_policy(text)) for text in POLICIES}) == len(POLICIES)
