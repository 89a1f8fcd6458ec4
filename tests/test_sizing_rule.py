"""The rule against every tree there could have been, and the price of a token it converges to."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgespec.sizing.rule import best_count, tree_order, worth_of_nodes
from edgespec.tree import Candidates, TokenTree

NODES = 9
Tree = tuple[list[int], list[float]]
"""Parents (an earlier index, or -1), and path probabilities."""

Curve = list[float]


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """Up to ``NODES`` candidates; shares of 1 and equal ones are frequent, so ties are too."""
    parents: list[int] = []
    reach: list[float] = []
    share = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(0.0, 1.0))
    for index in range(draw(st.integers(0, NODES))):
        parent = draw(st.integers(-1, index - 1))
        parents.append(parent)
        reach.append(draw(share) * (reach[parent] if parent >= 0 else 1.0))
    return parents, reach


@st.composite
def curves(draw: st.DrawFn, least: int = NODES + 1) -> Curve:
    """Milliseconds to verify 0..N nodes: straight, flat, a staircase, or anything positive."""
    kind = draw(st.sampled_from(["straight", "stairs", "anything"]))
    size = range(least)
    if kind == "straight":
        base, slope = draw(st.floats(0.1, 10.0)), draw(st.floats(0.0, 3.0))
        return [base + slope * n for n in size]
    if kind == "stairs":
        width, rise = draw(st.integers(2, 5)), draw(st.floats(0.1, 5.0))
        return [1.0 + rise * ((n + 1) // width) for n in size]
    return [draw(st.floats(0.1, 20.0)) for _ in size]


def closed_subsets(parents: Sequence[int]) -> list[tuple[int, ...]]:
    """Every subset of candidates in which no one is without its parent."""
    everything = range(len(parents))
    subsets = itertools.chain.from_iterable(
        itertools.combinations(everything, n) for n in range(len(parents) + 1)
    )
    return [
        subset for subset in subsets if all(parents[i] < 0 or parents[i] in subset for i in subset)
    ]


def ranked(reach: Sequence[float]) -> list[float]:
    return [reach[i] for i in tree_order(reach)]


rates = st.floats(0.0, 2.0)


# --- How many nodes -------------------------------------------------------------------------------


@settings(max_examples=250)
@given(tree=trees(), verify=curves(), rate=rates, limit=st.one_of(st.none(), st.floats(0.0, 25.0)))
def test_no_tree_is_worth_more_than_the_one_chosen(
    tree: Tree, verify: Curve, rate: float, limit: float | None
) -> None:
    check_best(tree, verify, rate, math.inf if limit is None else limit)


def check_best(tree: Tree, verify: Curve, rate: float, limit: float) -> None:
    """The chosen prefix against all trees, not all prefixes: the order must be right as well."""
    parents, reach = tree
    count, tokens = best_count(ranked(reach), verify, rate, limit)
    assert tokens == pytest.approx(sum(ranked(reach)[:count]))
    assert count == 0 or verify[count] <= limit
    worths = [
        sum(reach[i] for i in subset) - rate * verify[len(subset)]
        for subset in closed_subsets(parents)
        if not subset or verify[len(subset)] <= limit
    ]
    assert tokens - rate * verify[count] == pytest.approx(max(worths), abs=1e-9)


@settings(max_examples=150)
@given(tree=trees())
def test_in_tree_order_parents_come_first_whatever_the_ties(tree: Tree) -> None:
    parents, reach = tree
    order = tree_order(reach)
    assert sorted(order) == list(range(len(reach)))
    assert all(a >= b for a, b in itertools.pairwise(ranked(reach)))
    assert all(p < 0 or order.index(p) < order.index(i) for i, p in enumerate(parents))
    candidates = Candidates()
    for index, parent in enumerate(parents):
        candidates.extend(parent, [index], [0.0])
    for count in range(len(order) + 1):
        TokenTree.select(candidates, order[:count])  # refuses orphans


def test_a_step_that_loses_is_climbed_where_the_next_ones_win() -> None:
    """Rows up to a tile cost nothing more: the margins are bad, then good (a staircase)."""
    verify = [2.0, 2.0, 5.0, 5.0, 5.0, 5.0]
    chances = [0.9, 0.8, 0.7, 0.7, 0.6]
    assert best_count(chances, verify, 0.5)[0] == 5
    assert best_count(chances, verify, 1.0) == (1, 0.9)
    assert best_count(chances, verify, 0.5, limit_ms=4.9) == (1, 0.9)


def test_nothing_is_verified_where_nothing_pays() -> None:
    assert best_count([0.3, 0.2], [1.0, 2.0, 3.0], 0.5) == (0, 0.0)
    assert best_count([], [1.0], 0.5) == (0, 0.0)
    assert best_count([1.0, 1.0], [1.0, 1.0, 1.0], 0.5, limit_ms=0.5) == (0, 0.0), "too slow"


def test_a_tie_is_the_smaller_tree() -> None:
    assert best_count([0.5, 0.5, 0.5], [1.0, 2.0, 3.0, 4.0], 0.5) == (0, 0.0)
    assert best_count([0.9, 0.0], [1.0, 1.0, 1.0], 0.5) == (1, 0.9)


def test_no_more_than_the_curve_tells() -> None:
    assert best_count([1.0] * 9, [1.0, 1.0, 1.0], 0.5) == (2, 2.0)


# --- What nodes still to be drafted are worth -----------------------------------------------------


@given(
    gains=st.lists(st.floats(0.0, 1.0), max_size=6),
    there=st.integers(0, 8),
    slope=st.floats(0.0, 1.0),
    rate=rates,
)
def test_on_a_straight_curve_worth_is_the_exact_gain(
    gains: list[float], there: int, slope: float, rate: float
) -> None:
    """What ``best_count`` gains by the new nodes, where those already there are all worth it."""
    verify = [3.0 + slope * n for n in range(20)]
    gains = sorted(gains, reverse=True)
    worth = worth_of_nodes(gains, there, verify, rate)

    def value(chances: list[float]) -> float:
        count, tokens = best_count(chances, verify, rate)
        return tokens - rate * verify[count]

    sure = [max(1.0, rate * slope + 0.1)] * there
    assert worth == pytest.approx(value(sure + gains) - value(sure), abs=1e-9)


def test_nodes_that_cost_more_than_they_bring_are_worth_nothing() -> None:
    verify = [2.0, 3.0, 4.0, 5.0]
    assert worth_of_nodes([0.5, 0.4], 0, verify, 0.5) == 0.0
    assert worth_of_nodes([0.9, 0.4], 1, verify, 0.5) == pytest.approx(0.4)
    assert worth_of_nodes([], 1, verify, 0.5) == 0.0


def test_nodes_beyond_the_curve_are_worth_nothing() -> None:
    verify = [2.0, 2.0, 2.0]
    assert worth_of_nodes([0.9, 0.8, 0.7], 1, verify, 0.5) == pytest.approx(0.9)
    assert worth_of_nodes([0.9], 2, verify, 0.5) == 0.0
    assert worth_of_nodes([0.9], 7, verify, 0.5) == 0.0


# --- The rate -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_the_rate_climbs_to_the_best_there_is(seed: int) -> None:
    """Dinkelbach's iteration, rate <- tokens / time of the trees chosen at that rate: it never
    falls, ends after a few steps, and no number of nodes fixed for all rounds is faster."""
    rng = np.random.default_rng(seed)
    steps = rng.exponential(1.0, 17) * (rng.random(17) < 0.4)
    verify = (2.0 + np.cumsum(steps)).tolist()
    rounds = [sorted(rng.beta(0.4, 1.0, 16).tolist(), reverse=True) for _ in range(50)]
    drafting = 1.5

    def speed(counts: Sequence[int]) -> float:
        tokens = sum(1.0 + sum(chances[:n]) for chances, n in zip(rounds, counts, strict=True))
        return float(tokens / sum(drafting + verify[n] for n in counts))

    rate, history = 0.0, [0.0]
    for _ in range(30):
        rate = speed([best_count(chances, verify, rate)[0] for chances in rounds])
        history.append(rate)
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(history))
    assert history[-1] == pytest.approx(history[10], abs=1e-12), "it converges in a few steps"
    fixed = max(speed([n] * len(rounds)) for n in range(17))
    assert history[-1] >= fixed
    for _ in range(100):  # nor is any other choice
        counts = rng.integers(0, 17, len(rounds)).tolist()
        assert speed(counts) < history[-1]


def test_where_all_rounds_are_alike_the_rate_is_the_best_fixed_size() -> None:
    chances, verify = [0.9, 0.7, 0.4, 0.2, 0.1], [2.0, 2.1, 2.2, 4.0, 4.1, 4.2]
    rate = 0.0
    for _ in range(10):
        count, tokens = best_count(chances, verify, rate)
        rate = (1.0 + tokens) / verify[count]
    speeds = [(1.0 + sum(chances[:n])) / verify[n] for n in range(6)]
    assert rate == pytest.approx(max(speeds)) and count == int(np.argmax(speeds))
