"""Traces: one JSON line per counted run, with what every round proposed, brought and took.

Enough to replay a run elsewhere (another latency, another policy's bookkeeping) without models.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, TextIO

from edgespec.errors import EdgespecError
from edgespec_runtime.bench.measure import Run, Side, Turn


@dataclass(frozen=True)
class Recorder:
    """Writes every run as soon as it is over, so that an interrupted file holds whole lines."""

    file: TextIO

    def __call__(self, turn: Turn, side: Side, repeat: int, run: Run) -> None:
        try:
            self.file.write(json.dumps(trace(turn, side, repeat, run)) + "\n")
            self.file.flush()
        except OSError as error:
            raise EdgespecError(f"writing '{self.file.name}' failed: {error.strerror}") from None


def trace(turn: Turn, side: Side, repeat: int, run: Run) -> dict[str, Any]:
    """One run. ``accepted`` counts the bonus token; the lists have one entry per round after the
    prefill; times are milliseconds. The method "plain" is decoding without a draft."""
    return {
        "id": turn.row.id,
        "turn": turn.number,
        "domain": turn.row.domain,
        "task": turn.row.task,
        "bundle": turn.bundle,
        "method": side.method.name,
        "compressor": side.method.compressor,
        "policy": side.policy,
        "temperature": turn.temperature,
        "seed": turn.seed,
        "repeat": repeat,
        "prompt_tokens": run.prompt_tokens,
        "tokens": list(run.tokens),
        "finish_reason": run.finish_reason,
        "ttft_ms": round(run.first_ms, 4),
        "draft_prefill_ms": round(run.draft_prefill_ms, 4),
        "host_ms": round(run.stats.host_ms, 4),
        "total_ms": round(run.total_ms, 4),
        "accepted": [record.accepted for record in run.rounds],
        "tree_nodes": [record.tree_nodes for record in run.rounds],
        "draft_ms": [round(record.draft_ms, 4) for record in run.rounds],
        "verify_ms": [round(record.verify_ms, 4) for record in run.rounds],
    }
