"""Sizing for a target elsewhere: the way there is a sum of its own, learnt from rounds, and the
further away the target is, the larger the trees."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgespec.acceptance import StopRules, Verdict
from edgespec.latency import Curve
from edgespec.sizing import Feedback, Growth, Root, Setting, Sized
from edgespec.sizing.budgets import Budget
from edgespec.sizing.costs import RoundCosts
from edgespec.sizing.drift import RECENT, Drift
from edgespec.sizing.experience import Experience
from edgespec.sizing.rule import best_count
from edgespec.tree import TokenTree
from edgespec_runtime.decoder import Round, decode
from edgespec_runtime.verifiers import Meanwhile
from tests.support.fakes import ScriptedDraft, ScriptedVerifier, chain
from tests.support.profiles import costs, curve, profile
from tests.support.street import Clock, ClockedDraft, flat_profile

NODES = 16
HOLDS = 0.85
"""Probability of every guess of the draft, and what it says of it."""
DRAFTING_MS = 4.0


def view(drift: Drift) -> RoundCosts:
    return RoundCosts(costs(), drift, nodes=NODES, width=8, sampled=False)


def rounds_at(costs_: RoundCosts, away: Sequence[float], factor: float = 1.0) -> None:
    """Verifications of all sizes in turn, each so far away."""
    for number, ms in enumerate(away):
        nodes = number % (NODES + 1)
        server = costs().verify.at(nodes + 1, 50) * factor
        costs_.learn_verify(nodes, 1, 50, server + ms, ms)


# --- What verifying costs -------------------------------------------------------------------------


@given(st.floats(1.0, 500.0), st.floats(1.0, 500.0))
def test_a_jump_of_the_round_trip_moves_all_sizes_alike(before: float, after: float) -> None:
    """The trap: a slow network taken for a slow server would make rows look dear."""
    drift, slopes = Drift(), []
    for away in (0.0, before, after):
        rounds_at(view(drift), [away] * 40)
        table = np.array(view(drift).verify(50))
        assert table[0] == pytest.approx(costs().verify.at(1, 50) + away)
        assert view(drift).verify_one(3, 50) == pytest.approx(table[3])
        slopes.append(table - table[0])
    np.testing.assert_allclose(slopes[1], slopes[0], atol=1e-6)
    np.testing.assert_allclose(slopes[2], slopes[0], atol=1e-6)
    assert drift.verify.fits and drift.as_json()["away_ms"] == pytest.approx(after)


def test_a_late_packet_is_no_slow_network_and_a_slow_network_is_soon_known() -> None:
    drift = Drift()
    rounds_at(view(drift), [20.0] * 30)
    rounds_at(view(drift), [900.0, 20.0, 20.0, 20.0, 700.0])
    assert drift.away.ms == 20.0
    rounds_at(view(drift), [200.0] * (RECENT // 2 + 1))
    assert drift.away.ms == 200.0
    rounds_at(view(drift), [0.0])
    assert drift.away.ms == 200.0, "what was not away says nothing of the way"


def test_a_slow_server_is_still_told_from_a_slow_network() -> None:
    drift = Drift()
    rounds_at(view(drift), [30.0] * 200, factor=1.5)
    table = view(drift).verify(50)
    assert drift.away.ms == 30.0
    for nodes in (0, 4, NODES):
        expected = 1.5 * costs().verify.at(nodes + 1, 50) + 30.0
        assert table[nodes] == pytest.approx(expected, rel=0.02)


def test_jitter_widens_the_tail_that_budgets_allow_for() -> None:
    rng, drifts = np.random.default_rng(1), []
    for sigma in (0.0, 0.6):
        drifts.append(Drift())
        rounds_at(view(drifts[-1]), (20.0 * np.exp(sigma * rng.standard_normal(400))).tolist())
    still, shaken = (np.exp(drift.verify.log_p95) for drift in drifts)
    assert still < 1.03 and shaken > 1.4
    assert drifts[1].verify.log == pytest.approx(0.0, abs=1e-6)


# --- What is chosen -------------------------------------------------------------------------------


class FarVerifier:
    """Takes what the server's curve says and the way there; tells them apart."""

    engine_s = 0.0

    def __init__(
        self, inner: ScriptedVerifier, server: Curve, clock: Clock, away: Callable[[], float]
    ) -> None:
        self._inner, self._server, self._clock, self._away = inner, server, clock, away

    @property
    def context(self) -> int:
        return self._inner.context

    def begin(self) -> Verdict:
        return self._inner.begin()

    def verify(self, tree: TokenTree, meanwhile: Meanwhile | None = None) -> Verdict:
        away = self._away()
        self._clock.ms += self._server.at(len(tree) + 1, self.context) + away
        return dataclasses.replace(self._inner.verify(tree), away_ms=away)

    def close(self) -> None:
        self._inner.close()


SERVER = curve((3.0, 3.5, 4.5, 6.5, 10.5), sizes=(1, 2, 4, 8, 16))
"""Half a millisecond a row."""


def answers(away: Callable[[], float], tokens: int, **more: object) -> list[Round]:
    """Rounds of one answer; the draft proposes one path."""
    rng, clock = np.random.default_rng(3), Clock()
    device = flat_profile(DRAFTING_MS)
    setting = Setting(draft="m", profile=device, remote=SERVER, max_new_tokens=tokens)
    setting = dataclasses.replace(setting, **more)  # type: ignore[arg-type]

    def propose(path: Sequence[int], left: int) -> list[tuple[int, int, float]]:
        held = rng.random(NODES) < HOLDS
        guesses = [100 + len(path) + i if good else 7 for i, good in enumerate(held)]
        return chain(guesses[:left], float(np.log(HOLDS)))

    inner = ScriptedVerifier(lambda path: 100 + len(path))
    draft = ClockedDraft(ScriptedDraft(propose), device.costs, clock, 0, lambda: 1.0)
    verifier = FarVerifier(inner, SERVER, clock, away)
    sizer = Sized(nodes=NODES, levels=NODES).start(setting)
    return list(decode(verifier, draft, sizer, StopRules((), tokens), clock))


def speed(nodes: int, away: float) -> float:
    """Tokens a millisecond, were all trees of ``nodes``."""
    tokens = sum(HOLDS**level for level in range(nodes + 1))
    return tokens / (DRAFTING_MS + away + SERVER.at(nodes + 1))


def best(away: float) -> int:
    return max(range(NODES + 1), key=lambda nodes: speed(nodes, away))


ROUND_TRIPS = (0.5, 10.0, 60.0, 300.0)


def test_the_rule_wants_larger_trees_the_further_the_target_is() -> None:
    """By enumeration: at the best speed there is, the rule's tree is the one that reaches it."""
    sizes = []
    for away in ROUND_TRIPS:
        reach = [HOLDS**level for level in range(1, NODES + 1)]
        verify = [SERVER.at(nodes + 1) + away for nodes in range(NODES + 1)]
        count, _ = best_count(reach, verify, speed(best(away), away))
        assert count == best(away)
        sizes.append(count)
    assert sizes == sorted(sizes) and sizes[0] < sizes[1] < sizes[2] == NODES


def test_trees_grow_with_the_round_trip_and_are_the_best_there_are() -> None:
    sizes = []
    for away in ROUND_TRIPS:
        rounds = answers(lambda away=away: away, 900)  # type: ignore[misc]
        late = [r.tree_nodes for r in rounds[-60:-8]]
        sizes.append(float(np.mean(late)))
        assert np.mean([speed(n, away) for n in late]) > 0.97 * speed(best(away), away)
    assert sizes == sorted(sizes) and sizes[0] < 0.8 * sizes[-1]


def test_a_target_that_moves_away_is_followed_within_an_answer() -> None:
    place = iter([2.0] * 200 + [150.0] * 10_000)
    rounds = answers(lambda: next(place), 2500)[1:]
    near, far = rounds[100:195], rounds[240:300]
    assert np.mean([r.tree_nodes for r in near]) + 2 < np.mean([r.tree_nodes for r in far])


def test_what_was_measured_beforehand_counts_from_the_first_round() -> None:
    experience = Experience()
    known = answers(lambda: 60.0, 40, experience=experience, away_ms=60.0)
    assert known[1].tree_nodes > answers(lambda: 60.0, 40)[1].tree_nodes
    # Rounds know better than what was measured before them.
    answers(lambda: 60.0, 40, experience=experience, away_ms=5000.0)
    assert experience.drift.away.ms == 60.0


def test_the_servers_curve_stands_for_the_devices() -> None:
    """The device's own target is slow and flat: by its curve all nodes were free."""
    here = answers(lambda: 0.5, 300, remote=None)
    there = answers(lambda: 0.5, 300)
    assert np.mean([r.tree_nodes for r in there[1:20]]) < np.mean(
        [r.tree_nodes for r in here[1:20]]
    )


# --- What was drafted ahead -----------------------------------------------------------------------


def feedback_of(calls: tuple[int, ...], ready: int, draft_ms: float) -> Feedback:
    sizer_root = Root(50, 100, 0 if ready else 1, True, 1, ready)
    draft = ScriptedDraft(lambda path, left: chain([5, 6]))
    draft.begin(Verdict((), (1,)))
    draft.prepare()
    draft.unseen = sizer_root.unseen
    arena = draft.grow(Sized().start(Setting(profile=profile())), Growth.STEPS, sizer_root)
    return Feedback(
        root=sizer_root, growth=Growth.STEPS, calls=calls, candidates=arena, chosen=[0],
        rows=(), named=None, tokens=(9,), emitted=1, prepare_ms=0.0, draft_ms=draft_ms,
        verify_ms=2.2, round_ms=3.0,
    )  # fmt: skip


@pytest.mark.parametrize(("calls", "ready"), [((1, 2, 3), 0), ((2, 3), 2), ((), 2)])
def test_rounds_that_start_ahead_teach_no_wrong_costs(calls: tuple[int, ...], ready: int) -> None:
    """Calls behind ready levels are further ones; what took as long as the profile says leaves the
    factor at 1."""
    experience = Experience()
    sizer = Sized().start(Setting(profile=profile(), experience=experience))
    table = costs()
    assert table.draft_first and table.draft_step
    ms = table.commit_ms
    if not ready:
        ms += table.draft_first.at(calls[0], 100)
    ms += sum(table.draft_step.at(width, 100) for width in calls[not ready :])
    for _ in range(30):
        told = feedback_of(calls, ready, ms)
        sizer.begin(told.root)
        sizer.choose(told.candidates)
        sizer.learn(told)
    assert experience.drift.draft.log == pytest.approx(0.0, abs=1e-9)


def test_levels_that_are_ready_cost_no_time_of_a_budget() -> None:
    """A limit that the first call would break leaves room for what is there already."""
    slow = flat_profile(50.0)
    limit = slow.costs.verify.at(2) * 1.5
    setting = Setting(profile=slow, budget=Budget(ms_per_round=limit), experience=Experience())
    sizer = Sized().start(setting)
    assert sizer.begin(Root(50, 100, 1, True, 1)) is Growth.NONE
    far = Sized().start(dataclasses.replace(setting, budget=None))
    assert far.begin(Root(50, 100, 1, True, 1)) is Growth.STEPS
    far._room._limit = limit  # type: ignore[attr-defined]
    assert far.begin(Root(50, 100, 0, True, 2, ready=3)) is Growth.STEPS
    assert far.begin(Root(50, 100, 1, True, 2)) is Growth.NONE


def test_a_growth_begun_ahead_is_gone_on_with() -> None:
    """Whatever would be the faster one now: half of it is there."""
    setting = Setting(profile=profile(), chain_steps=4, experience=Experience())
    sizer = Sized().start(setting)
    for kind in (Growth.CHAIN, Growth.STEPS):
        sizer._kind, sizer._settled = kind, 0  # type: ignore[attr-defined]
        assert sizer.begin(Root(50, 100, 0, True, 2, ready=2)) is kind
