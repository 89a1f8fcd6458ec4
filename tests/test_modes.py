"""The choice between hybrid and remote-only, over a modelled network: no sockets, no waiting."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgespec_runtime.remote.link import Mode
from tests.support.networks import Device, World, regret

POINTS = [(2.0, 0.0), (20.0, 0.0), (50.0, 0.0), (100.0, 0.0), (200.0, 0.0), (20.0, 1000.0)]
"""(round trip ms, uplink kbit/s)."""
WORLDS = {
    "the seed's arithmetic": World(keep=0.75, draft=8.0, one=30.0),
    "a good draft": World(keep=0.85, draft=5.0, one=30.0),
    "a small fast target": World(keep=0.6, draft=3.0, one=15.0, row=0.2),
    "a great draft of a slow target": World(keep=0.9, draft=10.0, one=40.0),
    "a poor draft": World(keep=0.3, draft=8.0, one=30.0),
    "a busy server": World(keep=0.8, draft=6.0, one=30.0, queue=15.0),
}


@pytest.mark.parametrize("rtt, kbps", POINTS)
@pytest.mark.parametrize("world", WORLDS.values(), ids=list(WORLDS))
def test_automatic_is_within_five_percent_of_the_better_mode(
    world: World, rtt: float, kbps: float
) -> None:
    here = replace(world, rtt=lambda ms: rtt, kbps=kbps)
    lost = [regret(here, 300, answers=5, seed=seed)[0] for seed in range(3)]
    assert sum(lost) / len(lost) < 0.05, lost


@pytest.mark.parametrize("rtt", [2.0, 20.0, 100.0])
def test_a_policy_that_does_not_adapt_is_judged_as_it_is(rtt: float) -> None:
    here = World(rtt=lambda ms: rtt)
    lost = [regret(here, 300, answers=4, fixed_depth=5, seed=seed)[0] for seed in range(3)]
    assert sum(lost) / len(lost) < 0.05, lost


@pytest.mark.parametrize("rtt", [2.0, 50.0, 200.0])
def test_jitter(rtt: float) -> None:
    here = World(rtt=lambda ms: rtt, jitter=0.3 * rtt)
    assert regret(here, 300, answers=4)[0] < 0.05


def test_remote_wins_from_the_round_trip_that_the_rule_of_thumb_says() -> None:
    """RTT > tau * t_ar - t_draft - t_verify, for a chain of five."""
    world = World(keep=0.75, draft=8.0, one=30.0)
    tau = sum(0.75**k for k in range(6))
    turn = tau * 30.0 - 5 * 8.0 - world.compute(6) - world.host

    def ends_in(rtt: float) -> Mode | None:
        device = Device(replace(world, rtt=lambda ms: rtt), fixed_depth=5, seed=1)
        for _ in range(4):
            device.answer(300)
        return device.link.mode

    assert ends_in(0.5 * turn) is Mode.HYBRID
    assert ends_in(1.7 * turn) is Mode.REMOTE


@pytest.mark.parametrize("far, near", [(200.0, 2.0), (2.0, 200.0)])
def test_a_step_of_the_network_is_followed(far: float, near: float) -> None:
    """Seconds after it, not minutes; and no more is lost than that."""
    world = World(rtt=lambda ms: far if ms < 15_000 else near)
    lost, device = regret_by_phase(world, far, near)
    assert lost < 0.08
    assert device.link.mode is (Mode.HYBRID if near < far else Mode.REMOTE)
    assert device.server.changes <= 4


def regret_by_phase(world: World, far: float, near: float) -> tuple[float, Device]:
    """Against whoever is told of the step and runs the better mode on either side of it."""
    auto = Device(world)
    took = auto.answer(1500)

    def per_token(rtt: float) -> float:
        return min(
            Device(replace(world, rtt=lambda ms: rtt), mode).answer(1500) / 1500
            for mode in (Mode.HYBRID, Mode.REMOTE)
        )

    before = 15_000 / per_token(far)
    best = 15_000 + (1500 - before) * per_token(near)
    return took / best - 1.0, auto


def test_changing_to_and_fro_is_rare_at_the_turning_point() -> None:
    world = World(keep=0.75, draft=8.0, one=30.0, rtt=lambda ms: 20.0, jitter=5.0)
    device = Device(world)
    for _ in range(5):
        device.answer(300)
    assert device.server.changes <= 6


def test_the_draft_is_left_alone_where_the_first_choice_is_remote() -> None:
    """From what an open tells: no round is needed to see that 500 ms are too far."""
    world = World(rtt=lambda ms: 500.0, prepare=300.0)
    device = Device(world)
    device.answer(40)
    assert set(device.rounds) == {Mode.REMOTE}


def test_a_short_answer_does_not_pay_for_the_draft_s_prompt() -> None:
    """Once it is known what that takes, and how long answers are."""
    world = World(keep=0.8, rtt=lambda ms: 5.0, prepare=600.0)
    device = Device(world)
    device.answer(12)
    for _ in range(5):
        device.rounds.clear()
        device.answer(12)
    assert set(device.rounds) == {Mode.REMOTE}
    long = Device(world)
    for _ in range(3):
        long.answer(400)
    assert long.rounds[Mode.HYBRID] > 100


def test_what_a_request_learnt_is_where_the_next_one_starts() -> None:
    world = World(keep=0.2, rtt=lambda ms: 20.0)
    device = Device(world)
    device.answer(300)
    device.rounds.clear()
    device.answer(30)
    assert set(device.rounds) == {Mode.REMOTE}


def test_round_trips_are_measured_while_the_server_streams_but_seldom() -> None:
    device = Device(World(rtt=lambda ms: 200.0))
    took = device.answer(1000)
    assert device.rounds[Mode.REMOTE] > 900
    assert 0.5 * took / 1e3 < device.server.pings <= took / 1e3 + 1


def test_trials_are_bounded() -> None:
    """A draft that loses by a quarter costs little in the long run."""
    world = World(keep=0.55, draft=8.0, one=30.0, rtt=lambda ms: 20.0)
    assert regret(world, 1000, answers=6)[0] < 0.025


def test_a_draft_that_gets_better_is_found_again() -> None:
    """By trials alone: nothing else tells while the server streams."""
    world = World(keep=0.5, draft=8.0, one=30.0, rtt=lambda ms: 25.0)
    device = Device(world)

    def tokens_by(mode: Mode) -> float:
        device.rounds.clear()
        for _ in range(3):
            device.answer(300)
        return device.rounds.get(mode, 0) / sum(device.rounds.values())

    tokens_by(Mode.REMOTE)
    assert tokens_by(Mode.REMOTE) > 0.9
    device.world = replace(world, keep=0.9)
    for _ in range(4):
        tokens_by(Mode.HYBRID)
    assert tokens_by(Mode.HYBRID) > 0.9


@pytest.mark.parametrize("pinned, rtt", [(Mode.HYBRID, 300.0), (Mode.REMOTE, 1.0)])
def test_a_pinned_mode_stays(pinned: Mode, rtt: float) -> None:
    device = Device(World(rtt=lambda ms: rtt), pinned)
    device.answer(200)
    assert set(device.rounds) == {pinned}
    assert device.server.pings == 0


def test_a_server_without_a_curve_is_understood() -> None:
    here = World(curve=False, row=2.0, rtt=lambda ms: 60.0)
    assert regret(here, 300, answers=4)[0] < 0.06
