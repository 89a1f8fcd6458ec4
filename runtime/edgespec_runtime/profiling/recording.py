"""Real rounds of a real prompt, plain and drafted, as a timeline."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import numpy as np
import numpy.typing as npt

from edgespec_runtime.model import Model
from edgespec_runtime.profiling.timeline import ROUNDS, VERIFY, RoundSpan, Timeline, timeline_of
from edgespec_runtime.records import Record

PROMPT = "Describe this image in detail."
NEW = 48
"""Tokens of each request at least, if it does not end before."""
SIDE = 128
"""Pixels of the picture's sides."""
Clocked = tuple[Record, float, float]
"""A record, and when it was asked for and came: seconds."""


def record_rounds(model: Model) -> Timeline:
    """A description of a synthetic picture, decoded plainly and, where the bundle has a draft, with
    it under the model's own policy; each once to warm up and once for the timeline."""
    ways = {"plain": "none"}
    if model.has_draft:
        ways["speculative"] = "model"
    requests: dict[str, list[Clocked]] = {}
    for name, draft in ways.items():
        _run(model, draft)
        requests[name] = _run(model, draft)
    rounds = [span for records in requests.values() for span in _rounds(records)]
    timeline = timeline_of(rounds, name=f"edgespec, {model.bundle.path.name}")
    for name, records in requests.items():
        (_, started, first), (_, _, ended) = records[0], records[-1]
        timeline.add(ROUNDS, name, started, ended - started, {"tokens": len(records)})
        timeline.add(VERIFY, "prefill", started, first - started)
    return timeline


def _run(model: Model, draft: str) -> list[Clocked]:
    request = model.stream(_picture(), PROMPT, draft=draft, temperature=0.0)
    records: list[Clocked] = []
    asked = perf_counter()
    for record in request:
        came = perf_counter()
        if len(records) >= NEW and record.verify_ms:
            break  # a further round has begun
        records.append((record, asked, came))
        asked = perf_counter()
    return records


def _rounds(records: Sequence[Clocked]) -> list[RoundSpan]:
    """Rounds behind the prefill; a round's first record is asked for at its start."""
    spans, at = [], 1
    while at < len(records):
        head, started, _ = records[at]
        last = records[min(at + head.accepted, len(records)) - 1]
        spans.append(
            RoundSpan(
                start_s=started,
                prepare_ms=head.prepare_ms,
                draft_ms=head.draft_ms,
                verify_ms=head.verify_ms,
                round_ms=(last[2] - started) * 1e3 - head.prepare_ms,
                tree_nodes=head.tree_nodes,
                accepted=head.accepted,
            )
        )
        at += head.accepted
    return spans


def _picture() -> npt.NDArray[np.uint8]:
    """Three ramps of colour, [SIDE, SIDE, 3]."""
    ramp = np.linspace(0, 255, SIDE).astype(np.uint8)
    rows, columns = np.meshgrid(ramp, ramp, indexing="ij")
    return np.stack([rows, columns, rows[::-1]], axis=-1)
