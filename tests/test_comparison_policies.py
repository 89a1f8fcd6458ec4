"""Policies for comparison against naive versions of their published rules, and their contract."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgespec.errors import ConfigError
from edgespec.sizing import Feedback, Growth, Policy, Root, Setting, Sizer, parse_policy
from edgespec.sizing.parse import KINDS
from edgespec.sizing.policies.chain import FixedChain
from edgespec.sizing.policies.opt_tree import OptTree
from edgespec.sizing.policies.sage import Sage
from edgespec.sizing.policies.sequoia import REPLAN, Acceptance, Sequoia
from edgespec.sizing.policies.sequoia_search import Prices, Search, best_shape
from edgespec.sizing.policies.shape import Shape, Static
from edgespec.sizing.policies.threshold import Threshold
from edgespec.sizing.policies.tree import FixedTree
from edgespec.tree import ROOT, Candidates, TokenTree
from tests.support.profiles import profile

Path = tuple[int, ...]
DraftModel = Callable[[Path], Sequence[float]]
Floats = npt.NDArray[np.float64]
VOCAB = 6
SETTING = Setting()


# --- A draft that is a function, grown as runtime/edgespec_runtime/drafts/growing.py grows --------


def draft_model(seed: int, ties: bool = False, sharp: float = 2.0) -> DraftModel:
    """Log-probabilities of the next token after a path; with ``ties``, many are equal or zero."""

    @cache
    def logprobs(path: Path) -> Sequence[float]:
        rng = np.random.default_rng([seed, *path])
        if ties:
            values = rng.choice([0.0, -0.5, -0.5, -2.0], size=VOCAB)
        else:
            logits = rng.standard_normal(VOCAB).astype(np.float32) * sharp
            values = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        return [float(v) for v in values]

    return logprobs


def children(model: DraftModel, path: Path, top_k: int) -> list[tuple[int, float]]:
    values = model(path)
    return sorted(enumerate(values), key=lambda item: (-item[1], item[0]))[:top_k]


class Growing:
    """Grows one tree by what a sizer answers; keeps the paths and the beams."""

    def __init__(self, sizer: Sizer, model: DraftModel, left: int = 99, segment: int = 0) -> None:
        """``segment``: levels of one chain call, 0 without a chain graph."""
        self.sizer, self.model = sizer, model
        self.candidates = Candidates()
        self.paths: list[Path] = []
        self.beams: list[list[Path]] = []
        self.root = Root(left, context=7, unseen=1, prepared=True, emitted=1)
        self.growth = sizer.begin(self.root)
        if segment and self.growth is Growth.CHAIN:
            self._segments(segment)
        elif self.growth is not Growth.NONE:
            self._steps()
        self.chosen = sizer.choose(self.candidates)
        self.tree = [self.paths[i] for i in self.chosen]

    def _extend(self, parent: int) -> None:
        path = self.paths[parent] if parent != ROOT else ()
        proposed = children(self.model, path, self.sizer.policy.top_k)
        self.candidates.extend(parent, [t for t, _ in proposed], [v for _, v in proposed])
        self.paths += [(*path, t) for t, _ in proposed]

    def _steps(self) -> None:
        self._extend(ROOT)
        level = 1
        while beam := self.sizer.beam(self.candidates, level, self.root):
            self.beams.append([self.paths[i] for i in beam])
            for index in beam:
                self._extend(index)
            level += 1

    def _segments(self, steps: int) -> None:
        most = min(self.sizer.policy.levels, self.root.depth_left)
        level, tip = 0, ROOT
        while True:
            for _ in range(min(steps, most - level)):
                parent, tip = tip, len(self.candidates)
                self._extend(parent)
                level += 1
            if level >= most or not self.sizer.beam(self.candidates, level, self.root):
                return


def grow(policy: Policy, model: DraftModel, left: int = 99, segment: int = 0) -> Growing:
    return Growing(policy.start(SETTING), model, left, segment)


def score(model: DraftModel, path: Path) -> float:
    return sum(min(model(path[:i])[token], 0.0) for i, token in enumerate(path))


def by_score(model: DraftModel, paths: Sequence[Path]) -> list[Path]:
    return sorted(paths, key=lambda p: -score(model, p))


def below(model: DraftModel, level: Sequence[Path], top_k: int) -> list[Path]:
    return [(*p, t) for p in level for t, _ in children(model, p, top_k)]


seeds = st.integers(0, 2**32)


# --- Chain, tree, threshold -----------------------------------------------------------------------


@settings(max_examples=60)
@given(seed=seeds, depth=st.integers(1, 6), top_k=st.integers(1, 3))
def test_a_chain_is_the_greedy_path_and_its_siblings(seed: int, depth: int, top_k: int) -> None:
    model = draft_model(seed)
    path: Path = ()
    expected: list[Path] = []
    for _ in range(depth):
        expected += below(model, [path], top_k)
        path = (*path, children(model, path, 1)[0][0])
    grown = grow(FixedChain(depth, top_k), model)
    assert grown.growth is Growth.CHAIN
    assert grown.tree == by_score(model, expected)
    assert len(grown.tree) == depth * top_k


@settings(max_examples=60)
@given(seed=seeds, widths=st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_a_fixed_tree_has_its_widths_everywhere(seed: int, widths: list[int]) -> None:
    model = draft_model(seed)
    level: list[Path] = [()]
    expected: list[Path] = []
    for width in widths:
        level = below(model, level, width)
        expected += level
    policy = FixedTree("x".join(map(str, widths)))
    grown = grow(policy, model)
    assert grown.tree == by_score(model, expected)
    assert len(grown.tree) == policy.max_nodes
    assert sum(map(len, grown.beams)) == policy.max_drafted
    assert (grown.growth is Growth.CHAIN) == all(width == 1 for width in widths[:-1])


def test_a_fixed_tree_goes_by_rank_not_by_the_order_of_proposals() -> None:
    """A cascade adds children behind the model's and raises scores."""
    candidates = Candidates()
    candidates.extend(ROOT, [1, 2], [math.log(0.2), math.log(0.1)])
    candidates.extend(ROOT, [3], [math.log(0.7)])
    candidates.extend(0, [4], [0.0])
    candidates.extend(2, [5, 6], [math.log(0.3), math.log(0.6)])
    chosen = FixedTree("2x1").start(SETTING).choose(candidates)
    assert [candidates.tokens[i] for i in chosen] == [3, 6, 1, 4]


@settings(max_examples=80)
@given(
    seed=seeds,
    depth=st.integers(1, 6),
    min_path=st.sampled_from([0.0, 0.05, 0.3, 0.8]),
    min_token=st.sampled_from([0.0, 0.4, 0.75]),
)
def test_a_threshold_ends_the_chain_where_confidence_falls_below(
    seed: int, depth: int, min_path: float, min_token: float
) -> None:
    model = draft_model(seed, sharp=3.0)
    path: Path = ()
    expected: list[Path] = []
    while len(path) < depth:
        token, logprob = children(model, path, 1)[0]
        path = (*path, token)
        if math.exp(score(model, path)) < min_path or math.exp(logprob) < min_token:
            break
        expected.append(path)
    grown = grow(Threshold(depth, min_path, min_token), model)
    assert grown.tree == expected
    assert [beam for beam in grown.beams if beam != [expected[len(beam[0]) - 1]]] == []
    assert len(grown.beams) == min(len(expected), depth - 1)


@settings(max_examples=60)
@given(
    seed=seeds,
    top_k=st.integers(1, 3),
    width=st.integers(2, 4),
    nodes=st.integers(1, 12),
    min_path=st.sampled_from([0.0, 0.05, 0.3]),
)
def test_a_threshold_cuts_a_beam(
    seed: int, top_k: int, width: int, nodes: int, min_path: float
) -> None:
    model = draft_model(seed)
    level: list[Path] = [()]
    everything: list[Path] = []
    for _ in range(3):
        level = [p for p in below(model, level, top_k) if math.exp(score(model, p)) >= min_path]
        everything += level
        level = by_score(model, level)[:width]
    grown = grow(Threshold(3, min_path, 0.0, top_k, width, nodes), model)
    assert grown.tree == by_score(model, everything)[:nodes]


def test_nothing_above_the_threshold_is_plain_decoding() -> None:
    grown = grow(Threshold(min_path=0.999), draft_model(3))
    assert grown.tree == [] and grown.beams == []


# --- OPT-Tree -------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(
    seed=seeds,
    nodes=st.integers(1, 16),
    threshold=st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.9]),
    depth=st.integers(1, 5),
    top_k=st.integers(1, 4),
)
def test_opt_tree_is_the_papers_rule(
    seed: int, nodes: int, threshold: float, depth: int, top_k: int
) -> None:
    """Levels of the best ``nodes`` nodes, merged, until a level adds too little acceptance."""
    model = draft_model(seed, sharp=3.0)

    def acceptance(paths: Sequence[Path]) -> float:
        return sum(math.exp(score(model, p)) for p in by_score(model, paths)[:nodes])

    level: list[Path] = [()]
    merged: list[Path] = []
    steps = 0
    while True:
        before = acceptance(merged)
        level = by_score(model, below(model, level, top_k))[:nodes]
        merged += level
        steps += 1
        if acceptance(merged) - before <= threshold or steps == depth:
            break
    policy = OptTree(nodes, threshold, depth, top_k)
    grown = grow(policy, model)
    assert grown.tree == by_score(model, merged)[:nodes]
    assert len(grown.beams) == steps - 1
    assert sum(map(len, grown.beams)) <= policy.max_drafted


# --- Sequoia --------------------------------------------------------------------------------------

Nested = tuple["Nested", ...]
"""A tree by shape alone: the trees below the root, by rank."""


def forests(nodes: int, depth: int, most: int) -> Iterator[Nested]:
    """All trees with ``nodes`` nodes below a root, at most ``depth`` levels of them and ``most``
    children each."""
    if nodes == 0:
        yield ()
    elif depth and most:
        for size in range(nodes):  # below the first child
            for first in forests(size, depth - 1, WIDEST):
                for others in forests(nodes - 1 - size, depth, most - 1):
                    yield (first, *others)


WIDEST = 3


def expected_tokens(tree: Nested, acceptance: Sequence[float] | Floats) -> float:
    pairs = zip(tree, acceptance, strict=False)
    return 1.0 + sum(float(p) * expected_tokens(part, acceptance) for part, p in pairs)


def nested(shape: Shape, node: int = 0) -> Nested:
    return tuple(nested(shape, child) for child in shape.children[node])


acceptances = st.lists(st.floats(0.0, 1.0), min_size=WIDEST, max_size=WIDEST).map(
    lambda values: np.array(values) / max(sum(values), 1.0)
)


@settings(max_examples=25)
@given(acceptance=acceptances)
def test_the_search_finds_the_best_of_all_trees(acceptance: Floats) -> None:
    search = Search(acceptance, nodes=6, depth=4)
    for nodes in range(7):
        for depth in range(5):
            values = [expected_tokens(t, acceptance) for t in forests(nodes, depth, WIDEST)]
            best = search.tokens[depth, nodes]
            if not values:
                assert best == -math.inf
                continue
            assert best == pytest.approx(max(values), abs=1e-9)
            shape = search.shape(nodes, depth)
            assert shape.nodes == nodes and len(shape.widths) <= depth
            assert expected_tokens(nested(shape), acceptance) == pytest.approx(best, abs=1e-9)


@settings(max_examples=25)
@given(
    acceptance=acceptances,
    ratio=st.sampled_from([0.0, 0.05, 0.3]),
    slope=st.sampled_from([0.0, 0.02, 0.2]),
    stair=st.sampled_from([0.0, 0.7]),
)
def test_the_tree_makes_most_tokens_per_time(
    acceptance: Floats,
    ratio: float,
    slope: float,
    stair: float,
) -> None:
    """E[tokens] / (depth * t_draft + t_verify(n)) over every tree of up to 5 nodes, 3 levels."""
    sizes = np.arange(6)
    verify = 1.0 + slope * sizes + stair * (sizes >= 4)
    prices = Prices(verify, ratio * np.arange(4.0)[:, None] * np.ones(6), None)

    def speed(tree: Nested, nodes: int, depth: int) -> float:
        return expected_tokens(tree, acceptance) / (ratio * depth + float(verify[nodes]))

    every = [
        speed(tree, nodes, depth)
        for nodes in range(1, 6)
        for depth in range(1, 4)
        for tree in forests(nodes, depth, WIDEST)
    ]
    found = best_shape(acceptance, prices)
    got = speed(nested(found), found.nodes, len(found.widths))
    assert got == pytest.approx(max(every), rel=1e-9)


def test_where_nothing_pays_sequoia_still_drafts() -> None:
    """A draft step fifty times as dear as a verification: one level; dear nodes too: one node."""
    grown = Growing(Sequoia(cost=50.0).start(SETTING), draft_model(1))
    assert grown.beams == [] and len(grown.tree) == 4, "further nodes of the level are free"
    dear = Prices(np.arange(1.0, 6.0) ** 2, np.full((3, 5), 50.0), None)
    assert best_shape(np.array([0.1, 0.05]), dear).widths == (1,)


def test_a_profile_prices_the_tree_of_sequoia() -> None:
    """A verify curve with a step at 8 rows, a draft step that grows with its width."""
    prices = Prices.measured(profile(), Setting(prompt_tokens=100), emitted=0, nodes=9, depth=3)
    assert prices.verify == pytest.approx(
        [2.5, 2.8, 3.05, 3.3, *(3.725, 4.15, 4.575, 5.0)[0:4], 5.425, 5.85]
    )
    # Three levels of 9 nodes: one first step, two steps of width 3 (0.55 between 0.5 and 0.6).
    assert prices.draft[3, 9] == pytest.approx(0.5 + 2 * 0.55)
    assert prices.draft[1, 9] == pytest.approx(0.5)
    assert prices.chain is None, "no chain graph in this setting"


def test_a_chain_in_segments_is_priced_by_its_segments() -> None:
    setting = Setting(chain_steps=4, profile=profile())
    prices = Prices.measured(profile(), setting, emitted=0, nodes=12, depth=9)
    assert prices.chain is not None
    assert prices.chain[[1, 4, 5, 8, 9]] == pytest.approx([2.0, 2.0, 3.9, 3.9, 5.8])
    accept = "0.9/0.05"
    # Twelve steps of a dear step graph: the chain graph wins, at the end of a segment.
    dear = Prices(prices.verify, prices.draft * 10, prices.chain)
    sizes = best_shape(np.array([0.9, 0.05]), dear).widths
    assert sizes in ((1,) * 4, (1,) * 8)
    # With cheap steps the wide tree comes back.
    cheap = Prices(np.ones(13), prices.draft * 1e-3, prices.chain)
    assert max(best_shape(np.array([0.6, 0.3]), cheap).widths) > 1
    sizer = Sequoia(nodes=12, depth=9, accept=accept).start(setting)
    assert Growing(sizer, draft_model(2), segment=4).tree


def told(grown: Growing, target: Callable[[Path], int]) -> Feedback:
    """What a round brought whose target says ``target(path)``."""
    tree = TokenTree.select(grown.candidates, grown.chosen)
    row, rows, tokens = 0, [], []
    path: Path = ()
    while True:
        tokens.append(target(path))
        child = tree.child(row, tokens[-1])
        if child is None:
            break
        rows.append(child)
        row, path = child, (*path, tokens[-1])
    return Feedback(
        root=grown.root,
        growth=grown.growth,
        calls=(),
        candidates=grown.candidates,
        chosen=grown.chosen,
        rows=rows,
        named=None,
        tokens=tokens,
        emitted=len(tokens),
        prepare_ms=0.0,
        draft_ms=1.0,
        verify_ms=1.0,
        round_ms=2.0,
    )


def rounds_with(sizer: Sizer, truth: Sequence[float], count: int) -> None:
    """Rounds in which the target's token is the draft's k-th child with probability truth[k]."""
    rng = np.random.default_rng(5)
    miss = 1.0 - sum(truth)

    for seed in range(count):
        model = draft_model(seed)

        def target(path: Path, model: DraftModel = model) -> int:
            rank = rng.choice(len(truth) + 1, p=[*truth, miss])
            ranked = children(model, path, VOCAB)
            return ranked[rank][0] if rank < len(truth) else VOCAB + 1

        sizer.learn(told(Growing(sizer, model), target))


def test_sequoia_learns_positional_acceptance() -> None:
    truth = [0.5, 0.25, 0.1, 0.05]
    learner = Acceptance(4)
    sizer = Static(Sequoia(), Shape.of_widths([2, 1]))
    sizer.learn = learner.learn  # type: ignore[method-assign]
    rounds_with(sizer, truth, 900)
    # Over 900 nodes the standard deviation is below 0.017; the prior pulls by less than 0.003.
    assert learner.estimate == pytest.approx(truth, abs=0.05)
    assert abs(learner.estimate[0] - 0.65) > 0.1, "the prior is no match"


def test_sequoia_learns_from_children_that_were_not_verified() -> None:
    learner = Acceptance(4)
    before = learner.estimate
    sizer = Static(Sequoia(), Shape.of_widths([1]))
    grown = Growing(sizer, draft_model(4))
    third = children(grown.model, (), 4)[2][0]
    learner.learn(told(grown, lambda path: third))
    assert (np.sign(learner.estimate - before) == [-1, -1, 1, -1]).all()


def test_what_follows_a_stop_rule_teaches_nothing() -> None:
    sizer = Static(Sequoia(), Shape.of_widths([1, 1, 1]))
    grown = Growing(sizer, draft_model(4))
    best = [token for token in grown.tree[-1]]
    feedback = told(grown, lambda path: best[len(path)] if len(path) < 3 else 0)
    assert len(feedback.rows) == 3
    both = [Acceptance(4), Acceptance(4)]
    both[0].learn(feedback)
    cut = {**vars(feedback), "emitted": 1}
    both[1].learn(Feedback(**cut))
    weights = [16 / (16 + 3), 16 / (16 + 1)]
    for learner, weight in zip(both, weights, strict=True):
        assert learner.estimate[1] == pytest.approx(0.12 * weight)


def test_the_tree_of_sequoia_follows_what_it_learns() -> None:
    """Searched anew every ``REPLAN`` rounds; in the end the tree of the true acceptance."""
    truth = [0.3, 0.25, 0.2, 0.1]
    policy = Sequoia(nodes=12, depth=5, cost=0.05)
    sizer = policy.start(SETTING)
    assert isinstance(sizer, Static)
    first = sizer.shape
    rounds_with(sizer, truth, REPLAN - 1)
    assert sizer.shape is first
    rounds_with(sizer, truth, 30 * REPLAN + 1)
    known = Sequoia(nodes=12, depth=5, cost=0.05, accept="0.3/0.25/0.2/0.1").start(SETTING)
    assert isinstance(known, Static)

    def speed(shape: Shape) -> float:
        return expected_tokens(nested(shape), truth) / (1.0 + 0.05 * len(shape.widths))

    assert speed(sizer.shape) >= 0.98 * speed(known.shape)
    assert speed(first) < 0.98 * speed(known.shape)


def test_given_acceptance_is_not_learnt() -> None:
    sizer = Sequoia(accept="0.9").start(SETTING)
    assert isinstance(sizer, Static)
    first = sizer.shape
    assert first.slim and set(first.widths) == {1}, "only the first child is ever accepted"
    rounds_with(sizer, [0.1, 0.5, 0.2, 0.1], 2 * REPLAN)
    assert sizer.shape is first


# --- SAGE -----------------------------------------------------------------------------------------


def sage_tree(model: DraftModel, alpha: float, limit: int, policy: Sage) -> list[Path]:
    """The paper's construction, level by level."""
    levels = min(int(policy.depth + policy.deeper * alpha), limit)
    width = policy.width + policy.wider * (1 - alpha)
    level: list[Path] = [()]
    kept: list[Path] = []
    for depth in range(1, levels + 1):
        fresh = [
            child
            for parent in level
            for child in below(model, [parent], policy.top_k)[
                : math.ceil(width / depth * (0.5 + math.exp(score(model, parent))))
            ]
            if math.exp(score(model, child)) > policy.min_path * depth / levels
        ]
        level = by_score(model, fresh)[: policy.nodes - len(kept)]
        kept += level
    return by_score(model, kept)


def sage_confidence(model: DraftModel, expanded: Sequence[Path], top_k: int) -> float:
    entropies = []
    for path in expanded:
        best = np.exp([logprob for _, logprob in children(model, path, top_k)])
        best /= best.sum()
        entropies.append(float(-(best * np.log(best)).sum()))
    return 1.0 - sum(entropies) / len(entropies) / math.log(top_k)


@settings(max_examples=60)
@given(
    seed=seeds,
    nodes=st.integers(1, 40),
    top_k=st.integers(2, VOCAB),
    sharp=st.sampled_from([0.5, 2.0, 6.0]),
)
def test_sage_is_the_papers_rule(seed: int, nodes: int, top_k: int, sharp: float) -> None:
    """Three rounds, each shaped by the entropies of the one before."""
    policy = Sage(nodes=nodes, top_k=top_k)
    sizer = policy.start(SETTING)
    alpha = 0.5
    for step in range(3):
        model = draft_model(seed + step, sharp=sharp)
        grown = Growing(sizer, model)
        assert grown.tree == sage_tree(model, alpha, 8, policy)
        assert sum(map(len, grown.beams)) <= policy.max_drafted
        expanded = [(), *(p for beam in grown.beams for p in beam)]
        alpha = sage_confidence(model, expanded, top_k)
        sizer.learn(told(grown, lambda path: VOCAB + 1))


def test_sage_limits_its_depth_by_what_was_accepted() -> None:
    """Ten rounds that accept nothing take a level off, ten good ones bring it back."""
    sure = draft_model(1, sharp=60.0)
    sizer = Sage().start(SETTING)
    deepest = []
    for step in range(30):
        grown = Growing(sizer, sure)
        deepest.append(max(grown.candidates.depths))
        best = grown.tree[-1] if step >= 14 else ()
        sizer.learn(told(grown, lambda path, best=best: (*best, VOCAB + 1)[len(path)]))  # type: ignore[misc]
    assert deepest[0] == int(3 + 5 * 0.5)
    assert deepest[1:10] == [7] * 9, "as confident as this draft is, but for a hair"
    assert deepest[10:15] == [7, 6, 5, 4, 3]
    assert deepest[-1] == 7


# --- What holds for all of them -------------------------------------------------------------------

any_policy: st.SearchStrategy[Policy] = st.one_of(
    st.builds(FixedChain, depth=st.integers(1, 8), top_k=st.integers(1, 3)),
    st.lists(st.integers(1, 3), min_size=1, max_size=4).map(
        lambda widths: FixedTree("x".join(map(str, widths)))
    ),
    st.builds(
        Threshold,
        depth=st.integers(1, 6),
        min_path=st.sampled_from([0.0, 0.1, 0.6]),
        min_token=st.sampled_from([0.0, 0.5]),
        top_k=st.integers(1, 3),
        width=st.integers(1, 3),
        nodes=st.integers(1, 12),
    ),
    st.builds(
        OptTree,
        nodes=st.integers(1, 12),
        threshold=st.sampled_from([0.0, 0.2, 0.5]),
        depth=st.integers(1, 4),
        top_k=st.integers(1, 4),
    ),
    st.builds(
        Sequoia,
        nodes=st.integers(1, 12),
        depth=st.integers(1, 5),
        top_k=st.integers(3, 4),
        accept=st.sampled_from(["", "0.9", "0.3/0.3/0.3", "0/0.5", "0"]),
        cost=st.sampled_from([0.0, 0.1]),
    ),
    st.builds(Sage, nodes=st.integers(1, 24), top_k=st.integers(2, 4), depth=st.integers(1, 4)),
)


@settings(max_examples=300)
@given(
    seed=seeds,
    policy=any_policy,
    left=st.integers(1, 9),
    ties=st.booleans(),
    segment=st.sampled_from([0, 1, 3]),
)
def test_every_policy_keeps_its_contract(
    seed: int, policy: Policy, left: int, ties: bool, segment: int
) -> None:
    """Closed under ancestors whatever the ties; never deeper, larger or dearer than it said."""
    sizer = policy.start(SETTING)
    for step in range(3):
        model = draft_model(seed + step, ties)
        grown = Growing(sizer, model, left, segment)
        assert sizer.policy is policy and grown.growth is not Growth.NONE
        tree = TokenTree.select(grown.candidates, grown.chosen)
        assert grown.chosen == grown.candidates.ranked(grown.chosen), "in tree order"
        assert len(tree) <= policy.max_nodes
        assert max(grown.candidates.depths) <= min(left, policy.levels)
        expanded = [path for beam in grown.beams for path in beam]
        assert len(set(expanded)) == len(expanded) <= policy.max_drafted, "expanded twice"
        counts = np.bincount(np.array(grown.candidates.parents) + 1)
        assert counts.max() <= policy.top_k
        if segment == 0 and grown.growth is Growth.CHAIN:
            assert all(len(beam) == 1 for beam in grown.beams), "a chain expands one node a level"
        rng = np.random.default_rng(seed)
        sizer.learn(told(grown, lambda path, rng=rng: int(rng.integers(VOCAB))))  # type: ignore[misc]
    sizer.finish(9, True)


any_chain: st.SearchStrategy[Policy] = st.one_of(
    st.builds(FixedChain, depth=st.integers(1, 8), top_k=st.integers(1, 3)),
    st.tuples(st.integers(0, 5), st.integers(1, 3)).map(
        lambda shape: FixedTree("1x" * shape[0] + str(shape[1]))
    ),
    st.builds(
        Threshold,
        depth=st.integers(1, 8),
        min_path=st.sampled_from([0.0, 0.1, 0.4]),
        top_k=st.integers(1, 3),
    ),
    st.builds(
        Threshold,
        depth=st.integers(3, 8),
        min_path=st.just(0.0),
        min_token=st.sampled_from([0.6, 0.9]),
    ),
    st.builds(
        OptTree,
        nodes=st.integers(1, 8),
        threshold=st.sampled_from([0.0, 0.1, 0.5]),
        depth=st.integers(1, 8),
        top_k=st.just(1),
    ),
    st.builds(OptTree, nodes=st.just(1), threshold=st.sampled_from([0.0, 0.5])),
    st.builds(Sequoia, depth=st.integers(1, 8), accept=st.just("0.9")),
)


@settings(max_examples=300)
@given(seed=seeds, policy=any_chain, left=st.integers(1, 9), segment=st.integers(1, 4))
def test_a_chain_in_segments_is_the_chain_step_by_step(
    seed: int, policy: Policy, left: int, segment: int
) -> None:
    """A segment reaches past the node at which a sizer would have ended; the tree does not."""
    model = draft_model(seed, sharp=4.0)
    grown = grow(policy, model, left, segment)
    assert grown.growth is Growth.CHAIN
    assert grown.tree == grow(policy, model, left).tree


@settings(max_examples=100)
@given(seed=seeds, policy=any_policy, size=st.integers(0, 30))
def test_every_policy_cuts_an_arena_it_did_not_grow(seed: int, policy: Policy, size: int) -> None:
    """Look-ups grow best first and ask for no beam; a cascade mixes levels."""
    rng = np.random.default_rng(seed)
    candidates = Candidates()
    used: set[tuple[int, int]] = set()
    for _ in range(size):
        parent = int(rng.integers(-1, len(candidates)))
        token = int(rng.integers(8))
        if (parent, token) not in used:
            used.add((parent, token))
            candidates.extend(parent, [token], [float(np.log(rng.random()))])
    sizer = policy.start(SETTING)
    sizer.begin(Root(9, context=7, unseen=0, prepared=True, emitted=1))
    chosen = sizer.choose(candidates)
    assert len(TokenTree.select(candidates, chosen)) <= policy.max_nodes
    assert (size == 0) <= (chosen == [])


@pytest.mark.parametrize("kind", ["model", "ngram", "model+ngram"])
def test_the_text_is_the_targets_whatever_the_policy(builtin_bundle: FilePath, kind: str) -> None:
    """Real graphs, chain graph included, greedy and drawn; of most trees some nodes hold."""
    import edgespec_runtime
    from edgespec_export.family import sample_image

    model = edgespec_runtime.load(builtin_bundle, threads=1, check_hashes=False)

    assert model.draft is not None and model.draft.chain_steps > 0
    question = (sample_image(), "Describe this picture.")
    for temperature in (0.0, 1.0):
        asked: dict[str, Any] = {"temperature": temperature, "seed": 3, "max_new_tokens": 64}
        plain = model.generate(*question, draft="none", **asked)
        for name in COMPARED:
            ours = model.generate(*question, draft=kind, policy=name, **asked)
            assert ours.token_ids == plain.token_ids, (name, temperature)
            if kind != "ngram":
                assert ours.stats.accepted_length > 1.2, (name, temperature)


# --- How they are written -------------------------------------------------------------------------

COMPARED = ["chain", "tree", "threshold", "opt-tree", "sequoia", "sage"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("chain", FixedChain()),
        ("chain:depth=12,top_k=2", FixedChain(12, 2)),
        ("tree", FixedTree("4x2x1x1")),
        ("tree:widths=3x3", FixedTree("3x3")),
        ("threshold:depth=16,min_path=0,min_token=0.75", Threshold(16, 0.0, 0.75)),
        ("opt-tree", OptTree(60, 0.5, 10)),
        ("opt-tree:nodes=30,threshold=0.3", OptTree(30, 0.3)),
        ("sequoia:accept=0.65/0.12/0.05,cost=0.2", Sequoia(accept="0.65/0.12/0.05", cost=0.2)),
        ("sage:nodes=32,top_k=8", Sage(32, 8)),
    ],
)
def test_policies_are_parsed(text: str, expected: Policy) -> None:
    assert parse_policy(text) == expected


def test_the_size_of_a_fixed_tree_is_told() -> None:
    policy = FixedTree("4x2x1x3")
    assert (policy.top_k, policy.levels) == (4, 4)
    assert (policy.max_nodes, policy.max_drafted) == (4 + 8 + 8 + 24, 4 + 8 + 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sequoya", "unknown policy 'sequoya'; did you mean 'sequoia'?"),
        ("opttree", "did you mean 'opt-tree'?"),
        ("treshold", "did you mean 'threshold'?"),
        ("chains", "did you mean 'chain'?"),
        ("chain:width=2", "no setting 'width=2'; write KEY=VALUE with one of: depth, top_k"),
        ("chain:depth=0", "depth is 0"),
        ("tree:widths=", "widths is ''; write the children per node of every level"),
        ("tree:widths=4x0", "widths is '4x0'"),
        ("tree:widths=4,2", "no setting '2'"),
        ("tree:widths=4x-1", "widths is '4x-1'"),
        ("tree:widths=4x²", "widths is '4x²'"),
        ("tree:widths=many", "like 4x2x1x1"),
        ("threshold:min_path=1", "min_path is 1.0"),
        ("threshold:min_token=nan", "min_token is nan"),
        ("threshold:width=0", "width is 0"),
        ("opt-tree:threshold=-1", "threshold is -1.0; it must be a number >= 0"),
        ("opt-tree:threshold=inf", "threshold is inf"),
        ("opt-tree:nodes=0", "nodes is 0"),
        ("sequoia:accept=0.6/x", "accept is '0.6/x'; write the shares of the first"),
        ("sequoia:accept=0.6/0.6", "sum to no more than 1"),
        ("sequoia:accept=nan", "accept is 'nan'"),
        ("sequoia:accept=-0.1", "accept is '-0.1'"),
        ("sequoia:top_k=2,accept=0.5/0.2/0.1", "accept has 3 values, but top_k=2"),
        ("sequoia:cost=-1", "cost is -1.0"),
        ("sequoia:depth=many", "depth='many' is not a number"),
        ("sage:top_k=1", "the entropy of one probability says nothing"),
        ("sage:wider=-1", "wider is -1; it must be an integer >= 0"),
        ("sage:min_path=1", "min_path is 1.0"),
    ],
)
def test_wrong_policies_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_policy(text)
    assert message in str(error.value)


def test_every_policy_starts_with_its_defaults() -> None:
    for name in COMPARED:
        policy = parse_policy(name)
        sizer = policy.start(Setting())
        grown = Growing(sizer, draft_model(1))
        assert len(grown.tree) <= policy.max_nodes, name


def test_help_names_every_policy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgespec.cli import main

    monkeypatch.setenv("COLUMNS", "1000")  # no name is divided, whatever the terminal
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert f"tree policy: {', '.join(sorted(KINDS))};" in text


def test_the_page_names_every_policy_and_setting() -> None:
    from dataclasses import fields

    page = (FilePath(__file__).parent.parent / "docs" / "sizing.md").read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip(" `"): line for line in page.splitlines() if line[:1] == "|"}
    for name in COMPARED:
        assert all(f"`{field.name}`" in rows[name] for field in fields(KINDS[name])), name
