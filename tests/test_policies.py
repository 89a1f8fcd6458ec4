"""Tree policies against naive versions of the published rules, and how they are written."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgespec.errors import ConfigError
from edgespec.sizing import (
    Eagle2,
    Growth,
    Plain,
    Policy,
    RollingBestN,
    Root,
    Setting,
    parse_policy,
)
from edgespec.tree import ROOT, Candidates, TokenTree

Path = tuple[int, ...]
DraftModel = Callable[[Path], Sequence[float]]
VOCAB = 6


def draft_model(seed: int, ties: bool) -> DraftModel:
    """Log-probabilities of the next token after a path; with ``ties``, many are equal or zero."""

    def logprobs(path: Path) -> Sequence[float]:
        rng = np.random.default_rng([seed, *path])
        if ties:
            values = rng.choice([0.0, -0.5, -0.5, -2.0], size=VOCAB)
        else:
            logits = rng.standard_normal(VOCAB).astype(np.float32) * 2
            values = logits - np.log(np.exp(logits).sum())
        return [float(v) for v in values]

    return logprobs


def children(model: DraftModel, path: Path, top_k: int) -> list[tuple[int, float]]:
    values = model(path)
    return sorted(enumerate(values), key=lambda item: (-item[1], item[0]))[:top_k]


def root_with(depth_left: int) -> Root:
    return Root(depth_left, context=20, unseen=1, prepared=True, emitted=1)


def grow(
    policy: Policy, model: DraftModel, depth_left: int
) -> tuple[Candidates, list[list[Path]], list[int]]:
    """What GrowingDraft does step by step, with a function for a model; also the paths of every
    beam, and what is chosen."""
    sizer, root = policy.start(Setting()), root_with(depth_left)
    candidates = Candidates()
    paths: list[Path] = []

    def extend(parent: int) -> None:
        path = paths[parent] if parent != ROOT else ()
        proposed = children(model, path, policy.top_k)
        candidates.extend(parent, [t for t, _ in proposed], [v for _, v in proposed])
        paths.extend((*path, t) for t, _ in proposed)

    extend(ROOT)
    beams: list[list[Path]] = []
    level = 1
    while beam := sizer.beam(candidates, level, root):
        beams.append([paths[i] for i in beam])
        for index in beam:
            extend(index)
        level += 1
    return candidates, beams, sizer.choose(candidates)


def score(model: DraftModel, path: Path) -> float:
    total = 0.0
    for i, token in enumerate(path):
        total += min(model(path[:i])[token], 0.0)
    return total


def path_of(candidates: Candidates, index: int) -> Path:
    tokens: list[int] = []
    while index != ROOT:
        tokens.append(candidates.tokens[index])
        index = candidates.parents[index]
    return tuple(tokens[::-1])


seeds = st.integers(0, 2**32)


@settings(max_examples=80)
@given(seed=seeds, nodes=st.integers(1, 20), depth=st.integers(1, 4), top_k=st.integers(1, 4))
def test_eagle2_is_the_papers_rule(seed: int, nodes: int, depth: int, top_k: int) -> None:
    """Level by level the best ``top_k`` paths are expanded; of all, the best ``nodes`` stay."""
    model = draft_model(seed, ties=False)
    level: list[Path] = [()]
    everything: list[Path] = []
    expanded: list[list[Path]] = []
    for _ in range(depth):
        level = [(*p, t) for p in level for t, _ in children(model, p, top_k)]
        everything += level
        level = sorted(level, key=lambda p: -score(model, p))[:top_k]
        expanded.append(level)
    best = sorted(everything, key=lambda p: -score(model, p))[:nodes]

    policy = Eagle2(nodes, depth, top_k)
    candidates, beams, chosen = grow(policy, model, 99)
    assert beams == expanded[:-1]
    assert [path_of(candidates, i) for i in chosen] == best
    assert len(chosen) <= policy.max_nodes
    assert sum(map(len, beams)) <= policy.max_drafted


@settings(max_examples=80)
@given(
    seed=seeds,
    nodes=st.integers(1, 12),
    steps=st.integers(1, 4),
    top_k=st.integers(1, 4),
    width=st.integers(1, 6),
)
def test_rolling_is_best_n_of_everything_so_far(
    seed: int, nodes: int, steps: int, top_k: int, width: int
) -> None:
    """Each step keeps the best ``nodes`` of all proposals and expands those not yet expanded."""
    model = draft_model(seed, ties=False)
    pool: list[Path] = [(t,) for t, _ in children(model, (), top_k)]
    done: set[Path] = set()
    expanded: list[list[Path]] = []
    for _ in range(steps - 1):
        kept = sorted(pool, key=lambda p: -score(model, p))[:nodes]
        fresh = [p for p in kept if p not in done][:width]
        if not fresh:
            break
        expanded.append(fresh)
        done.update(fresh)
        pool += [(*p, t) for p in fresh for t, _ in children(model, p, top_k)]
    best = sorted(pool, key=lambda p: -score(model, p))[:nodes]

    policy = RollingBestN(nodes, steps, top_k, width)
    candidates, beams, chosen = grow(policy, model, 99)
    assert beams == expanded
    assert [path_of(candidates, i) for i in chosen] == best
    assert len(chosen) <= policy.max_nodes
    assert sum(map(len, beams)) <= policy.max_drafted


any_policy: st.SearchStrategy[Policy] = st.one_of(
    st.builds(
        Eagle2,
        nodes=st.integers(1, 20),
        depth=st.integers(1, 4),
        top_k=st.integers(1, 4),
        min_prob=st.sampled_from([0.0, 0.1, 0.6]),
    ),
    st.builds(
        RollingBestN,
        nodes=st.integers(1, 20),
        steps=st.integers(1, 4),
        top_k=st.integers(1, 4),
        width=st.integers(1, 5),
        min_prob=st.sampled_from([0.0, 0.1, 0.6]),
    ),
)


@settings(max_examples=150)
@given(seed=seeds, policy=any_policy, depth_left=st.integers(1, 5), ties=st.booleans())
def test_every_policy_keeps_its_contract(
    seed: int, policy: Policy, depth_left: int, ties: bool
) -> None:
    """Closed under ancestors whatever the ties; never deeper or larger than it said."""
    candidates, beams, chosen = grow(policy, draft_model(seed, ties), depth_left)
    tree = TokenTree.select(candidates, chosen)
    assert len(tree) <= policy.max_nodes
    assert max(candidates.depths) <= depth_left
    assert sum(map(len, beams)) <= policy.max_drafted
    assert all(len(set(beam)) == len(beam) for beam in beams)
    assert len({p for beam in beams for p in beam}) == sum(map(len, beams)), "expanded twice"
    floor = getattr(policy, "min_prob", 0.0)
    if floor:
        assert all(math.exp(candidates.scores[i]) > floor - 1e-12 for i in chosen)


def test_raw_logits_would_rank_otherwise() -> None:
    """Why scores are log-softmax: a path through a flat node must not beat a confident one."""
    candidates = Candidates()
    candidates.extend(ROOT, [0, 1], [math.log(0.6), math.log(0.4)])
    candidates.extend(0, [2, 3, 4], [math.log(0.3)] * 3)  # a flat node: raw logits may be large
    candidates.extend(1, [5], [math.log(0.99)])
    assert Eagle2(nodes=3).start(Setting()).choose(candidates) == [0, 1, 5]


def test_confidence_floor_may_leave_nothing() -> None:
    sizer = Eagle2(min_prob=0.9).start(Setting())
    candidates = Candidates()
    candidates.extend(ROOT, [1, 2], [math.log(0.5), math.log(0.4)])
    assert sizer.beam(candidates, 1, root_with(9)) == [] and sizer.choose(candidates) == []


@pytest.mark.parametrize(
    ("policy", "growth"),
    [
        (Plain(), Growth.NONE),
        (Eagle2(), Growth.STEPS),
        (Eagle2(top_k=3, beam_width=2), Growth.STEPS),
        (Eagle2(top_k=3, beam_width=1), Growth.CHAIN),
        (Eagle2(top_k=1), Growth.CHAIN),
        (RollingBestN(width=1), Growth.STEPS),  # its one node may be any kept one
    ],
)
def test_growth_is_a_chain_where_one_node_a_level_goes_on(policy: Policy, growth: Growth) -> None:
    sizer = policy.start(Setting())
    assert sizer.policy == policy
    assert {sizer.begin(root_with(left)) for left in (1, 5, 50)} == {growth}


def test_a_chain_ends_at_its_depth_and_below_its_floor() -> None:
    """A chain's beam is its tip: the first child of the level before, or nothing."""
    candidates = Candidates()
    candidates.extend(ROOT, [1, 2], [math.log(0.6), math.log(0.3)])
    for level in (1, 2, 3):
        tip = 2 * (level - 1)
        sizer = Eagle2(depth=4, top_k=2, beam_width=1, min_prob=0.3).start(Setting())
        # 0.6, 0.42, 0.29: the third level is below the floor.
        assert sizer.beam(candidates, level, root_with(9)) == ([tip] if level < 3 else [])
        assert sizer.beam(candidates, level, root_with(level)) == []
        candidates.extend(tip, [3, 4], [math.log(0.7), math.log(0.3)])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", Plain()),
        ("eagle2", Eagle2()),
        ("rolling", RollingBestN()),
        ("eagle2:", Eagle2()),
        ("eagle2:nodes=16,depth=8,top_k=2", Eagle2(16, 8, 2)),
        ("eagle2:min_prob=0.25", Eagle2(min_prob=0.25)),
        ("rolling:width=3,steps=2,nodes=5,top_k=1", RollingBestN(5, 2, 1, 3)),
    ],
)
def test_policies_are_parsed(text: str, expected: Policy) -> None:
    assert parse_policy(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("medusa", "unknown policy 'medusa'; there are: chain, eagle2, opt-tree, plain"),
        ("plain:nodes=2", "no setting 'nodes=2'; write KEY=VALUE with one of: none"),
        ("eagle2:beam_width=-1", "beam_width is -1"),
        ("", "unknown policy ''"),
        ("eagle2:width=3", "no setting 'width=3'"),
        ("rolling:depth=3", "no setting 'depth=3'"),
        ("eagle2:nodes", "no setting 'nodes'"),
        ("eagle2:nodes=", "nodes='' is not a number"),
        ("eagle2:nodes=many", "nodes='many' is not a number"),
        ("eagle2:nodes=2.5", "nodes='2.5' is not a number"),
        ("eagle2:nodes=0", "nodes is 0"),
        ("eagle2:depth=-1", "depth is -1"),
        ("eagle2:min_prob=1", "min_prob is 1.0"),
        ("rolling:min_prob=-0.5", "min_prob is -0.5"),
        ("rolling:min_prob=nan", "min_prob is nan"),
    ],
)
def test_wrong_policies_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_policy(text)
    assert message in str(error.value)
