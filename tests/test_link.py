"""What is measured of a network: robust, split by whose time it is, on one clock."""

from __future__ import annotations

import pytest

from edgespec.sizing import Setting
from edgespec_runtime.remote.experience import RemoteExperience
from edgespec_runtime.remote.link import Link
from edgespec_runtime.remote.recent import Recent


class Clock:
    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


def feed(link: Link, round_trip: float, times: int = 9, rows: int = 9) -> None:
    for _ in range(times):
        link.verified(rows, round_trip + 3.0 + 30.0, 3.0, 30.0, 100, 40)


def test_a_hiccup_changes_little_and_a_step_soon_everything() -> None:
    recent = Recent()
    for value in (20.0, 21.0, 19.0, 20.0, 22.0, 20.0):
        recent.add(value)
    recent.add(4000.0)  # one lost deadline
    assert recent.median == pytest.approx(20.0, abs=1.0)
    assert recent.mean < 25.0
    for value in (100.0, 102.0, 99.0):
        recent.add(value)
    assert recent.median == pytest.approx(100.0, abs=3.0), "three in a row are a new network"


def test_the_mean_counts_jitter_where_the_median_does_not() -> None:
    recent = Recent()
    for value in (20.0, 20.0, 40.0, 20.0, 60.0, 20.0, 40.0, 20.0, 60.0):
        recent.add(value)
    assert recent.median == 20.0 and recent.mean > 27.0


def test_a_call_s_time_is_split_into_network_queue_and_compute() -> None:
    link = Link(Clock())
    feed(link, 20.0)
    assert link.network() == pytest.approx(20.0)
    assert link.queue.median == 3.0
    assert link.compute(9) == pytest.approx(30.0)
    assert (link.up_bytes, link.down_bytes) == (900, 360)


def test_the_server_s_curve_is_corrected_by_what_it_takes_now() -> None:
    link = Link(Clock())
    link.informed((1, 8, 32), (10.0, 12.0, 20.0))
    assert link.compute(8) == pytest.approx(12.0)
    for _ in range(40):
        link.verified(8, 5.0 + 24.0, 0.0, 24.0, 100, 40)  # twice as slow today
    assert link.compute(8) == pytest.approx(24.0, rel=0.1)
    assert link.compute(1) == pytest.approx(20.0, rel=0.2), "sizes not seen follow the others"


def test_without_a_curve_the_sizes_seen_make_one() -> None:
    link = Link(Clock())
    assert link.compute(4) == 0.0
    link.verified(11, 50.0, 0.0, 30.0, 100, 40)
    link.streamed(0.0, 20.0, 40)
    assert link.compute(6) == pytest.approx(25.0)


def test_a_large_open_tells_the_uplink_and_not_the_round_trip() -> None:
    link = Link(Clock())
    link.pinged(60.0, connecting=True)  # three round trips of a handshake
    assert link.network() == 60.0, "an upper bound is all there is"
    link.pinged(20.0)
    # 50 kB at 1 Mbit/s take 400 ms.
    link.opened(20.0 + 400.0 + 90.0, 0.0, 90.0, 50_000, 60, cached=False)
    assert link.network() == pytest.approx(20.0)
    assert link.network(250) == pytest.approx(22.0, abs=0.1)
    link.verified(9, 20.0 + 2.0 + 30.0, 0.0, 30.0, 250, 40)
    assert link.network() == pytest.approx(20.0, abs=0.1), "a request's own bytes are taken off"


def test_age_is_of_the_last_round_trip_on_the_given_clock() -> None:
    clock = Clock()
    link = Link(clock)
    assert link.age == float("inf")
    feed(link, 20.0, times=1)
    clock.s = 7.0
    link.streamed(0.0, 30.0, 40)
    assert link.age == 7.0, "a streamed token tells no round trip"
    link.pinged(20.0)
    assert link.age == 0.0


def test_another_server_starts_anew() -> None:
    link = Link(Clock())
    link.informed((1, 8), (10.0, 12.0))
    feed(link, 20.0)
    link.forget()
    assert link.compute(4) == 0.0 and link.network() == 0.0
    assert link.up_bytes == 900, "what was sent stays sent"


def test_a_curve_that_falls_was_disturbed() -> None:
    link = Link(Clock())
    link.informed((1, 8, 32), (60.0, 12.0, 20.0))
    assert link.compute(1) == pytest.approx(12.0)


def test_answers_that_have_lasted_are_likely_to_last() -> None:
    known = RemoteExperience(Link(Clock())).asked(Setting())
    assert known.left(0) == 64
    for length in (6, 6, 6, 100):
        known.ended(length)
    assert known.left(1) == pytest.approx(28.5)
    assert known.left(50) == 50, "the long one's rest"
    assert known.left(200) == 200


def test_questions_are_told_apart() -> None:
    known = RemoteExperience(Link(Clock()))
    yes_or_no, describe = Setting(question=(1, 2)), Setting(question=(1, 3))
    for _ in range(3):
        known.asked(yes_or_no).ended(4)
        known.asked(describe).ended(90)
    assert (known.asked(yes_or_no).left(0), known.asked(describe).left(0)) == (4, 90)
    assert known.asked(Setting(question=(7,))).left(0) == 47, "of all, for a new one"


def test_a_question_begins_with_what_is_known_of_all() -> None:
    known = RemoteExperience(Link(Clock()))
    general = known.drafted(Setting())
    general.rounds, general.tokens, general.own_ms = 40.0, 200.0, 400.0
    general.reach.tried[0], general.reach.kept[0] = 40.0, 30.0
    own = known.drafted(Setting(question=(5,)))
    assert own is known.drafted(Setting(question=(5,))) and own.general is general
    assert (own.rounds, own.tokens, own.own_ms) == (4.0, 20.0, 40.0)
    assert own.reach.kept[0] / own.reach.tried[0] == pytest.approx(0.75)
    own.went_by(9)
    assert general.passed == 9, "what one question teaches is taught of all"


def test_only_so_many_questions_are_remembered() -> None:
    known = RemoteExperience(Link(Clock()))
    for number in range(100):
        known.asked(Setting(question=(number,))).ended(3)
    known.asked(Setting(question=(99,))).ended(3)
    assert known.asked(Setting(question=(99,))).left(0) == 3
    assert len(known._asked) == 64
