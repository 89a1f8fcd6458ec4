"""The history checker bites: on histories made by hand, and on a run without the protocol's checks.

The long run is ``python benchmarks/chaos.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.support.chaos import Plan, run
from tests.support.history import Commit, Findings, Told, check, percentile
from tests.support.zoo import Zoo

RIGHT = (5, 6, 7, 8, 9, 10, 11)
ORACLE = {"why": RIGHT}
SHORT = Plan(4, 2, tokens=1_000, faults=10, questions=6, answer=32, pace=0.3, calm=True)


def commits(*parts: Sequence[int], answer: str = "a") -> list[Commit]:
    """The open names one token, every round some more."""
    held, made = 0, []
    for number, part in enumerate(parts):
        held += len(part)
        made.append(Commit(answer, "s", 1, number, held, tuple(part)))
    return made


GOOD = commits((5,), (6, 7), (8,), (9, 10, 11))


def judge(
    made: Sequence[Commit], told: Sequence[int] | None = None, ended: bool = True
) -> Findings:
    said = [token for commit in made for token in commit.tokens] if told is None else told
    return check(made, {"a": Told("why", tuple(said), ended)}, ORACLE)


def counts(found: Findings) -> tuple[int, int, int, int]:
    return found.lost, found.doubled, found.wrong, found.two_answers


def test_a_right_history_is_clean() -> None:
    found = judge(GOOD)
    assert found.clean and found.tokens == len(RIGHT) and counts(found) == (0, 0, 0, 0)


def test_an_answer_that_was_stopped_half_way_is_clean() -> None:
    assert judge(GOOD[:2], ended=False).clean


def test_an_answer_that_ends_too_early_lost_tokens() -> None:
    found = judge(GOOD[:2])
    assert not found.clean and counts(found) == (4, 0, 0, 0)


def test_a_last_round_may_be_cut_by_a_stop_rule() -> None:
    cut = RIGHT[:5]
    assert check(GOOD, {"a": Told("why", cut)}, {"why": cut}).clean


def test_lost_tokens() -> None:
    found = judge(commits((5,), (8,), (9, 10, 11)))
    assert not found.clean and counts(found) == (2, 0, 0, 0)


def test_doubled_tokens() -> None:
    found = judge(commits((5,), (6, 7), (6, 7), (8,), (9, 10, 11)))
    assert not found.clean and counts(found) == (0, 2, 0, 0)


def test_wrong_tokens() -> None:
    found = judge(commits((5,), (6, 99), (8,), (9, 10, 11)))
    assert not found.clean and counts(found) == (0, 0, 1, 0)


def test_a_round_that_does_not_follow_from_what_was_held() -> None:
    behind = [*GOOD[:2], replace(GOOD[2], committed_len=6), GOOD[3]]
    assert judge(behind, RIGHT).lost == 2
    again = [*GOOD[:3], replace(GOOD[3], committed_len=6)]
    assert judge(again, RIGHT).doubled == 1


def test_a_round_with_two_answers() -> None:
    other = replace(GOOD[2], tokens=(12,))
    found = judge([*GOOD[:3], other, GOOD[3]], RIGHT)
    assert found.two_answers == 2 and not found.clean  # the round, and the place in the text


def test_a_place_that_a_reopened_session_fills_otherwise() -> None:
    later = Commit("a", "s", 2, 1, 4, (12,))
    assert judge([*GOOD[:3], later, GOOD[3]], RIGHT).two_answers == 1


def test_a_user_who_was_told_something_else() -> None:
    found = judge(GOOD, (5, 6, 7, 8, 9, 10, 12))
    assert not found.clean and any("told" in note for note in found.notes)


def test_rounds_of_an_answer_that_nobody_saw() -> None:
    found = check(GOOD, {}, ORACLE)
    assert not found.clean


def test_answers_are_judged_one_by_one() -> None:
    other = commits((5,), (6,), (8,), answer="b")
    told = {"a": Told("why", RIGHT), "b": Told("why", (5, 6, 8), ended=False)}
    found = check([*GOOD, *other], told, ORACLE)
    assert [note[0] for note in found.notes] == ["b"]


def test_percentiles() -> None:
    values = [float(v) for v in range(100, 0, -1)]
    assert percentile(values, 0.5) == 51.0
    assert percentile(values, 0.99) == 100.0
    assert percentile([], 0.5) == 0.0


@pytest.mark.slow
def test_nothing_is_lost_doubled_or_wrong_through_a_dozen_faults(zoo: Zoo) -> None:
    report = run(zoo.bundle("gqa", sessions=4), SHORT)
    assert report.findings.notes == [] and report.errors == []
    assert report.complete and report.clean


@pytest.mark.slow
def test_without_the_checks_of_rounds_and_prefixes_the_same_run_fails(zoo: Zoo) -> None:
    """Faults strike at chance moments: in one of five runs so short all of them happen to do no
    harm. A dozen of them cannot."""
    bundle = zoo.bundle("gqa", sessions=4)
    for seed in range(12):
        found = run(bundle, replace(SHORT, checks=False, seed=seed)).findings
        if found.lost + found.doubled + found.wrong:
            return
    pytest.fail("nothing was lost, doubled or wrong without the checks")
