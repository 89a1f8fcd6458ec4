"""What a server costs that dies, or hangs, in an answer."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

from hybrid_rig import Rig, cores, pinned, rig
from hybrid_sides import Figures, Sides, rows_of

from edgespec_runtime import Model
from edgespec_runtime.bench.data import Row

DEADLINE_MS = 2000.0
STRIKE = 8
"""Tokens in front of a server's end."""


def pause(bundle: Path, given: argparse.Namespace) -> tuple[Figures, bool]:
    """The longest round of answers whose server dies or hangs half way, with another to go on."""
    print("| server | answers | pause, ms: median | max | usual round, ms | an open, ms |")
    print("|---|--:|--:|--:|--:|--:|")
    figures: Figures = {"rtt_ms": 20.0, "deadline_ms": DEADLINE_MS, "different": 0}
    with rig(bundle) as one, rig(bundle) as other, one.client(local=True) as local:
        sides = Sides({}, rows_of(given), given.tokens)
        sides.learn_right(local)
        for here in (one, other):
            here.network.shape(figures["rtt_ms"], given.uplink_kbps)
        with one.client(other, mode="hybrid", deadline_ms=DEADLINE_MS) as model:
            for kind in ("dies", "hangs"):
                cells = figures[kind] = [
                    _struck(model, (one, other), row, kind, given.tokens)
                    for _ in range(given.passes)
                    for row in sides.rows_longer_than(3 * STRIKE)
                ]
                figures["different"] += sum(
                    tuple(cell["tokens"]) != sides.right[cell["row"]] for cell in cells
                )
                _print_pauses(kind, cells)
    return figures, not figures["different"]


def _struck(model: Model, rigs: Sequence[Rig], row: Row, kind: str, tokens: int) -> Figures:
    """One answer whose server is struck behind its eighth token."""
    request = model.stream(list(row.images), row.turns[0], max_new_tokens=tokens)
    waits: list[float] = []
    request.listen(lambda outcome: waits.append(outcome.verify_ms))
    told = [next(request).token for _ in range(STRIKE)]
    at = (request.remote or {})["endpoint"]
    server = next(here.server for here in rigs if here.network.address == at)
    before = len(waits)
    server.kill() if kind == "dies" else server.pause()
    told += [record.token for record in request]
    if kind == "dies":
        with pinned(cores()[0]):
            server.restart()
    else:
        server.resume()
    usual = statistics.median(waits[1:before])
    return {
        "row": row.id,
        "tokens": told,
        "pause_ms": max(waits[before:], default=usual) - usual,
        "round_ms": usual,
        "open_ms": waits[0],
    }


def _print_pauses(kind: str, cells: Sequence[Figures]) -> None:
    pauses = [cell["pause_ms"] for cell in cells]
    usual, opens = (statistics.median(c[name] for c in cells) for name in ("round_ms", "open_ms"))
    print(
        f"| {kind} | {len(cells)} | {statistics.median(pauses):.0f} | {max(pauses):.0f} | "
        f"{usual:.0f} | {opens:.0f} |",
        flush=True,
    )
