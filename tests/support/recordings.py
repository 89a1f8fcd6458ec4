"""Recorded answers for tests: real toy runs and hand-made ones, as lines of a trace."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from edgespec_runtime.bench.proposals import proposals
from edgespec_runtime.bench.traces import FORMAT
from edgespec_runtime.decoder import Round

Node = list[float]


def values(tokens: Sequence[int], path: Sequence[Sequence[Node]], **fields: Any) -> dict[str, Any]:
    """The content of a line whose rounds proposed ``path`` and brought one token each, unless
    ``accepted`` says otherwise."""
    rounds = len(path)
    line = {
        "format": FORMAT,
        "id": "a", "turn": 1, "domain": "own", "task": "t", "bundle": "b",
        "target": "f" * 64, "draft": "d" * 64, "draft_positions": 10_000,
        "method": "vlm", "compressor": "pool:4", "policy": "survey",
        "temperature": 0.0, "coupled": False, "named": True, "seed": 0, "repeat": 1,
        "prompt_tokens": 100, "draft_prompt_tokens": 64, "images": 1, "question": [3, 4],
        "eos": [2],
        "max_new_tokens": 256, "tokens": list(tokens), "finish_reason": "eos",
        "ttft_ms": 1.0, "draft_prefill_ms": 1.0, "host_ms": 1.0, "total_ms": 9.0,
        "accepted": [1] * rounds, "tree_nodes": [0] * rounds,
        "draft_ms": [1.0] * rounds, "verify_ms": [1.0] * rounds, "prepare_ms": [0.0] * rounds,
        "growth": ["chain"] * rounds, "calls": [[1]] * rounds,
        "path": list(path), "astray": [[0, 0]] * rounds,
    }  # fmt: skip
    return {**line, **fields}


def recorded(rounds: Sequence[Round], **fields: Any) -> dict[str, Any]:
    """The content of a line for a real run; ``fields`` say what it cannot know of itself."""
    tokens = [token for outcome in rounds for token in outcome.tokens]
    seen = proposals(rounds, tokens)
    after = rounds[1:]
    return values(
        tokens,
        [[[node.rank, *node.logprobs] for node in one.path] for one in seen],
        accepted=[len(outcome.tokens) for outcome in after],
        tree_nodes=[outcome.tree_nodes for outcome in after],
        growth=[one.growth for one in seen],
        calls=[list(one.calls) for one in seen],
        astray=[asdict(one)["astray"] for one in seen],
        named=all(o.feedback is None or o.feedback.named is not None for o in rounds),
        finish_reason=rounds[-1].finish_reason,
        **fields,
    )


def written(*lines: dict[str, Any]) -> str:
    """The text of a trace file."""
    return "".join(json.dumps(line) + "\n" for line in lines)
