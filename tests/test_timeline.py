"""Timelines: the Trace Event Format's rules, and rounds drawn as they were measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgespec.errors import InputError
from edgespec_runtime.profiling.timeline import RoundSpan, Timeline, timeline_of

REQUIRED = {"name", "ph", "ts", "pid", "tid", "args"}
ROUNDS = [
    RoundSpan(100.0, 30.0, 8.0, 20.0, 29.5, tree_nodes=12, accepted=4),
    RoundSpan(100.0601, 0.0, 7.0, 21.0, 29.0, tree_nodes=16, accepted=1),
    RoundSpan(100.0901, 0.0, 0.0, 18.0, 18.5, tree_nodes=0, accepted=1),
]


def check(events: list[dict[str, Any]]) -> None:
    """What a reader of the format may rely on."""
    json.loads(json.dumps(events, allow_nan=False))
    assert all(set(event) >= REQUIRED for event in events)
    assert {event["ph"] for event in events} <= {"M", "X", "C"}
    kinds = "".join(event["ph"] for event in events)
    assert "M" not in kinds.lstrip("M")  # names before what they name
    timed = [event for event in events if event["ph"] != "M"]
    times = [event["ts"] for event in timed]
    assert times == sorted(times) and (not times or times[0] == 0)
    named = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    spans = [event for event in timed if event["ph"] == "X"]
    assert {span["tid"] for span in spans} == set(named)
    assert all(span["dur"] >= 0 and span["cat"] for span in spans)
    for thread in named:
        check_nesting([span for span in spans if span["tid"] == thread])
    for event in timed:
        if event["ph"] == "C":
            assert all(isinstance(value, (int, float)) for value in event["args"].values())


def check_nesting(spans: list[dict[str, Any]]) -> None:
    """In whole nanoseconds: what begins inside another span ends inside it."""
    open_ends: list[int] = []
    for span in spans:
        start = round(span["ts"] * 1000)
        end = start + round(span["dur"] * 1000)
        while open_ends and open_ends[-1] <= start:
            open_ends.pop()
        assert not open_ends or end <= open_ends[-1]
        open_ends.append(end)


def test_rounds_lie_where_they_were_measured() -> None:
    events = timeline_of(ROUNDS).events()
    check(events)
    threads = {e["args"]["name"]: e["tid"] for e in events if e["name"] == "thread_name"}
    assert list(threads) == ["rounds", "draft", "verify", "host"]
    spans = {
        (name, event["name"], event["ts"]): event["dur"]
        for event in events
        for name, thread in threads.items()
        if event["ph"] == "X" and event["tid"] == thread
    }
    assert spans == {
        ("rounds", "round 0", 0.0): 59500,
        ("draft", "prepare", 0.0): 30000,
        ("draft", "draft", 30000.0): 8000,
        ("verify", "verify", 38000.0): 20000,
        ("host", "host", 58000.0): 1500,
        ("rounds", "round 1", 60100.0): 29000,
        ("draft", "draft", 60100.0): 7000,
        ("verify", "verify", 67100.0): 21000,
        ("host", "host", 88100.0): 1000,
        ("rounds", "round 2", 90100.0): 18500,  # plain: nothing was drafted
        ("verify", "verify", 90100.0): 18000,
        ("host", "host", 108100.0): 500,
    }


def test_counters_hold_every_rounds_nodes_and_end_at_nothing() -> None:
    events = timeline_of(ROUNDS).events()
    for name, values in {"tree nodes": [12, 16, 0, 0], "accepted": [4, 1, 1, 0]}.items():
        counts = [event for event in events if event["ph"] == "C" and event["name"] == name]
        assert [event["args"][name] for event in counts] == values
        assert [event["ts"] for event in counts] == [0, 60100, 90100, 108600]


@given(
    st.lists(
        st.tuples(*[st.floats(0, 50) for _ in range(4)], st.integers(0, 64), st.integers(1, 9)),
        max_size=12,
    ),
    st.floats(0, 1e6),
)
def test_any_rounds_that_follow_each_other_make_a_valid_trace(
    rounds: list[tuple[float, float, float, float, int, int]], start_s: float
) -> None:
    """Rounds one right after the other, at any offset of the clock, whatever rounding does."""
    spans = []
    for prepare, draft, verify, host, nodes, accepted in rounds:
        spans.append(
            RoundSpan(start_s, prepare, draft, verify, draft + verify + host, nodes, accepted)
        )
        start_s += (prepare + draft + verify + host) / 1e3
    check(timeline_of(spans).events())


def test_a_clock_that_reads_the_whole_shorter_than_its_parts_leaves_the_host_nothing() -> None:
    events = timeline_of([RoundSpan(0.0, 0.0, 4.0, 6.0, 9.9, 3, 2)]).events()
    check(events)
    assert not [event for event in events if event["name"] == "host"]
    assert [event["dur"] for event in events if event["name"] == "round 0"] == [10000]


def test_spans_may_nest_and_tracks_keep_their_order() -> None:
    timeline = Timeline(name="demo")
    timeline.add("network", "send", 2.0, 0.5, {"bytes": 90})
    timeline.add("engine", "setup", 1.0, 0.1)
    timeline.add("engine", "run", 1.1, 0.2, category="graph")
    timeline.add("engine", "call", 1.0, 0.5)
    timeline.add("draft", "step", 1.0, 0.5)
    events = timeline.events()
    check(events)
    names = [event["args"]["name"] for event in events if event["name"] == "thread_name"]
    assert names == ["draft", "engine", "network"]
    assert events[0]["args"] == {"name": "demo"}
    assert [e["name"] for e in events if e["ph"] == "X"] == [
        "call", "step", "setup", "run", "send",
    ]  # fmt: skip
    run = next(event for event in events if event["name"] == "run")
    assert (run["ts"], run["dur"], run["cat"]) == (100000, 200000, "graph")


def test_spans_that_cross_are_refused() -> None:
    timeline = Timeline()
    timeline.add("engine", "first", 0.0, 1.0)
    timeline.add("engine", "second", 0.5, 1.0)
    with pytest.raises(ValueError, match="'second' begins on track 'engine' inside 'first'"):
        timeline.events()
    with pytest.raises(ValueError, match="not negative"):
        timeline.add("engine", "third", 0.0, -1.0)
    with pytest.raises(ValueError, match="not negative"):
        timeline.add("engine", "third", 0.0, float("nan"))


def test_spans_that_cross_by_the_clocks_rounding_are_moved_apart() -> None:
    timeline = Timeline()
    timeline.add("engine", "first", 0.0, 1.0)
    timeline.add("engine", "second", 1.0 - 4e-7, 1.0)
    events = timeline.events()
    check(events)
    assert [event["ts"] for event in events if event["ph"] == "X"] == [0, 1_000_000]


def test_the_file_is_the_object_form(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    timeline = timeline_of(ROUNDS)
    timeline.write(path)
    trace = json.loads(path.read_text(encoding="utf-8"))
    assert trace["displayTimeUnit"] == "ms" and trace["traceEvents"] == timeline.events()
    timeline_of([]).write(path)
    check(json.loads(path.read_text(encoding="utf-8"))["traceEvents"])


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="missing/trace.json' failed: No such file"):
        timeline_of(ROUNDS).write(tmp_path / "missing" / "trace.json")
