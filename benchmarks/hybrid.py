"""Figures of hybrid operation, on this machine: a server, a client, a network between them.

    python benchmarks/hybrid.py modes      tokens/s: hybrid, remote-only, auto, local; by round trip
    python benchmarks/hybrid.py ahead      what drafting on while a verification is away brings
    python benchmarks/hybrid.py bytes      bytes per token and per answer, up and down
    python benchmarks/hybrid.py serving    verifications/s and latency against sessions, batched
    python benchmarks/hybrid.py pause      what a server costs that dies, or hangs, in an answer
    python benchmarks/hybrid.py soak       whether memory stays flat over minutes

The built-in family, server and client on one core each with one engine thread, over loopback
through a proxy that adds the round trip and throttles the uplink to 1 Mbit/s. Sides run
interleaved in an order that is shuffled for every prompt, after a pass that warms up; figures are
medians of each prompt's runs. Every text is compared with plain decoding's.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hybrid_bytes import count_bytes
from hybrid_pause import pause
from hybrid_rig import RTTS_MS, UPLINK_KBPS, builtin, rig
from hybrid_sides import Figures, Sides, ignore, rows_of
from sizing_rig import Speed


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=sorted(COMMANDS))
    parser.add_argument("--bundle", type=Path, help="default: exports the built-in family")
    parser.add_argument(
        "--profile", type=Path, help="of modes and ahead: the client's, measured with --threads 1"
    )
    parser.add_argument("--prompts", type=int, default=1, help="per task and set (default: 1)")
    parser.add_argument("--passes", type=int, default=3, help="after warming up (default: 3)")
    parser.add_argument("--tokens", type=int, default=96, help="most per answer (default: 96)")
    parser.add_argument("--rtt", type=float, nargs="+", default=list(RTTS_MS), metavar="MS")
    parser.add_argument("--uplink-kbps", type=float, default=UPLINK_KBPS)
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--seconds", type=float, default=8.0, help="of serving, per cell")
    parser.add_argument("--minutes", type=float, default=10.0, help="of the soak (default: 10)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = given.bundle or builtin(Path(folder))
        figures, sound = COMMANDS[given.command](bundle, given)
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0 if sound else 1


def modes(bundle: Path, given: argparse.Namespace) -> tuple[Figures, bool]:
    """Every mode at every round trip."""
    asked = {
        "hybrid": {"mode": "hybrid"},
        "remote": {"mode": "remote"},
        "auto": {"mode": "auto"},
    }
    print("| round trip, ms | local | hybrid | remote-only | auto | auto / best |")
    print("|--:|--:|--:|--:|--:|--:|")
    figures: Figures = {"uplink_kbps": given.uplink_kbps, "cells": []}

    def cell(rtt: float, speeds: Mapping[str, Speed], sides: Sides) -> None:
        per_s = {side: speed.per_s for side, speed in speeds.items()}
        ratio = per_s["auto"] / max(per_s["hybrid"], per_s["remote"])
        lengths = {side: _length(speed) for side, speed in speeds.items()}
        figures["cells"].append(
            {"rtt_ms": rtt, "tokens_per_s": per_s, "auto_over_best": ratio, "lengths": lengths}
        )
        print(
            f"| {rtt:g} | {per_s['local']:.1f} | {per_s['hybrid']:.1f} | {per_s['remote']:.1f} | "
            f"{per_s['auto']:.1f} | {ratio:.3f} |",
            flush=True,
        )

    figures["different"] = _sweep(bundle, given, asked, cell)
    return figures, not figures["different"]


def ahead(bundle: Path, given: argparse.Namespace) -> tuple[Figures, bool]:
    """Draft-ahead on and off, hybrid throughout."""
    asked = {"off": {"mode": "hybrid", "ahead": False}, "on": {"mode": "hybrid", "ahead": True}}
    print("| round trip, ms | tokens/verification, off | on | ms/token, off | on | on / off |")
    print("|--:|--:|--:|--:|--:|--:|")
    figures: Figures = {"uplink_kbps": given.uplink_kbps, "cells": []}

    def cell(rtt: float, speeds: Mapping[str, Speed], sides: Sides) -> None:
        length = {side: _length(speeds[side]) for side in asked}
        ms = {side: 1e3 / speeds[side].per_s for side in asked}
        figures["cells"].append({"rtt_ms": rtt, "tokens_per_round": length, "ms_per_token": ms})
        print(
            f"| {rtt:g} | {length['off']:.2f} | {length['on']:.2f} | {ms['off']:.1f} | "
            f"{ms['on']:.1f} | {ms['on'] / ms['off']:.3f} |",
            flush=True,
        )

    figures["different"] = _sweep(bundle, given, asked, cell)
    return figures, not figures["different"]


def _sweep(
    bundle: Path,
    given: argparse.Namespace,
    asked: Mapping[str, Mapping[str, Any]],
    cell: Callable[[float, Mapping[str, Speed], Sides], None],
) -> int:
    """Runs ``asked`` and the local target at every round trip; how many answers were not plain
    decoding's. Every round trip gets models of its own, which know nothing of others."""
    different = 0
    with rig(bundle, profile=given.profile) as here, here.client(local=True) as local:
        for rtt in given.rtt:
            here.network.shape(rtt, given.uplink_kbps)
            with ExitStack() as stack:
                models = {
                    side: stack.enter_context(here.client(**settings))
                    for side, settings in asked.items()
                }
                sides = Sides({**models, "local": local}, rows_of(given), given.tokens)
                sides.learn_right(local)
                cell(rtt, sides.run(given.passes, ignore), sides)
                different += sides.different
    if different:
        print(f"{different} answers were not those of plain decoding", file=sys.stderr)
    return different


def _length(speed: Speed) -> float:
    """Tokens per verification, bonus counted."""
    return speed.tokens / speed.rounds if speed.rounds else 0.0


def serving(bundle: Path, given: argparse.Namespace) -> tuple[Figures, bool]:
    """Closed loops of verifications, one per session, batched and one by one."""
    from hybrid_load import Scripts, load

    print("| sessions | batch | verifications/s | tokens/s | p50, ms | p99, ms | mean batch |")
    print("|--:|--:|--:|--:|--:|--:|--:|")
    figures: Figures = {"cells": []}
    with ExitStack() as stack:
        rigs = {batch: stack.enter_context(rig(bundle, "--batch", batch)) for batch in (1, 8)}
        scripts = Scripts.record(rigs[1], rows_of(given), given.tokens).long()
        for sessions in given.sessions:
            for batch, here in rigs.items():
                cell = {"batch": batch, **load(here, scripts, sessions, given.seconds)}
                figures["cells"].append(cell)
                print(
                    f"| {sessions} | {batch} | {cell['per_s']:.0f} | {cell['tokens_per_s']:.0f} | "
                    f"{cell['p50_ms']:.1f} | {cell['p99_ms']:.1f} | {cell['mean_batch']:.2f} |",
                    flush=True,
                )
    wrong = sum(cell["wrong"] for cell in figures["cells"])
    return figures, not wrong


def soak(bundle: Path, given: argparse.Namespace) -> tuple[Figures, bool]:
    """Memory of server and client over minutes of answers."""
    from hybrid_load import Memory, keep_asking

    figures: Figures = {}
    with rig(bundle, "--kv-mb", 64) as here:
        here.network.shape(2.0, 0.0)
        with here.client(mode="auto") as model:
            memory = Memory(here.server.pid)
            figures["answers"] = keep_asking(
                model, rows_of(given), given.tokens, given.minutes * 60, memory.sample
            )
    print("| process | start, MB | end, MB | slope, MB/min | flat |\n|---|--:|--:|--:|---|")
    for name, line in memory.lines().items():
        figures[name] = line
        print(
            f"| {name} | {line['start_mb']:.1f} | {line['end_mb']:.1f} | "
            f"{line['slope_mb_per_min']:+.3f} | {'yes' if line['flat'] else 'NO'} |"
        )
    print(f"\n{figures['answers']} answers in {given.minutes:g} minutes")
    return figures, all(line["flat"] for line in memory.lines().values())


COMMANDS: Mapping[str, Callable[[Path, argparse.Namespace], tuple[Figures, bool]]] = {
    "modes": modes,
    "ahead": ahead,
    "bytes": count_bytes,
    "serving": serving,
    "pause": pause,
    "soak": soak,
}


if __name__ == "__main__":
    sys.exit(main())
