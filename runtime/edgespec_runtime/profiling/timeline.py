"""Real rounds as a trace that Perfetto or chrome://tracing shows: who was busy when.

The file is the JSON object form of the Trace Event Format: complete events ("X") on named threads,
counters ("C"), names as metadata ("M"); times in microseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgespec.errors import InputError

PROCESS = 1
ROUNDS, DRAFT, VERIFY, HOST, ENGINE = "rounds", "draft", "verify", "host", "engine"
SLACK_NS = 1000
"""Spans that overlap by less are the rounding of clocks, and are moved apart."""


@dataclass(frozen=True)
class RoundSpan:
    """One round as it was measured."""

    start_s: float
    """When it began, its preparation included; of any clock, the same for all rounds."""
    prepare_ms: float
    """The draft's taking in of its prompt, on the round that first drafts; else 0."""
    draft_ms: float
    verify_ms: float
    round_ms: float
    """All of the round but ``prepare_ms``."""
    tree_nodes: int
    accepted: int
    """Tokens it brought, bonus included."""


@dataclass(frozen=True)
class Span:
    """One stretch of work on one track; times in whole nanoseconds."""

    track: str
    name: str
    category: str
    start_ns: int
    end_ns: int
    args: Mapping[str, Any]


@dataclass
class Timeline:
    """Collects spans and counters; ``write`` makes them a file. Tracks that were used appear in
    the order of ``tracks``, others after them as they came."""

    tracks: tuple[str, ...] = (ROUNDS, DRAFT, VERIFY, HOST, ENGINE)
    name: str = "edgespec"
    _spans: list[Span] = field(default_factory=list, init=False, repr=False)
    _counts: list[tuple[int, str, float]] = field(default_factory=list, init=False, repr=False)

    def add(
        self,
        track: str,
        name: str,
        start_s: float,
        duration_s: float,
        args: Mapping[str, Any] | None = None,
        category: str = "",
    ) -> None:
        """A span. Its ends are rounded to nanoseconds one by one, so that spans which touched
        still do. Raises ValueError for a negative duration."""
        if not duration_s >= 0:
            raise ValueError(f"span '{name}' lasts {duration_s} s; a duration is not negative")
        ends = (round(start_s * 1e9), round((start_s + duration_s) * 1e9))
        self._spans.append(Span(track, name, category or track, *ends, args or {}))

    def count(self, name: str, time_s: float, value: float) -> None:
        """A counter's value from ``time_s`` on."""
        self._counts.append((round(time_s * 1e9), name, value))

    def events(self) -> list[dict[str, Any]]:
        """Metadata, then everything in order of time, enclosing spans first; the first event is at
        0. Raises ValueError where two spans of one track overlap and neither holds the other."""
        used = dict.fromkeys(span.track for span in self._spans)
        tracks = [track for track in self.tracks if track in used]
        tracks += [track for track in used if track not in self.tracks]
        threads = {track: index for index, track in enumerate(tracks, start=1)}
        spans = _nested(sorted(self._spans, key=lambda span: (span.start_ns, -span.end_ns)))
        times = [span.start_ns for span in spans] + [time for time, _, _ in self._counts]
        origin = min(times, default=0)
        timed = [_complete(span, threads[span.track], origin) for span in spans]
        timed += [_counter(*count, origin) for count in self._counts]
        return _metadata(self.name, threads) + sorted(timed, key=lambda event: event["ts"])

    def write(self, path: str | Path) -> None:
        """The trace as a file. Raises InputError where it cannot be written."""
        trace = {"displayTimeUnit": "ms", "traceEvents": self.events()}
        try:
            Path(path).write_text(
                json.dumps(trace, separators=(",", ":"), allow_nan=False), encoding="utf-8"
            )
        except OSError as error:
            raise InputError(
                f"writing the timeline '{path}' failed: {error.strerror}; give a file in a folder "
                "that exists and can be written to"
            ) from None


def timeline_of(rounds: Iterable[RoundSpan], name: str = "edgespec") -> Timeline:
    """Rounds on four tracks: the whole, the draft (its preparation first), the verifier, and what
    is left for the host. Durations are as measured. Within a round only their order is known, so
    the host's share, in truth spread between and after the others, is drawn as one piece at the
    end, and so is the draft's commit with its growing."""
    timeline = Timeline(name=name)
    end_s = None
    for index, item in enumerate(rounds):
        began_s = item.start_s + item.prepare_ms / 1e3
        verify_s = began_s + item.draft_ms / 1e3
        host_s = verify_s + item.verify_ms / 1e3
        host_ms = item.round_ms - item.draft_ms - item.verify_ms
        end_s = max(began_s + item.round_ms / 1e3, host_s)
        args = {"tree_nodes": item.tree_nodes, "accepted": item.accepted}
        timeline.add(ROUNDS, f"round {index}", item.start_s, end_s - item.start_s, args)
        if item.prepare_ms > 0:
            timeline.add(DRAFT, "prepare", item.start_s, item.prepare_ms / 1e3)
        if item.draft_ms > 0:
            timeline.add(DRAFT, "draft", began_s, item.draft_ms / 1e3)
        timeline.add(
            VERIFY, "verify", verify_s, item.verify_ms / 1e3, {"rows": item.tree_nodes + 1}
        )
        if host_ms > 0:  # clocks read one after another can leave nothing
            timeline.add(HOST, "host", host_s, host_ms / 1e3)
        timeline.count("tree nodes", item.start_s, item.tree_nodes)
        timeline.count("accepted", item.start_s, item.accepted)
    if end_s is not None:
        timeline.count("tree nodes", end_s, 0)
        timeline.count("accepted", end_s, 0)
    return timeline


def _nested(spans: Iterable[Span]) -> list[Span]:
    """``spans``, in order of start and longer ones first, such that those of a track nest or follow
    each other. Raises ValueError where they do not."""
    open_spans: dict[str, list[Span]] = {}
    kept = []
    for span in spans:
        outer = open_spans.setdefault(span.track, [])
        while outer and outer[-1].end_ns <= span.start_ns:
            outer.pop()
        while outer and outer[-1].end_ns < span.end_ns:
            before = outer.pop()
            if before.end_ns - span.start_ns > SLACK_NS:
                raise ValueError(
                    f"'{span.name}' begins on track '{span.track}' inside '{before.name}' and ends "
                    "after it; spans of one track nest or follow each other"
                )
            span = replace(span, start_ns=before.end_ns)
        outer.append(span)
        kept.append(span)
    return kept


def _complete(span: Span, thread: int, origin: int) -> dict[str, Any]:
    return {
        "name": span.name,
        "cat": span.category,
        "ph": "X",
        "ts": (span.start_ns - origin) / 1000,
        "dur": (span.end_ns - span.start_ns) / 1000,
        "pid": PROCESS,
        "tid": thread,
        "args": dict(span.args),
    }


def _counter(time: int, name: str, value: float, origin: int) -> dict[str, Any]:
    """Counters belong to the process; a thread is named because readers ask for one."""
    event = {"name": name, "cat": "counter", "ph": "C", "ts": (time - origin) / 1000}
    return {**event, "pid": PROCESS, "tid": 0, "args": {name: value}}


def _metadata(name: str, threads: Mapping[str, int]) -> list[dict[str, Any]]:
    """Names, and the order in which a viewer lists the threads."""

    def event(kind: str, thread: int, key: str, value: str | int) -> dict[str, Any]:
        head = {"name": kind, "ph": "M", "ts": 0, "pid": PROCESS, "tid": thread}
        return {**head, "args": {key: value}}

    events = [event("process_name", 0, "name", name)]
    for track, thread in threads.items():
        events.append(event("thread_name", thread, "name", track))
        events.append(event("thread_sort_index", thread, "sort_index", thread))
    return events
