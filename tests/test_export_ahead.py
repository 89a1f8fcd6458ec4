"""Reading weights ahead: results in order, and no more of them at once than was allowed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from edgespec_export.ahead import begun, in_order


def test_results_come_in_order_and_are_begun_before_they_are_asked_for() -> None:
    second = threading.Event()

    def first() -> int:
        assert second.wait(60), "the second job was not begun while the first one ran"
        return 1

    def follow() -> int:
        second.set()
        return 2

    assert list(in_order([(1, first), (1, follow)])) == [1, 2]


def test_no_more_waits_than_was_allowed() -> None:
    begun_so_far: list[int] = []

    def jobs() -> Iterator[tuple[int, Callable[[], int]]]:
        for number in range(6):
            begun_so_far.append(number)
            yield 10, lambda number=number: number  # type: ignore[misc]

    results = in_order(jobs(), held=25)
    assert next(results) == 0
    assert begun_so_far == [0, 1, 2], "two wait, and the third was looked at"
    assert list(results) == [1, 2, 3, 4, 5]


def test_a_result_larger_than_that_comes_alone() -> None:
    assert list(in_order([(100, lambda: "a"), (1, lambda: "b")], held=10)) == ["a", "b"]


def test_errors_come_where_the_result_would() -> None:
    def broken() -> int:
        raise ValueError("no such tensor")

    results = in_order([(1, lambda: 1), (1, broken), (1, lambda: 3)])
    assert next(results) == 1
    with pytest.raises(ValueError, match="no such tensor"):
        next(results)
    with pytest.raises(ValueError, match="no such tensor"):
        begun(broken)()


def test_what_is_begun_runs_by_itself() -> None:
    ran = threading.Event()

    def job() -> str:
        ran.set()
        return "done"

    result = begun(job)
    assert ran.wait(60)
    assert result() == "done"
