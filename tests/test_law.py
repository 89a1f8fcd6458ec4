"""The law of sampled text: exact by enumeration on toy targets, by G-test on real noise."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from edgespec.acceptance import StopRules, Verdict, walk
from edgespec.sampling import Noise, Sampler, SamplingParams
from edgespec.sizing import Eagle2, Growth, Policy, RollingBestN, Root, Setting, Sizer, parse_policy
from edgespec.tree import ROOT, Candidates, TokenTree
from edgespec_runtime.decoder import decode
from edgespec_runtime.drafts import Answered
from edgespec_runtime.prefill import causal_mask
from edgespec_runtime.verifiers import Meanwhile
from tests.support.fakes import grown_by, random_tree, toy_draft, toy_verifier
from tests.support.sizers import Pausing

if TYPE_CHECKING:
    from tests.support.zoo import Zoo

Law = dict[tuple[int, ...], float]
Table = Callable[[tuple[int, ...]], npt.NDArray[np.float64]]
TESTS = 13  # G-tests in this file; the family-wise error of all of them together is ALPHA
ALPHA = 1e-3


# --- Enumeration ----------------------------------------------------------------------------------


class Branch(Exception):
    """A draw for which no choice was made yet; carries its distribution."""

    def __init__(self, law: npt.NDArray[np.float64]) -> None:
        self.law = law


class Draws:
    """Replays a list of choices; each draw multiplies the weight by its probability."""

    def __init__(self, choices: Sequence[int]) -> None:
        self._choices = iter(choices)
        self.weight = 1.0

    def __call__(self, law: npt.NDArray[np.float64]) -> int:
        choice = next(self._choices, None)
        if choice is None:
            raise Branch(law)
        self.weight *= float(law[choice])
        return choice


def enumerate_law(run: Callable[[Draws], tuple[int, ...]]) -> Law:
    """Law of ``run``'s result over every possible outcome of every draw."""
    law: Law = {}
    open_choices: list[tuple[int, ...]] = [()]
    while open_choices:
        choices = open_choices.pop()
        draws = Draws(choices)
        try:
            result = run(draws)
        except Branch as branch:
            open_choices += [(*choices, t) for t in np.flatnonzero(branch.law).tolist()]
        else:
            law[result] = law.get(result, 0.0) + draws.weight
    return law


def random_table(vocab: int, seed: int, greedy: bool = False) -> Table:
    """A target: context -> probabilities, some of them zero."""

    @cache
    def probabilities(context: tuple[int, ...]) -> npt.NDArray[np.float64]:
        rng = np.random.default_rng([seed, len(context), *context])
        weights = rng.random(vocab) * (rng.random(vocab) < 0.75)
        weights[int(rng.integers(vocab))] += 0.1
        if greedy:
            weights = (np.arange(vocab) == weights.argmax()).astype(np.float64)
        law: npt.NDArray[np.float64] = weights / weights.sum()
        return law

    return probabilities


def target_law(table: Table, length: int, eos: frozenset[int] = frozenset()) -> Law:
    """Joint law of plain ancestral sampling, ended by ``eos`` or by length."""
    law: Law = {(): 1.0}
    for _ in range(length):
        longer: Law = {}
        for text, weight in law.items():
            if text and text[-1] in eos:
                longer[text] = longer.get(text, 0.0) + weight
                continue
            for token, p in enumerate(table(text)):
                if p > 0:
                    longer[text + (token,)] = weight * float(p)
        law = longer
    return law


def assert_same_law(ours: Law, theirs: Law) -> None:
    for text in ours.keys() | theirs.keys():
        gap = abs(ours.get(text, 0.0) - theirs.get(text, 0.0))
        assert gap < 1e-12, f"{text}: {ours.get(text, 0.0)} where the target's law is {theirs}"
    assert abs(sum(ours.values()) - 1) < 1e-12


class LawVerifier:
    """A target that draws its token at every visited node, as ``walk`` asks for it."""

    engine_s = 0.0

    def __init__(self, table: Table, draws: Draws) -> None:
        self._table, self._draws = table, draws
        self._committed: tuple[int, ...] = ()

    @property
    def context(self) -> int:
        return len(self._committed) - 1

    def begin(self) -> Verdict:
        self._committed = (self._draws(self._table(())),)
        return Verdict((), self._committed)

    def verify(self, tree: TokenTree, meanwhile: Meanwhile | None = None) -> Verdict:
        start = self._committed
        verdict = walk(tree, lambda row, path: self._draws(self._table((*start, *path))))
        self._committed += verdict.tokens
        return verdict

    def close(self) -> None:
        """Nothing to give up."""


class TreeDraft:
    """Proposes any tree: a function of the committed tokens alone, never of the draws to come."""

    engine_s = 0.0
    prepared = True
    unseen = 0
    ready = 0
    calls: tuple[int, ...] = ()

    def __init__(self, tree_after: Callable[[tuple[int, ...]], TokenTree]) -> None:
        self._tree_after = tree_after
        self._committed: tuple[int, ...] = ()

    def begin(self, first: Verdict) -> None:
        self._committed = first.tokens

    def prepare(self) -> None:
        raise AssertionError("it says that it is prepared")

    def grow(self, sizer: Sizer, growth: Growth, root: Root) -> Candidates:
        candidates = Candidates()
        tree = self._tree_after(self._committed)
        for token, parent in zip(tree.tokens, tree.parents, strict=True):
            candidates.extend(parent - 1 if parent else ROOT, [token], [-0.5])
        return candidates

    def foresee(self, chosen: Sequence[int], root: Root, answered: Answered) -> None:
        """Nothing to do ahead."""

    def commit(self, chosen: Sequence[int], verdict: Verdict) -> None:
        self._committed += verdict.tokens


def loop_law(
    table: Table,
    tree_after: Callable[[tuple[int, ...]], TokenTree],
    length: int,
    eos: frozenset[int] = frozenset(),
) -> Law:
    """Exact law of what the real loop emits."""

    def once(draws: Draws) -> tuple[int, ...]:
        rounds = decode(
            LawVerifier(table, draws),
            TreeDraft(tree_after),
            Eagle2(nodes=64).start(Setting()),
            StopRules(tuple(eos), length),
        )
        return tuple(token for r in rounds for token in r.tokens)

    return enumerate_law(once)


def pruned_trees(vocab: int, depth: int) -> Iterator[TokenTree]:
    """Every ancestor-closed tree over ``vocab`` tokens down to ``depth``."""

    def subtrees(level: int) -> list[tuple[Any, ...]]:
        if level == 0:
            return [()]
        below = [None, *subtrees(level - 1)]
        return list(itertools.product(below, repeat=vocab))

    for shape in subtrees(depth):
        tokens: list[int] = []
        parents: list[int] = []
        queue = [(0, shape)]
        for row, children in queue:
            for token, child in enumerate(children):
                if child is not None:
                    tokens.append(token)
                    parents.append(row)
                    queue.append((len(tokens), child))
        yield TokenTree.build(tokens, parents)


@pytest.mark.parametrize("greedy", [False, True])
def test_every_pruned_tree_keeps_the_law(greedy: bool) -> None:
    table = random_table(3, seed=5, greedy=greedy)
    expected = target_law(table, 4)
    trees = list(pruned_trees(3, 2))
    assert len(trees) == 9**3
    for tree in trees:
        assert_same_law(loop_law(table, lambda committed: tree, 4), expected)  # noqa: B023


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("vocab", [3, 4, 5, 6])
def test_shapes_that_change_with_the_text(vocab: int, greedy: bool) -> None:
    shapes: dict[str, Callable[[np.random.Generator], TokenTree]] = {
        "empty": lambda rng: TokenTree.build((), ()),
        "chain": lambda rng: TokenTree.build(rng.integers(vocab, size=3).tolist(), (0, 1, 2)),
        "top-k": lambda rng: TokenTree.build(rng.permutation(vocab)[:2].tolist(), (0, 0)),
        "all": lambda rng: TokenTree.build(range(vocab), (0,) * vocab),
        "any": lambda rng: random_tree(rng, int(rng.integers(0, 8)), vocab),
    }
    length = 4 if vocab < 5 else 3
    for seed in range(4):
        table = random_table(vocab, seed, greedy)
        for eos in (frozenset[int](), frozenset({1})):
            expected = target_law(table, length, eos)
            for shape in shapes.values():

                def tree_after(committed: tuple[int, ...]) -> TokenTree:
                    return shape(np.random.default_rng([seed, *committed]))  # noqa: B023

                assert_same_law(loop_law(table, tree_after, length, eos), expected)


@settings(max_examples=60)
@given(
    vocab=st.integers(2, 5),
    seed=st.integers(0, 2**32),
    nodes=st.integers(0, 7),
    length=st.integers(1, 3),
)
def test_any_tree_keeps_the_law(vocab: int, seed: int, nodes: int, length: int) -> None:
    table = random_table(vocab, seed)

    def tree_after(committed: tuple[int, ...]) -> TokenTree:
        rng = np.random.default_rng([seed, *committed])
        return random_tree(rng, min(nodes, vocab), vocab)

    assert_same_law(loop_law(table, tree_after, length), target_law(table, length))


def reference_law(logits: Any, params: SamplingParams, context: Sequence[int]) -> Any:
    """The processors once more, written as plainly as can be, over the whole context."""
    scores = [float(x) for x in logits]
    for token in set(context):
        above = scores[token] > 0
        scores[token] *= 1 / params.repetition_penalty if above else params.repetition_penalty
    scores = [s / params.temperature for s in scores]
    weights = [float(np.exp(s - max(scores))) for s in scores]
    ranked = sorted(range(len(weights)), key=lambda t: -weights[t])
    if params.top_k:
        ranked = ranked[: params.top_k]
    total, mass, kept = sum(weights[t] for t in ranked), 0.0, []
    for token in ranked:
        if mass < params.top_p:
            kept.append(token)
        mass += weights[token] / total
    if params.min_p:
        kept = [t for t in kept if weights[t] >= params.min_p * weights[kept[0]]]
    law = np.zeros(len(scores))
    law[kept] = [weights[t] for t in kept]
    return law / law.sum()


PROCESSORS = [
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.7, top_k=3),
    SamplingParams(temperature=1.3, top_p=0.7),
    SamplingParams(temperature=1.0, min_p=0.2),
    SamplingParams(temperature=1.0, repetition_penalty=1.8),
    SamplingParams(temperature=1.2, top_k=4, top_p=0.85, min_p=0.05, repetition_penalty=1.4),
]


@pytest.mark.parametrize("params", PROCESSORS)
@pytest.mark.parametrize(
    "policy",
    [
        Eagle2(6, 3, 3),
        RollingBestN(6, 3, 3, 4),
        Eagle2(1, 1, 1),
        Pausing(Eagle2(6, 3, 3), idle=1, share=0.0),
        Pausing(RollingBestN(6, 3, 3, 4), ends=1, share=0.0),
    ],
)
def test_law_of_the_real_verifier_and_draft(
    params: SamplingParams, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LocalVerifier and VlmDraft with every draw of the noise enumerated: emitted text has the
    law of plain sampling under processors written a second time."""
    pauses = isinstance(policy, Pausing)
    vocab, length, prompt = 4 if pauses else 5, 4 if pauses else 3, [0, 2, 2]
    context: list[int] = []
    draws = Draws(())

    def spike(position: int, size: int) -> npt.NDArray[np.float64]:
        """Noise that makes the enumerated choice win, if the processors left it alive."""
        text = tuple(context[: position - len(prompt)])
        assert len(text) == position - len(prompt), "a position was skipped"
        law = reference_law(logits_after(text), params, [*prompt, *text])
        choice = draws(law)
        context[position - len(prompt) :] = [choice]
        noise = np.zeros(size)
        noise[choice] = 1e6
        return noise

    @cache
    def logits_after(text: tuple[int, ...]) -> Any:
        plain = toy_verifier([*prompt, *text], vocab, SamplingParams())
        session, table = plain._session, plain._table
        tokens = [*prompt, *text]
        mask = causal_mask(0, len(tokens))
        return session.step(table[tokens], range(len(tokens)), mask, True)[0][0]

    def once(now: Draws) -> tuple[int, ...]:
        nonlocal draws
        draws = now
        context.clear()
        draft = toy_draft(prompt, vocab)
        sizer = policy.start(Setting())
        rounds = decode(toy_verifier(prompt, vocab, params), draft, sizer, StopRules((), length))
        return tuple(token for r in rounds for token in r.tokens)

    monkeypatch.setattr(Noise, "at", lambda noise, position: spike(position, noise._size))
    ours = enumerate_law(once)

    def table(text: tuple[int, ...]) -> Any:
        return reference_law(logits_after(text), params, [*prompt, *text])

    assert_same_law(ours, target_law(table, length))


# --- Real noise -----------------------------------------------------------------------------------


def g_test(counts: npt.NDArray[Any], law: npt.NDArray[np.float64]) -> float:
    """p-value of observed counts under ``law``; cells that expect fewer than 5 are pooled."""
    counts, law = np.asarray(counts).ravel(), np.asarray(law).ravel()
    assert not counts[law == 0].any(), "a token of probability zero was drawn"
    expected = law * counts.sum()
    rare = expected < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    if expected[-1] < 5:  # too little to be a cell of its own
        least = int(expected[:-1].argmin())
        counts[least] += counts[-1]
        expected[least] += expected[-1]
        counts, expected = counts[:-1], expected[:-1]
    if len(counts) < 2:
        return 1.0
    statistic = 2 * float(np.sum(counts * np.log(np.maximum(counts, 1e-300) / expected)))
    return float(stats.chi2.sf(statistic, len(counts) - 1))


def assert_law(counts: Any, law: Any) -> None:
    p = g_test(counts, law)
    assert p > ALPHA / TESTS, f"p = {p:.2g}: {np.asarray(counts)} under {np.asarray(law)}"


def test_the_g_test_sees_a_bias() -> None:
    law = np.array([0.3, 0.3, 0.2, 0.1, 0.1])
    biased = np.array([0.32, 0.28, 0.2, 0.1, 0.1])
    counts = np.random.default_rng(0).multinomial(20_000, biased)
    assert g_test(counts, law) < ALPHA / TESTS
    assert g_test(np.random.default_rng(0).multinomial(20_000, law), law) > ALPHA / TESTS


@pytest.mark.parametrize("params", PROCESSORS)
def test_sampler_draws_the_processed_law(params: SamplingParams) -> None:
    logits = np.random.default_rng(3).standard_normal(12).astype(np.float32)
    law = reference_law(logits, params, [1, 4, 4, 7])
    sampler = Sampler(params, 12)
    sampler.observe([1, 4])
    counts = np.zeros(12)
    for position in range(15_000):
        counts[sampler.pick(logits, position, [4, 7])] += 1
    assert_law(counts, law)


def test_draws_of_different_seeds_and_neighbouring_positions_are_independent() -> None:
    logits = np.zeros(6, dtype=np.float32)
    pairs = np.zeros((6, 6))
    across = np.zeros((6, 6))  # one seed's draw against the next seed's, at one position
    before = None
    for seed in range(12_000):
        sampler = Sampler(SamplingParams(temperature=1.0, seed=seed), 6)
        first, second = (sampler.pick(logits, position, ()) for position in (40, 41))
        pairs[first, second] += 1
        if before is not None:
            across[before, first] += 1
        before = first
    assert_law(pairs, np.full((6, 6), 1 / 36))
    assert_law(across, np.full((6, 6), 1 / 36))


RUNS = 2500


@pytest.mark.slow
def test_law_of_a_real_model_end_to_end(zoo: Zoo) -> None:
    """Speculative sampling on exported graphs, a seed per run: tokens one to three."""
    model = zoo.model("small-vocab")
    vocab = zoo.geometry("small-vocab").vocab
    temperature, prompt, tree = 2.5, "which one", "eagle2:nodes=8,depth=2,top_k=4"
    texts = np.empty((RUNS, 3), dtype=np.int64)
    accepted = np.empty(RUNS, dtype=np.bool_)
    for seed in range(RUNS):
        records = list(
            model.stream(
                [],
                prompt,
                policy=tree,
                coupled=False,  # what was proposed is found again below, without a seed
                temperature=temperature,
                seed=seed,
                max_new_tokens=3,
            )
        )
        texts[seed] = [*(r.token for r in records), -1, -1][:3]
        accepted[seed] = len(records) > 1 and records[1].from_draft

    request = model.stream([], prompt, draft="none", max_new_tokens=3)
    verifier: Any = request._verifier
    session, table = verifier._session, verifier._table
    embeds = verifier._prompt()

    def law_after(*tokens: int) -> npt.NDArray[np.float64]:
        rows = np.concatenate([embeds, table[list(tokens)]])
        mask = causal_mask(0, len(rows))
        logits = session.step(rows, range(len(rows)), mask, True)[0][0].astype(np.float64)
        session.cache.commit([])
        weights = np.exp((logits - logits.max()) / temperature)
        law: npt.NDArray[np.float64] = weights / weights.sum()
        return law

    eos = 2
    first = law_after()
    assert_law(np.bincount(texts[:, 0], minlength=vocab), first)
    second = np.stack([law_after(token) for token in range(vocab)])
    going = texts[:, 0] != eos
    pairs = np.zeros((vocab, vocab))
    np.add.at(pairs, (texts[going, 0], texts[going, 1]), 1)
    joint = first[:, None] * second
    joint[eos] = 0
    assert_law(pairs, joint / joint.sum())
    # Given that the draft had it, token two has the target's law within what the draft proposed;
    # given that it had not, the law outside it: errors hide in the residual branch.
    proposed = np.zeros((vocab, vocab), dtype=np.bool_)
    policy = parse_policy(tree)
    for token in range(vocab):
        draft: Any = model.stream([], prompt, policy=tree, max_new_tokens=3)._draft
        draft.begin(Verdict((), (token,)))
        candidates = grown_by(draft, policy, 1)
        chosen = policy.start(Setting()).choose(candidates)
        proposed[token, [candidates.tokens[i] for i in chosen]] = True
    assert (proposed[texts[:, 0], texts[:, 1]] == accepted)[going].all()
    assert 0.1 < accepted[going].mean() < 0.9
    for branch in (proposed, ~proposed):
        assert_law(np.where(branch, pairs, 0), np.where(branch, joint, 0) / joint[branch].sum())
    # Token three after the most frequent pair.
    one, two = np.unravel_index(int(pairs.argmax()), pairs.shape)
    if int(two) != eos:
        rows = (texts[:, 0] == one) & (texts[:, 1] == two)
        counts_three = np.bincount(texts[rows, 2], minlength=vocab)
        assert_law(counts_three, law_after(int(one), int(two)))
