"""The verification walk and the stop rules."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgespec.acceptance import StopRules, walk
from edgespec.tree import EMPTY, TokenTree
from tests.support.fakes import random_tree


def test_empty_tree_brings_the_bonus_alone() -> None:
    verdict = walk(EMPTY, lambda row, path: 42)
    assert verdict.rows == () and verdict.tokens == (42,)


def test_walk_follows_the_target_and_asks_each_node_once() -> None:
    tree = TokenTree.build([5, 6, 7, 8, 9], [0, 0, 2, 3, 2])
    wishes = {0: 6, 2: 7, 3: 1}
    asked: list[tuple[int, tuple[int, ...]]] = []

    def pick(row: int, path: Sequence[int]) -> int:
        asked.append((row, tuple(path)))
        return wishes[row]

    verdict = walk(tree, pick)
    assert verdict.rows == (2, 3)
    assert verdict.tokens == (6, 7, 1)
    assert asked == [(0, ()), (2, (6,)), (3, (6, 7))]


def test_a_leaf_reached_still_brings_its_bonus() -> None:
    verdict = walk(TokenTree.build([3, 3], [0, 1]), lambda row, path: 3)
    assert verdict.rows == (1, 2) and verdict.tokens == (3, 3, 3)


def test_a_token_elsewhere_in_the_tree_is_not_accepted() -> None:
    tree = TokenTree.build([1, 2], [0, 1])  # 2 hangs below 1, not below the root
    assert walk(tree, lambda row, path: 2).rows == ()


@given(st.integers(0, 2**32), st.integers(0, 15))
def test_the_text_is_the_targets_whatever_the_tree(seed: int, nodes: int) -> None:
    rng = np.random.default_rng(seed)
    tree = random_tree(rng, nodes, 3)

    def target(path: Sequence[int]) -> int:
        return int(np.random.default_rng([seed, *path]).integers(3))

    verdict = walk(tree, lambda row, path: target(path))
    for i, token in enumerate(verdict.tokens):
        assert token == target(verdict.tokens[:i])
    assert len(verdict.tokens) == len(verdict.rows) + 1
    assert [tree.tokens[row - 1] for row in verdict.rows] == list(verdict.tokens[:-1])
    assert list(verdict.rows) == sorted(verdict.rows)
    last = verdict.rows[-1] if verdict.rows else 0
    assert tree.child(last, verdict.tokens[-1]) is None


def test_stop_at_end_of_sequence() -> None:
    rules = StopRules([7, 9], 10)
    assert [rules.push(t) for t in (1, 2, 9)] == [None, None, "eos"]
    assert rules.tokens_left == 7


def test_stop_at_the_length() -> None:
    rules = StopRules([7], 3)
    assert [rules.push(t) for t in (1, 1, 1)] == [None, None, "length"]
    assert rules.tokens_left == 0


def test_stop_at_a_string() -> None:
    rules = StopRules([], 10, lambda token: token == 5)
    assert [rules.push(t) for t in (1, 5)] == [None, "stop"]


def test_end_of_sequence_comes_first_and_carries_no_text() -> None:
    told: list[int] = []

    def listen(token: int) -> bool:
        told.append(token)
        return True

    assert StopRules([4], 1, listen).push(4) == "eos"
    assert told == []
    assert StopRules([4], 1, listen).push(3) == "stop"
    assert told == [3]


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_end_of_sequence_on_the_last_token_is_no_length_stop(limit: int) -> None:
    rules = StopRules([0], limit)
    reasons = [rules.push(1) for _ in range(limit - 1)] + [rules.push(0)]
    assert reasons == [None] * (limit - 1) + ["eos"]


def test_no_end_of_sequence_token_is_fine() -> None:
    assert StopRules([], 2).push(0) is None
