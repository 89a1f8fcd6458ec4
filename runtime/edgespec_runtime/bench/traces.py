"""Traces: one JSON line per counted run, with what every round proposed, brought and took.

Enough to replay an answer elsewhere, on another device and under another policy, without models:
``edgespec_runtime.simulate`` reads them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, TextIO

from edgespec.errors import EdgespecError
from edgespec_runtime.bench.measure import Run, Side, Turn

FORMAT = 2
"""Of a line; the first one had no number and could not be replayed."""


@dataclass(frozen=True)
class Recorder:
    """Writes every run as soon as it is over, so that an interrupted file holds whole lines."""

    file: TextIO

    def __call__(self, turn: Turn, side: Side, repeat: int, run: Run) -> None:
        try:
            line = json.dumps(trace(turn, side, repeat, run), separators=(",", ":"))
            self.file.write(line + "\n")
            self.file.flush()
        except OSError as error:
            raise EdgespecError(f"writing '{self.file.name}' failed: {error.strerror}") from None


def trace(turn: Turn, side: Side, repeat: int, run: Run) -> dict[str, Any]:
    """One run. ``accepted`` counts the bonus token; the lists have one entry per round after the
    prefill; times are milliseconds. The method "plain" is decoding without a draft.

    ``path`` holds per round, from the root down, [rank, log-probability, ...] of the children of
    every expanded node on the answer's path: see ``Proposal``. ``named`` says whether verification
    told the target's token at every node.
    """
    setting, rounds = run.setting, run.proposals
    return {
        "format": FORMAT,
        "id": turn.row.id,
        "turn": turn.number,
        "domain": turn.row.domain,
        "task": turn.row.task,
        "bundle": turn.bundle,
        "target": turn.identity.target,
        "draft": turn.identity.draft,
        "draft_positions": turn.identity.draft_positions,
        "method": side.method.name,
        "compressor": side.method.compressor,
        "policy": side.policy,
        "temperature": turn.temperature,
        "coupled": setting.coupled,
        "named": run.named,
        "seed": turn.seed,
        "repeat": repeat,
        "prompt_tokens": run.prompt_tokens,
        "draft_prompt_tokens": setting.draft_prompt_tokens,
        "images": setting.images,
        "question": setting.question,
        "eos": sorted(setting.eos),
        "max_new_tokens": setting.max_new_tokens,
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
        "prepare_ms": [round(one.prepare_ms, 4) for one in rounds],
        "growth": [one.growth for one in rounds],
        "calls": [one.calls for one in rounds],
        "path": [[[node.rank, *node.logprobs] for node in one.path] for one in rounds],
        "astray": [one.astray for one in rounds],
    }
