"""The table that people read."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.family import named
from benchmarks.peers.measure import Result, Settings
from benchmarks.peers.prompts import Question

COLUMNS = (
    "peer", "precision", "mode", "tok/s", "best", "with prompt",
    "first token, ms", "peak MB", "import s", "load s", "= fp32", "= plain",
)  # fmt: skip
REFERENCES = ("transformers:fp32:plain", "edgespec:fp32:plain")


def facts(checkpoint: Path, draft: Path | None, questions: Sequence[Question]) -> dict[str, Any]:
    """Of the machine and of what was asked."""
    return {
        "checkpoint": named(checkpoint),
        "draft": draft.name if draft else None,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "prompt_tokens": {question.name: len(question.ids) for question in questions},
    }


def markdown(results: Sequence[Result], told: dict[str, Any], settings: Settings) -> str:
    """A table of who took part, who did not and why, and versions."""
    model = told["checkpoint"] + (f" with the draft '{told['draft']}'" if told["draft"] else "")
    lengths = ", ".join(f"{name} {size}" for name, size in told["prompt_tokens"].items())
    lines = [
        f"{model} on {told['processor']}, {settings.threads} threads, batch 1, greedy;"
        f" prompts in tokens: {lengths}; up to {settings.new} new tokens; medians of "
        f"{settings.repeats} interleaved repeats.",
        "",
        _row(COLUMNS),
        _row(["---"] * 3 + ["---:"] * (len(COLUMNS) - 3)),
    ]
    ran = [result for result in results if result.tokens and not result.skipped]
    lines += [_row(_cells(result, ran)) for result in ran]
    failed = {result.label: result.skipped for result in results if result not in ran}
    if left := {**failed, **told["left_out"]}:
        lines += ["", "Left out:", ""]
        lines += [f"- {label}: {reason}" for label, reason in left.items()]
    lines += ["", f"Versions: {'; '.join(_versions(ran))}."]
    return "\n".join(lines) + "\n"


def _cells(result: Result, ran: Sequence[Result]) -> list[str]:
    peer, precision, mode = result.label_parts
    firsts = [1e3 * statistics.median(times) for times in result.first_s.values()]
    reference = next((r for name in REFERENCES for r in ran if r.label == name), None)
    plain = next((r for r in ran if r.label == f"{peer}:{precision}:plain"), None)
    return [
        peer,
        precision,
        mode,
        f"{result.tokens_per_s:.1f}",
        f"{result.best_tokens_per_s:.1f}",
        f"{result.whole_tokens_per_s:.1f}",
        " / ".join(f"{ms:.0f}" for ms in firsts),
        f"{result.peak_mb:.0f}",
        f"{min(start['import_s'] for start in result.starts):.2f}",
        f"{min(start['load_s'] for start in result.starts):.2f}",
        equal(result, reference),
        equal(result, plain) if mode != "plain" else "",
    ]


def equal(result: Result, other: Result | None) -> str:
    """Prompts answered by the same tokens."""
    if other is None:
        return ""
    same = sum(result.tokens[name] == other.tokens.get(name) for name in result.tokens)
    return f"{same}/{len(result.tokens)}"


def _versions(ran: Sequence[Result]) -> Iterator[str]:
    seen: dict[str, str] = {}
    for result in ran:
        peer = result.label_parts[0]
        listed = ", ".join(f"{name} {number}" for name, number in result.versions.items())
        if peer not in seen:
            seen[peer] = listed
            yield listed


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
