"""What crosses the network between a client and its server."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from hybrid_rig import Rig, rig
from hybrid_sides import Figures, rows_of

from edgespec_runtime import Model
from edgespec_runtime.bench.data import Row


def count_bytes(bundle: Path, given: argparse.Namespace) -> tuple[Figures, bool]:
    """What crosses the network, by mode: messages as the client counts them, and all bytes of the
    connection as the proxy does."""
    print("| mode | picture | its bytes | messages, B/token: up | down | all: up | down |")
    print("|---|---|--:|--:|--:|--:|--:|")
    figures: Figures = {"modes": {}}
    with rig(bundle) as here:
        here.network.shape(20.0, given.uplink_kbps)
        for mode in ("hybrid", "remote"):
            with here.client(mode=mode) as model:
                figures["modes"][mode] = [
                    _bytes_of(here, model, row, repeat, given.tokens)
                    for row in {row.images: row for row in rows_of(given)}.values()
                    for repeat in (False, True)
                ]
            for repeat in (False, True):
                _print_bytes(mode, repeat, figures["modes"][mode])
    return figures, True


def _bytes_of(here: Rig, model: Model, row: Row, repeat: bool, tokens: int) -> Figures:
    before = here.network.order()
    answer = model.generate(list(row.images), row.turns[0], max_new_tokens=tokens)
    after = here.network.order()
    remote = answer.remote or {}
    return {
        "row": row.id,
        "repeat": repeat,
        "tokens": len(answer.token_ids),
        "rounds": answer.stats.rounds,
        "picture": sum(path.stat().st_size for path in row.images),
        "messages_up": remote["bytes_up"],
        "messages_down": remote["bytes_down"],
        "wire_up": after["up_bytes"] - before["up_bytes"],
        "wire_down": after["down_bytes"] - before["down_bytes"],
    }


def _print_bytes(mode: str, repeat: bool, cells: Sequence[Figures]) -> None:
    """``repeat``: the second time that a picture is asked about, when its digest is enough."""
    own = [cell for cell in cells if cell["repeat"] is repeat]
    sums = {name: sum(cell[name] for cell in own) for name in own[0] if name != "row"}
    picture = 0 if repeat else sums["picture"]
    per_token = [
        (sums[f"{kind}_{way}"] - (picture if way == "up" else 0)) / sums["tokens"]
        for kind in ("messages", "wire")
        for way in ("up", "down")
    ]
    print(
        f"| {mode} | {'known' if repeat else 'new'} | {picture / len(own):.0f} | "
        + " | ".join(f"{value:.0f}" for value in per_token)
        + " |"
    )
