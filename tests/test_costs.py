"""What a round will cost: a profile's curves, and how the device's drift is followed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgespec.latency import Costs, Curve
from edgespec.sizing.costs import CONTEXT_STEP, REFRESH, UNSEEN, RoundCosts
from edgespec.sizing.drift import Drift, Factor
from tests.support.profiles import costs

NODES, WIDTH = 16, 8


def round_costs(
    given_costs: Costs | None = None, drift: Drift | None = None, sampled: bool = False
) -> RoundCosts:
    """A fresh view, as every request has one."""
    return RoundCosts(
        given_costs or costs(), drift or Drift(), nodes=NODES, width=WIDTH, sampled=sampled
    )


# --- A device as it was measured ------------------------------------------------------------------


@given(context=st.integers(0, 400), nodes=st.integers(0, NODES))
def test_without_drift_verifying_costs_what_the_profile_says(context: int, nodes: int) -> None:
    """Rows are nodes and the root: curves over rows are read one further."""
    view, expected = round_costs(), costs().verify.at(nodes + 1, context)
    assert view.verify(context)[nodes] == pytest.approx(expected)
    assert view.verify_one(nodes, context) == pytest.approx(expected)
    assert len(view.verify(context)) == NODES + 1


@given(
    context=st.integers(0, 400),
    unseen=st.integers(1, 3 * UNSEEN),
    widths=st.lists(st.integers(1, WIDTH), max_size=5),
)
def test_without_drift_drafting_costs_what_the_profile_says(
    context: int, unseen: int, widths: list[int]
) -> None:
    view, bare = round_costs(), costs()
    assert bare.draft_first and bare.draft_step and bare.chain_first and bare.chain_next
    for chain, first, further in (
        (False, bare.draft_first, bare.draft_step),
        (True, bare.chain_first, bare.chain_next),
    ):
        start = bare.commit_ms + first.at(unseen, context)
        assert view.first(chain, unseen, context) == pytest.approx(start)
        sizes = [1] * len(widths) if chain else widths
        whole = start + sum(further.at(size, context) for size in sizes)
        assert view.calls(chain, (unseen, *sizes), context) == pytest.approx(whole)
        for size in sizes:
            assert view.further(chain, context)[size] == pytest.approx(further.at(size, context))
    assert view.further(False, context)[0] == 0.0, "no node, no step"


def test_without_drift_the_rest_costs_what_the_profile_says() -> None:
    view = round_costs()
    assert view.host(3) == pytest.approx(0.1 + 3 * 0.01)
    assert view.prepare(96, 0) == pytest.approx(4.25)
    assert view.prepare(96, 2) == pytest.approx(4.25 + 1.0)


def test_a_device_without_some_graphs() -> None:
    no_chain = dataclasses.replace(costs(), chain_first=None, chain_next=None, chain_steps=0)
    no_steps = dataclasses.replace(costs(), draft_first=None, draft_step=None)
    nothing = dataclasses.replace(
        no_chain, draft_first=None, draft_step=None, draft_prefill=None, draft_vision=None
    )
    kinds = [(view.chain_steps, view.can_step) for view in map(round_costs, (no_chain, no_steps))]
    assert kinds == [(0, True), (4, False)]
    assert round_costs(nothing).first(False, 1, 0) == round_costs(nothing).prepare(64, 1) == 0.0


def test_a_growing_context_is_looked_up_anew() -> None:
    view, fresh = round_costs(), round_costs()
    for context in range(0, 300, 20):
        assert view.verify(context)[4] == pytest.approx(fresh.verify(context)[4], rel=0.15)
    far = 300 + 2 * CONTEXT_STEP
    assert view.verify(far)[4] == pytest.approx(costs().verify.at(5, far))


# --- A device that became another -----------------------------------------------------------------


def verify_rounds(
    view: RoundCosts, rounds: int, device: Callable[[int, int], float], seed: int = 0
) -> list[float]:
    """Verifications of random sizes on a device (nodes, round -> factor); measured over
    predicted of each."""
    rng = np.random.default_rng(seed)
    ratios = []
    for number in range(rounds):
        nodes = int(rng.integers(0, NODES + 1))
        measured = costs().verify.at(nodes + 1, 50) * device(nodes, number)
        ratios.append(measured / view.learn_verify(nodes, 1, 50, measured))
    return ratios


@pytest.mark.parametrize("factor", [1.7, 0.6, 3.0])
@pytest.mark.parametrize("before", [0, 300])
def test_a_slower_or_faster_device_is_followed(factor: float, before: int) -> None:
    """Within some tens of rounds, however long it had been as measured; and it is said."""
    drift = Drift()
    view = round_costs(drift=drift)
    verify_rounds(view, before, lambda nodes, number: 1.0)
    assert drift.as_json()["profile_fits"]
    ratios = verify_rounds(view, 60, lambda nodes, number: factor)
    assert ratios[0] == pytest.approx(factor) or not before
    assert np.mean(ratios[-15:]) == pytest.approx(1.0, abs=0.1)
    expected = costs().verify.at(5, 50) * factor
    for seen in (view, round_costs(drift=drift)):  # what is learnt is the device's, not a request's
        assert seen.verify_one(4, 50) == pytest.approx(expected, rel=0.12)
    told = drift.as_json()
    assert not told["profile_fits"]
    assert told["verify"] == pytest.approx(factor, rel=0.2)


def test_a_curve_in_use_follows_as_well() -> None:
    """The curve that sizes are chosen from is corrected every few rounds."""
    view = round_costs()
    before = view.verify(50)[4]
    verify_rounds(view, 100, lambda nodes, number: 2.0)
    for _ in range(REFRESH):
        after = view.verify(50)[4]
    assert after == pytest.approx(2.0 * before, rel=0.1)


def test_drafting_the_prompt_and_the_host_drift_apart() -> None:
    drift = Drift()
    view = round_costs(drift=drift)
    bare = costs()
    assert bare.draft_prefill is not None
    for _ in range(60):
        view.learn_draft(False, (2, 3, 1), 50, 2.0 * round_costs().calls(False, (2, 3, 1), 50))
        view.learn_prepare(96, 0, 0.5 * bare.draft_prefill.at(96))
        view.learn_host(2, 1.5 * 0.12)
    fresh = round_costs()
    assert view.first(False, 1, 50) == pytest.approx(2.0 * fresh.first(False, 1, 50), rel=0.05)
    assert view.first(True, 1, 50) == pytest.approx(2.0 * fresh.first(True, 1, 50), rel=0.05)
    assert view.further(False, 50)[3] == pytest.approx(2.0 * fresh.further(False, 50)[3], rel=0.05)
    assert view.prepare(64, 1) == pytest.approx(0.5 * fresh.prepare(64, 1), rel=0.05)
    assert view.host(1) == pytest.approx(1.5 * fresh.host(1), rel=0.05)
    assert view.verify_one(4, 50) == fresh.verify_one(4, 50)
    assert not drift.as_json()["profile_fits"]


def test_predictions_are_those_from_before_the_measurement() -> None:
    view = round_costs()
    predicted = view.verify_one(4, 50)
    assert view.learn_verify(4, 1, 50, 9.0 * predicted) == pytest.approx(predicted)
    assert view.verify_one(4, 50) > predicted


def test_drawing_tokens_is_no_part_of_the_curve() -> None:
    """At temperature > 0 every visited node is drawn for: predicted, and not taken for drift."""
    view = round_costs(sampled=True)
    bare = view.verify_one(4, 50)
    for _ in range(50):
        assert view.learn_verify(4, 3, 50, bare + 3 * 0.3) == pytest.approx(bare + 3 * 0.3)
    assert view.verify_one(4, 50) == pytest.approx(bare)
    assert round_costs().learn_verify(4, 3, 50, bare) == pytest.approx(bare), "greedy"


# --- Hiccups --------------------------------------------------------------------------------------


def test_hiccups_move_little() -> None:
    check_hiccups()


def check_hiccups() -> None:
    """A round in twenty takes twenty times as long: other work, not another device."""
    view = round_costs()
    verify_rounds(view, 400, lambda nodes, number: 20.0 if number % 20 == 10 else 1.0)
    for nodes in (0, 4, 9):
        assert view.verify_one(nodes, 50) == pytest.approx(round_costs().verify_one(nodes, 50),
                                                            rel=0.12)  # fmt: skip
    assert view.drift.verify.fits


def test_one_hiccup_moves_next_to_nothing() -> None:
    view = round_costs()
    verify_rounds(view, 100, lambda nodes, number: 1.0)
    before = view.verify_one(4, 50)
    view.learn_verify(4, 1, 50, 20.0 * before)
    assert view.verify_one(4, 50) < 1.1 * before


@pytest.mark.parametrize("measured", [0.0, -1.0])
def test_a_clock_that_stood_still_teaches_nothing(measured: float) -> None:
    view = round_costs()
    view.learn_verify(4, 1, 50, measured)
    view.learn_draft(False, (), 50, 3.0)  # n-grams: the profile has no price for them
    assert view.drift == Drift()


# --- Sizes of their own ---------------------------------------------------------------------------


def test_sizes_have_factors_of_their_own() -> None:
    """A device whose wide verifications alone became slower (heat, say)."""
    view, rng = round_costs(), np.random.default_rng(3)
    for _ in range(1500):
        nodes = int(rng.integers(0, NODES + 1))
        factor = 2.0 if nodes >= 8 else 1.0
        view.learn_verify(nodes, 1, 50, costs().verify.at(nodes + 1, 50) * factor)
    fresh = round_costs()
    for nodes, factor in ((0, 1.0), (2, 1.0), (5, 1.0), (8, 2.0), (13, 2.0)):
        wanted = pytest.approx(factor * fresh.verify_one(nodes, 50), rel=0.1)
        assert view.verify_one(nodes, 50) == wanted
    assert np.argmax(np.diff(view.verify(50))) == 7, "the step is where it is"


@given(
    values=st.dictionaries(st.integers(0, 6), st.floats(-1.0, 1.0)),
    log=st.floats(-1.0, 1.0),
    most=st.integers(0, 40),
)
def test_a_table_of_factors_is_its_factors(values: dict[int, float], log: float, most: int) -> None:
    factor = Factor(log=log, bins=values)
    expected = [factor.of(size) for size in range(most + 1)]
    assert factor.table(most).tolist() == pytest.approx(expected)


# --- How far single rounds are from the prediction ------------------------------------------------


@pytest.mark.parametrize("sigma", [0.05, 0.1, 0.3])
def test_the_tail_is_the_95th_percentile(sigma: float) -> None:
    rng = np.random.default_rng(7)
    factor = Factor()
    seen = []
    for number in range(6000):
        factor.learn(math.exp(sigma * rng.standard_normal()), 1.0, 4)
        if number >= 2000:
            seen.append(factor.log_p95)
    assert np.mean(seen) == pytest.approx(1.645 * sigma, rel=0.2)


def test_the_tail_of_a_skewed_device() -> None:
    """Rounds are mostly on time and sometimes late; the median says nothing of that."""
    rng = np.random.default_rng(8)
    factor = Factor()
    late = []
    for number in range(8000):
        log = float(rng.exponential(0.2))
        before, predicted = factor.log_p95, factor.of(4)
        factor.learn(math.exp(log), 1.0, 4)
        if number >= 2000:
            late.append(math.exp(log) > predicted * math.exp(before))
    assert np.mean(late) == pytest.approx(0.05, abs=0.015)


def test_drift_in_json() -> None:
    told: dict[str, Any] = Drift().as_json()
    assert told == {"verify": 1.0, "draft": 1.0, "prepare": 1.0, "profile_fits": True}


def test_the_profile_fits_a_device_that_is_a_little_slower() -> None:
    drift = Drift()
    verify_rounds(round_costs(drift=drift), 200, lambda nodes, number: 1.1)
    assert drift.as_json()["profile_fits"]


def test_a_constant_curve_is_a_curve() -> None:
    view = round_costs(dataclasses.replace(costs(), verify=Curve.constant(3.0)))
    assert view.verify(70) == [3.0] * (NODES + 1)


def test_verifying_n_nodes_is_verifying_n_and_the_root() -> None:
    assert round_costs().verify(0)[:4] == pytest.approx([2.0, 2.2, 2.4, 2.6])
