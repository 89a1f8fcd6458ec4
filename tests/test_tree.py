"""Token trees: order, closure under ancestors, masks, depths and paths."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgespec.tree import EMPTY, ROOT, Candidates, TokenTree
from tests.support.fakes import random_tree


def grown(rows: list[tuple[int, int, float]]) -> Candidates:
    candidates = Candidates()
    for parent, token, logprob in rows:
        candidates.extend(parent, [token], [logprob])
    return candidates


# Log-probabilities with many ties: certain children (0), a hair above 0 (rounding), equal values.
LOGPROBS = st.sampled_from([0.0, 0.0, 1e-7, -0.0, -0.5, -0.5, -1.0, -3.0, -np.inf])


@st.composite
def arenas(draw: st.DrawFn) -> Candidates:
    """Candidates with any shape and many ties; siblings carry different tokens."""
    candidates = Candidates()
    for _ in range(draw(st.integers(0, 8))):
        parent = draw(st.integers(ROOT, len(candidates) - 1))
        if parent in candidates.parents:
            continue
        logprobs = draw(st.lists(LOGPROBS, min_size=1, max_size=4))
        tokens = draw(st.permutations(range(len(logprobs))))
        candidates.extend(parent, tokens, logprobs)
    return candidates


def test_golden_tree() -> None:
    #        root
    #       /    \
    #    5 (1)   6 (2)
    #    /  \       \
    # 7 (3) 5 (5)  7 (4)
    tree = TokenTree.build([5, 6, 7, 7, 5], [0, 0, 1, 2, 1])
    assert tree.depths == (1, 1, 2, 2, 2)
    assert [tree.path(row) for row in range(6)] == [[], [5], [6], [5, 7], [6, 7], [5, 5]]
    expected = np.array(
        [
            [1, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
            [1, 0, 1, 0, 0, 0],
            [1, 1, 0, 1, 0, 0],
            [1, 0, 1, 0, 1, 0],
            [1, 1, 0, 0, 0, 1],
        ],
        dtype=np.bool_,
    )
    np.testing.assert_array_equal(tree.mask(), expected)
    assert tree.child(0, 6) == 2 and tree.child(1, 5) == 5 and tree.child(2, 5) is None
    assert len(tree) == 5


def test_empty_tree() -> None:
    assert len(EMPTY) == 0 and EMPTY.depths == () and EMPTY.path(0) == []
    assert EMPTY.mask().tolist() == [[True]]
    assert EMPTY.child(0, 3) is None


def test_scores_accumulate_and_depths_count() -> None:
    candidates = grown([(ROOT, 1, -0.5), (0, 2, -0.25), (1, 3, -1.0), (ROOT, 4, -2.0)])
    assert candidates.scores == [-0.5, -0.75, -1.75, -2.0]
    assert candidates.depths == [1, 2, 3, 1]


def test_log_probability_above_zero_cannot_lift_a_child_over_its_parent() -> None:
    candidates = grown([(ROOT, 1, -0.5), (0, 2, 1e-6)])
    assert candidates.scores[1] == candidates.scores[0]
    assert candidates.ranked() == [0, 1]


def test_ties_go_to_the_shallower_and_then_to_the_earlier_node() -> None:
    candidates = grown(
        [(ROOT, 1, -1.0), (ROOT, 2, -1.0), (0, 3, 0.0), (1, 4, 0.0), (ROOT, 5, -1.0)]
    )
    assert candidates.ranked() == [0, 1, 4, 2, 3]
    assert candidates.ranked([3, 4, 2]) == [4, 2, 3]


@given(arenas(), st.integers(0, 20))
def test_every_best_first_cut_is_closed_under_ancestors(candidates: Candidates, n: int) -> None:
    ranked = candidates.ranked()
    assert sorted(ranked) == list(range(len(candidates)))
    chosen = ranked[:n]
    seen = {ROOT}
    for index in chosen:
        assert candidates.parents[index] in seen
        seen.add(index)
    tree = TokenTree.select(candidates, chosen)
    assert tree.tokens == tuple(candidates.tokens[i] for i in chosen)
    assert tree.depths == tuple(candidates.depths[i] for i in chosen)
    keys = [(-candidates.scores[i], candidates.depths[i], i) for i in chosen]
    assert keys == sorted(keys)


@given(st.integers(0, 2**32), st.integers(0, 15))
def test_mask_is_the_set_of_ancestors(seed: int, nodes: int) -> None:
    tree = random_tree(np.random.default_rng(seed), nodes, 5)
    mask = tree.mask()
    for row in range(nodes + 1):
        ancestors, at = {row, 0}, row
        while at:
            at = tree.parents[at - 1]
            ancestors.add(at)
        assert set(np.flatnonzero(mask[row]).tolist()) == ancestors
        depth = tree.depths[row - 1] if row else 0
        assert len(tree.path(row)) == depth == mask[row].sum() - 1
    # Ancestors first: nothing above the diagonal, so a causal kernel hides nothing it needs.
    assert not np.triu(mask, 1).any()


@given(st.integers(0, 2**32), st.integers(0, 15))
def test_children_lead_along_every_path(seed: int, nodes: int) -> None:
    tree = random_tree(np.random.default_rng(seed), nodes, 5)
    for row in range(nodes + 1):
        at = 0
        for token in tree.path(row):
            child = tree.child(at, token)
            assert child is not None
            at = child
        assert at == row


def test_mask_is_written_into_a_view() -> None:
    tree = TokenTree.build([1, 2], [0, 1])
    whole = np.ones((3, 7), dtype=np.bool_)
    tree.write_mask(whole[:, 4:])
    assert whole[:, :4].all()
    np.testing.assert_array_equal(whole[:, 4:], tree.mask())


@pytest.mark.parametrize(
    ("tokens", "parents", "message"),
    [
        ([1, 2], [0], "2 tokens but 1 parents"),
        ([1], [1], "row 1 has parent 1"),
        ([1, 2], [2, 0], "row 1 has parent 2"),
        ([1], [-1], "row 1 has parent -1"),
        ([4, 4], [0, 0], "row 2 repeats token 4 below row 0"),
    ],
)
def test_what_is_no_tree_is_refused(tokens: list[int], parents: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenTree.build(tokens, parents)


def test_orphans_are_refused() -> None:
    candidates = grown([(ROOT, 1, -1.0), (0, 2, -1.0), (1, 3, 0.0)])
    for chosen in ([1], [0, 2], [1, 0], [2, 1, 0]):
        with pytest.raises(ValueError, match="without \\(or before\\) its parent"):
            TokenTree.select(candidates, chosen)


def test_children_need_a_score_each() -> None:
    with pytest.raises(ValueError):
        Candidates().extend(ROOT, [1, 2], [0.0])
