"""What a bundle takes while it is loaded and runs: seconds, and the memory of the process."""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgespec.bundle import read_bundle

ROWS = (1, 8, 16)
CONTEXT = 64
PROMPT = "w17 w23 w99 w4 w1234 w17 w23 w99 w8 w77"
STATUS = ("VmHWM", "RssAnon", "VmRSS")


def run(bundle: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Loads a bundle and decodes: plainly, with look-up in the text so far, with its draft."""
    from edgespec_runtime import load

    before = status(os.getpid())
    started = time.perf_counter()
    read_bundle(bundle)
    checked = time.perf_counter()
    model = load(bundle, threads=arguments.threads, exact=arguments.exact, check_hashes=False)
    figures: dict[str, Any] = {
        "check_s": round(checked - started, 2),
        "load_s": round(time.perf_counter() - checked, 2),
        "loaded_mb": status(os.getpid()),
        "exact": arguments.exact,
        "load_average": os.getloadavg(),
    }
    given = {"max_new_tokens": arguments.tokens, "temperature": 0.0}
    drafts = ("none", "ngram", "model") if model.has_draft else ("none", "ngram")
    said = {draft: model.generate(None, PROMPT, draft=draft, **given) for draft in drafts}
    for draft, answer in said.items():
        stats = answer.stats
        figures[draft] = {
            "prompt_tokens": answer.prompt_tokens,
            "tokens": len(answer.token_ids),
            "first_token_ms": round(stats.ttft_ms, 1),
            "ms_per_token": round(1e3 / stats.tokens_per_s, 1),
            "rounds": stats.rounds,
            "accepted_length": round(stats.accepted_length, 2),
            "draft_ms_per_round": round(stats.draft_ms / stats.rounds, 1),
            "verify_ms_per_round": round(stats.verify_ms / stats.rounds, 1),
            "plain_text": answer.token_ids == said["none"].token_ids,
        }
    figures["step_ms"] = steps(model, arguments.repeats)
    after = status(os.getpid())
    figures["before_mb"], figures["after_mb"] = before, after
    return figures


def steps(model: Any, repeats: int) -> dict[int, dict[str, float]]:
    """Milliseconds of one call over so many rows, behind CONTEXT: least and median."""
    from edgespec_runtime.prefill import causal_mask, prefill

    rng = np.random.default_rng(0)
    table = model.tables["target"]
    session = model.steps["target"].open(CONTEXT + max(ROWS))
    prefill(session, table[rng.integers(4, len(table), CONTEXT).tolist()])
    times: dict[int, list[float]] = {rows: [] for rows in ROWS}
    for _ in range(repeats + 1):  # the first one warms up
        for rows in ROWS:
            embeds = table[rng.integers(4, len(table), rows).tolist()]
            mask, positions = causal_mask(CONTEXT, rows), np.arange(CONTEXT, CONTEXT + rows)
            started = time.perf_counter()
            session.step(embeds, positions, mask)
            times[rows].append((time.perf_counter() - started) * 1e3)
            session.cache.commit(())
    return {
        rows: {"least": round(min(own[1:]), 1), "median": round(statistics.median(own[1:]), 1)}
        for rows, own in times.items()
    }


def status(process: int) -> dict[str, float]:
    """Memory of a process, in MB of 10^6 bytes; nothing where it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines)
    return {key: int(value.split()[0]) * 1024 / 1e6 for key, value in pairs if key in STATUS}
