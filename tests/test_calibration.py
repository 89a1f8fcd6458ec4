"""From confidence to acceptance: learnt from labels that are free, and only from those."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgespec.sizing.calibration import FEATURES, Calibrator, Paths, Reliability, features
from edgespec.tree import ROOT, Candidates

Floats = npt.NDArray[np.float64]
Acceptance = Callable[[float, int, int], float]
"""The draft's probability, depth and rank -> probability that the target agrees."""
NOBODY = 99
"""The target's token where it is no candidate."""


def logistic(z: float) -> float:
    return 1.0 / (1.0 + math.exp(-z))


def logit(p: float) -> float:
    return math.log(p / (1.0 - p))


def overconfident(q: float, depth: int, rank: int) -> float:
    """Too sure of itself, the more the deeper; siblings are worth less than it says."""
    return logistic(0.6 * logit(q) - 0.2 * depth - 0.3 - 0.4 * math.log1p(rank))


def modest(q: float, depth: int, rank: int) -> float:
    """Better than it says."""
    return logistic(0.8 * logit(q) + 0.8 - 2.5 * math.log1p(rank))


def honest(q: float, depth: int, rank: int) -> float:
    return q


# --- A draft and a target that agree as a law says ------------------------------------------------


class World:
    """Random trees, three children a family, and what the target answers below each node."""

    def __init__(self, seed: int, law: Acceptance) -> None:
        self.rng, self.law = np.random.default_rng(seed), law
        self.known = [self.tree() for _ in range(100)]
        self.truths = [self.truth(candidates) for candidates in self.known]

    def tree(self) -> Candidates:
        """Four levels of the two best paths."""
        candidates = Candidates()
        beam = [ROOT]
        for _ in range(4):
            first = len(candidates)
            for parent in beam:
                shares = np.sort(self.rng.dirichlet([1.5, 0.5, 0.3, 0.3]))[::-1]
                candidates.extend(parent, [0, 1, 2], np.log(np.clip(shares[:3], 1e-3, 1)).tolist())
            fresh = range(first, len(candidates))
            beam = sorted(fresh, key=lambda i: -candidates.scores[i])[:2]
        return candidates

    def truth(self, candidates: Candidates) -> list[float]:
        """Probability that the target agrees with a candidate whose parent it agreed with."""
        found, index = [], 0
        for size in candidates.families:
            for rank in range(size):
                place = index + rank
                own = math.exp(candidates.scores[place] - above(candidates, place))
                depth = candidates.depths[place]
                found.append(self.law(min(max(own, 1e-6), 1 - 1e-6), depth, rank))
            assert sum(found[index:]) < 1.01, "siblings exclude each other"
            index += size
        return found

    def answers(self, candidates: Candidates, truth: Sequence[float]) -> dict[int, int]:
        """The target's token below the root and below every candidate."""
        below: dict[int, int] = {i: NOBODY for i in range(ROOT, len(candidates))}
        index = 0
        for size in candidates.families:
            drawn = self.rng.random()
            for place in range(index, index + size):
                drawn -= truth[place]
                if drawn < 0:
                    below[candidates.parents[index]] = candidates.tokens[place]
                    break
            index += size
        return below

    def teach(self, calibrator: Calibrator, greedy: bool = True) -> None:
        """One round: a tree, wholly verified, and what is learnt of it."""
        number = self.rng.integers(len(self.known))
        candidates = self.known[number]
        paths = Paths(calibrator)
        paths.extend(candidates)
        below = self.answers(candidates, self.truths[number])
        chosen = list(range(len(candidates)))
        rows, tokens = walked(candidates, below)
        named = [below[i] for i in range(ROOT, len(candidates))] if greedy else None
        paths.learn(candidates, chosen, rows, named, tokens)

    def error(self, calibrator: Calibrator, trees: int = 300) -> float:
        """ECE of predictions for trees not seen before, against the law itself."""
        found = Reliability()
        for _ in range(trees):
            candidates = self.tree()
            found.add(np.array(edges(calibrator, candidates)), np.array(self.truth(candidates)))
        return found.ece


def above(candidates: Candidates, index: int) -> float:
    parent = candidates.parents[index]
    return candidates.scores[parent] if parent != ROOT else 0.0


def walked(candidates: Candidates, below: dict[int, int]) -> tuple[list[int], list[int]]:
    """Accepted rows and the target's tokens, the bonus last; row r is candidate r - 1."""
    rows: list[int] = []
    tokens, at = [below[ROOT]], ROOT
    while True:
        children = [
            i
            for i, parent in enumerate(candidates.parents)
            if parent == at and candidates.tokens[i] == tokens[-1]
        ]
        if not children:
            return rows, tokens
        at = children[0]
        rows.append(at + 1)
        tokens.append(below[at])


def edges(calibrator: Calibrator, candidates: Candidates) -> list[float]:
    """Every candidate's acceptance given its parent's."""
    reach = Paths(calibrator).extend(candidates)
    return [
        r / (reach[p] if p != ROOT else 1.0) for r, p in zip(reach, candidates.parents, strict=True)
    ]


def taught(world: World, nodes: int, greedy: bool = True) -> Calibrator:
    """A calibrator that has seen ``nodes`` labels below accepted nodes."""
    calibrator = Calibrator()
    while calibrator.reliability.nodes < nodes:
        world.teach(calibrator, greedy)
    return calibrator


# --- What it learns -------------------------------------------------------------------------------


@pytest.mark.parametrize("law", [overconfident, modest, honest])
@pytest.mark.parametrize("greedy", [True, False], ids=["greedy", "sampled"])
def test_two_thousand_labels_make_predictions_honest(law: Acceptance, greedy: bool) -> None:
    check_learns(law, greedy)


def check_learns(law: Acceptance, greedy: bool) -> None:
    world = World(5, law)
    calibrator = taught(world, 2000, greedy)
    error, before = world.error(calibrator), world.error(Calibrator())
    assert error < 0.05
    assert error < before or before < 0.01, "the prior was right: nothing to gain"


def test_the_laws_of_this_file_need_learning() -> None:
    for law, least in ((overconfident, 0.1), (modest, 0.05)):
        assert World(1, law).error(Calibrator()) > least


def test_before_any_label_acceptance_is_the_drafts_probability() -> None:
    candidates = World(2, honest).tree()
    reach = Paths(Calibrator()).extend(candidates)
    assert reach == pytest.approx([math.exp(score) for score in candidates.scores], rel=1e-9)


def test_a_few_labels_move_little() -> None:
    """Two rounds of bad luck do not make a sure draft a hopeless one; a hundred do."""
    calibrator = Calibrator()
    candidates = Candidates()
    candidates.extend(ROOT, [1, 2], [math.log(0.9), math.log(0.05)])
    for _ in range(2):
        refuse(calibrator, candidates)
    assert 0.5 < edges(calibrator, candidates)[0] < 0.85
    for _ in range(100):
        refuse(calibrator, candidates)
    assert edges(calibrator, candidates)[0] < 0.2


def refuse(calibrator: Calibrator, candidates: Candidates) -> None:
    paths = Paths(calibrator)
    paths.extend(candidates)
    paths.learn(candidates, list(range(len(candidates))), (), None, (NOBODY,))


def test_what_was_learnt_fades_when_the_draft_changes() -> None:
    before, after = World(3, overconfident), World(4, modest)
    calibrator = taught(before, 2000)
    shocked = after.error(calibrator)
    for _ in range(3000):
        after.teach(calibrator)
    assert shocked > 0.1
    assert after.error(calibrator) < 0.035, "twice that where nothing fades"


def test_what_was_learnt_of_a_node_is_soon_outweighed() -> None:
    """One kind of node: 10,000 of them of which four fifths held, then 1,500 of which a fifth."""
    calibrator, x = Calibrator(), np.repeat(features(family_tree())[:1], 10, axis=0)
    luck = np.array([1.0] * 8 + [0.0] * 2)
    for number in range(1150):
        held = luck if number < 1000 else 1.0 - luck
        calibrator.learn(x, np.full(10, 0.5), held, np.ones(10))
    assert logistic(float(x[0] @ calibrator.weights)) < 0.55, "0.72 of them all held"


def test_an_easy_life_is_learnt_from_less_often_but_never_not_at_all() -> None:
    young, old = Calibrator(), Calibrator()
    old.reliability.nodes = 1_000_000
    assert all(young.due(2.0, 2) for _ in range(100))
    due = sum(old.due(2.0, 2) for _ in range(1000))
    assert 10 < due < 500


def test_a_draft_that_became_another_is_noticed_and_learnt_anew() -> None:
    """After a long time as expected, rounds bring much less than they should."""
    before, after = World(3, modest), World(4, hopeless)
    calibrator = taught(before, 2000)
    assert not calibrator.surprised
    shocked = after.error(calibrator)
    for _ in range(100):
        after.teach(calibrator)
    assert after.error(calibrator) < 0.3 * shocked
    for _ in range(200):
        after.teach(calibrator)
    assert not calibrator.surprised, "it is what is expected now"


def hopeless(q: float, depth: int, rank: int) -> float:
    return 0.05 * q


# --- Which nodes are labels -----------------------------------------------------------------------


class Notebook(Calibrator):
    """Keeps what it is taught."""

    def __init__(self) -> None:
        super().__init__()
        self.lessons: list[tuple[Floats, Floats, Floats, Floats]] = []

    def learn(self, x: Floats, predicted: Floats, y: Floats, weight: Floats) -> None:
        self.lessons.append((x, predicted, y, weight))
        super().learn(x, predicted, y, weight)


def family_tree() -> Candidates:
    """0 and 1 below the root, 2 and 3 below 0, 4 and 5 below 1, 6 below 2, 7 below 3."""
    candidates = Candidates()
    for parent, tokens in ((ROOT, [10, 11]), (0, [12, 13]), (1, [14, 15]), (2, [16]), (3, [17])):
        candidates.extend(parent, tokens, [math.log(0.6), math.log(0.3)][: len(tokens)])
    return candidates


CHOSEN = [0, 2, 1]
"""Rows 1, 2, 3."""
EVERY_ROW = (10, 13, 16, 14)
"""The target's tokens below the root, 0, 2 and 1: it agrees with 0, 3, 6 and 4."""


def check_labels(
    expected: Mapping[int, tuple[bool, float | None]],
    rows: Sequence[int],
    tokens: Sequence[int],
    named: Sequence[int] | None = None,
    eos: frozenset[int] = frozenset(),
) -> None:
    """``expected``: outcome and weight of every labelled candidate; None is its parent's reach."""
    candidates, notebook = family_tree(), Notebook()
    paths = Paths(notebook, eos)
    reach = list(paths.extend(candidates))
    paths.learn(candidates, CHOSEN, rows, named, tokens)
    [(x, predicted, y, weight)] = notebook.lessons
    assert x.tolist() == features(candidates)[list(expected)].tolist()
    assert y.tolist() == [float(outcome) for outcome, _ in expected.values()]
    parents = [candidates.parents[i] for i in expected]
    reaches = [reach[parent] if parent != ROOT else 1.0 for parent in parents]
    weights = [r if w is None else w for r, (_, w) in zip(reaches, expected.values(), strict=True)]
    assert weight.tolist() == pytest.approx(weights)
    ours = [reach[i] / r for i, r in zip(expected, reaches, strict=True)]
    assert predicted.tolist() == pytest.approx(ours)
    assert notebook.reliability.nodes == weights.count(1.0), "only what is below accepted nodes"


def test_greedy_decoding_labels_the_children_of_every_row() -> None:
    """Children that were not chosen too; below rows that were not accepted they weigh less. 7 has
    no label: its parent 3 was not verified."""
    expected = {
        0: (True, 1.0), 1: (False, 1.0),
        2: (False, 1.0), 3: (True, 1.0),
        4: (True, None), 5: (False, None),
        6: (True, None),
    }  # fmt: skip
    check_labels(expected, rows=(1,), tokens=(10, 13), named=EVERY_ROW)


def test_sampling_labels_the_children_of_visited_rows_alone() -> None:
    """What the target would have drawn elsewhere is not known."""
    check_labels_sampled()


def check_labels_sampled() -> None:
    expected = {0: (True, 1.0), 1: (False, 1.0), 2: (True, 1.0), 3: (False, 1.0), 6: (False, 1.0)}
    check_labels(expected, rows=(1, 2), tokens=(10, 12, NOBODY))
    check_labels({0: (False, 1.0), 1: (False, 1.0)}, rows=(), tokens=(NOBODY,))


@pytest.mark.parametrize("named", [None, EVERY_ROW])
def test_there_are_no_labels_at_the_end_of_a_text(named: tuple[int, ...] | None) -> None:
    """A token that ends the answer is worth nothing as a node, nor is what is below it."""
    expected: dict[int, tuple[bool, float | None]] = {1: (False, 1.0)}
    if named:
        expected |= {4: (True, None), 5: (False, None)}
    check_labels(expected, rows=(1,), tokens=(10, 13), named=named, eos=frozenset([10]))


def test_nothing_below_the_end_of_a_text_is_worth_anything() -> None:
    candidates = family_tree()
    whole = Paths(Calibrator()).extend(candidates)
    cut = Paths(Calibrator(), frozenset([12])).extend(candidates)
    assert [i for i, value in enumerate(cut) if value == 0.0] == [2, 6]
    assert [v for v in cut if v] == [v for i, v in enumerate(whole) if i not in (2, 6)]


# --- Path probabilities ---------------------------------------------------------------------------

log_q = st.one_of(st.floats(-12.0, 0.0), st.sampled_from([0.0, -1e-9, -0.7, -math.inf, math.nan]))


@st.composite
def arenas(draw: st.DrawFn) -> Candidates:
    """Families below random nodes; certain, impossible and broken log-probabilities among them."""
    candidates = Candidates()
    for _ in range(draw(st.integers(1, 6))):
        parent = draw(st.integers(ROOT, len(candidates) - 1))
        children = draw(st.lists(log_q, min_size=1, max_size=4))
        candidates.extend(parent, list(range(len(children))), children)
    return candidates


def calibrated(values: Sequence[float]) -> Calibrator:
    calibrator = Calibrator()
    calibrator.weights = np.array(values)
    return calibrator


weights = st.lists(st.floats(-2.0, 2.0), min_size=len(FEATURES), max_size=len(FEATURES)).map(
    calibrated
)


@settings(max_examples=200)
@given(candidates=arenas(), calibrator=weights, cut=st.integers(0, 6))
def test_predictions_are_the_regression_on_the_features(
    candidates: Candidates, calibrator: Calibrator, cut: int
) -> None:
    """The scalar path while a tree grows, and the arrays that are learnt from, say the same."""
    paths = Paths(calibrator)
    paths.extend(first_families(candidates, cut))
    reach = paths.extend(candidates)
    logits = features(candidates) @ calibrator.weights
    for index, parent in enumerate(candidates.parents):
        up = reach[parent] if parent != ROOT else 1.0
        expected = up / (1.0 + math.exp(min(-logits[index], 30.0)))
        assert reach[index] == pytest.approx(expected, rel=1e-9, abs=1e-300)


@settings(max_examples=100)
@given(candidates=arenas(), values=st.lists(st.floats(-50.0, 50.0), min_size=7, max_size=7))
def test_no_child_is_likelier_than_its_parent(candidates: Candidates, values: list[float]) -> None:
    reach = Paths(calibrated(values), frozenset([2])).extend(candidates)
    for index, parent in enumerate(candidates.parents):
        assert 0.0 <= reach[index] <= (reach[parent] if parent != ROOT else 1.0)


def first_families(candidates: Candidates, count: int) -> Candidates:
    """The tree as it was when it had so many families."""
    young, index = Candidates(), 0
    for size in candidates.families[:count]:
        parent, end = candidates.parents[index], index + size
        young.extend(parent, candidates.tokens[index:end], [0.0] * size)
        young.scores[index:end] = candidates.scores[index:end]
        assert young.depths[index:end] == candidates.depths[index:end]
        index = end
    return young


def test_nodes_that_a_cascade_lifts_are_judged_anew() -> None:
    """N-grams that agree with the model raise scores of nodes that were judged before."""
    candidates, paths = family_tree(), Paths(Calibrator())
    paths.extend(candidates)
    lifted = family_tree()
    candidates.scores[:] = [score / 2 for score in candidates.scores]
    lifted.scores[:] = candidates.scores
    assert paths.extend(candidates) == Paths(Calibrator()).extend(lifted)
    assert paths.reach[0] > 0.7


# --- Reliability ----------------------------------------------------------------------------------


@given(
    pairs=st.lists(
        st.tuples(st.one_of(st.floats(0.0, 1.0), st.sampled_from([0.0, 0.1, 0.3, 1.0])),
                  st.booleans()),
        min_size=1, max_size=40,
    ),
    at=st.integers(0, 40),
)  # fmt: skip
def test_reliability_is_the_textbooks(pairs: list[tuple[float, bool]], at: int) -> None:
    found = Reliability()
    for part in (pairs[:at], pairs[at:]):  # in any portions
        found.add(np.array([p for p, _ in part]), np.array([float(y) for _, y in part]))
    error, diagram = 0.0, []
    for low in range(10):
        inside = [(p, y) for p, y in pairs if min(int(p * 10), 9) == low]
        if inside:
            said = sum(p for p, _ in inside) / len(inside)
            was = sum(y for _, y in inside) / len(inside)
            error += len(inside) / len(pairs) * abs(said - was)
            diagram.append([said, was, len(inside)])
    brier = sum((p - y) ** 2 for p, y in pairs) / len(pairs)
    assert found.ece == pytest.approx(error, abs=1e-12)
    assert found.brier == pytest.approx(brier, abs=1e-12)
    shown: dict[str, Any] = found.as_json()
    assert shown["nodes"] == len(pairs)
    assert (shown["ece"], shown["brier"]) == (found.ece, found.brier)
    for ours, theirs in zip(shown["diagram"], diagram, strict=True):
        assert ours == pytest.approx(theirs)


def test_nothing_seen_is_no_error() -> None:
    empty = Reliability()
    assert (empty.ece, empty.brier, empty.as_json()["diagram"]) == (0.0, 0.0, [])
