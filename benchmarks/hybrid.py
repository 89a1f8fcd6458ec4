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
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hybrid_rig import RTTS_MS, UPLINK_KBPS, Rig, builtin, cores, pinned, rig
from sizing import Speed

from edgespec_export.family import sample_folder
from edgespec_runtime import Model
from edgespec_runtime.bench.data import Row, read_sets, select
from edgespec_runtime.records import Generation

Figures = dict[str, Any]
DEADLINE_MS = 2000.0
STRIKE = 8
"""Tokens in front of a server's end."""


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


def rows_of(given: argparse.Namespace) -> list[Row]:
    """Questions with one turn, of the family's own samples."""
    paths = [sample_folder() / f"{domain}.jsonl" for domain in ("in_domain", "out_of_domain")]
    return select([row for row in read_sets(paths) if len(row.turns) == 1], (), given.prompts)


class Sides:
    """Ways to answer the same prompts, run in turn."""

    def __init__(self, models: Mapping[str, Model], rows: Sequence[Row], tokens: int) -> None:
        self._models = models
        self._rows = rows
        self._tokens = tokens
        self.right: dict[str, tuple[int, ...]] = {}
        """What plain decoding says, by row."""
        self._rng = random.Random(0)
        self.different = 0
        """Answers that were not plain decoding's."""

    def run(self, passes: int, heard: Callable[[str, Generation], None]) -> dict[str, Speed]:
        """Speeds by side; ``heard`` is told every answer behind the first pass."""
        speeds = {side: Speed() for side in self._models}
        for number in range(passes + 1):
            for row in self._rows:
                sides = list(self._models)
                self._rng.shuffle(sides)
                for side in sides:
                    answer = self._answer(self._models[side], row)
                    self._compare(row, answer)
                    if number:
                        _add(speeds[side], row, answer)
                        heard(side, answer)
        return speeds

    def learn_right(self, local: Model) -> None:
        """Has ``local`` say what is right."""
        for row in self._rows:
            self.right[row.id] = self._answer(local, row, draft="none").token_ids

    def rows_longer_than(self, tokens: int) -> list[Row]:
        """Rows whose answer is long enough for something to happen in the middle."""
        return [row for row in self._rows if len(self.right[row.id]) > tokens]

    def _answer(self, model: Model, row: Row, **settings: Any) -> Generation:
        return model.generate(
            list(row.images), row.turns[0], max_new_tokens=self._tokens, **settings
        )

    def _compare(self, row: Row, answer: Generation) -> None:
        self.different += answer.token_ids != self.right[row.id]


def _add(speed: Speed, row: Row, answer: Generation) -> None:
    stats = answer.stats
    speed.tokens += len(answer.token_ids) - 1
    speed.rounds += stats.rounds
    speed.times.append(stats.total_ms - stats.ttft_ms)
    speed.whole.append(stats.total_ms)
    speed.per_prompt.setdefault(row.id, []).append(stats.total_ms - stats.ttft_ms)


def ignore(side: str, answer: Generation) -> None:
    """For runs of which the speeds are enough."""


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
