"""Sizing by measured cost against fixed settings and other policies, on this machine.

    python benchmarks/sizing.py sweep --bundle B --profile P      every fixed setting, per task
    python benchmarks/sizing.py named --bundle B --profile P      every policy by name, mixed tasks
    python benchmarks/sizing.py losses --bundle B --profile P     what must never lose
    python benchmarks/sizing.py forecast --bundle B --profile P   predicted against measured speed
    python benchmarks/sizing.py coupling --bundle B               accepted length at temperature > 0

All sides run interleaved in one process, in an order that is shuffled for every prompt; the first
pass over all prompts warms up and is where sizing learns. Speeds are tokens after the first by time
after the first, the draft's prompt included. Every text is compared with plain decoding's.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from sizing_forecast import forecast, sweep_settings
from sizing_losses import losses
from sizing_rig import mixed, rows_of, run_sides

import edgespec_runtime

NAMED = (
    "chain:depth=6",
    "chain:depth=12",
    "tree",
    "eagle2",
    "rolling",
    "threshold",
    "opt-tree:nodes=16,top_k=4",
    "sequoia",
    "sage",
)


def sweep(arguments: argparse.Namespace) -> dict[str, Any]:
    """The rule against every fixed setting, task by task and over the mix."""
    model = edgespec_runtime.load(arguments.bundle, profile=arguments.profile)
    sides = {name: {"policy": name} for name in ("plain", "sized", *sweep_settings())}
    table = run_sides(model, rows_of(arguments), sides, arguments.passes)
    report: dict[str, Any] = {"tasks": {}}
    print("| task | plain tok/s | sized | best fixed | which | sized / best |")
    print("|---|--:|--:|--:|---|--:|")
    for task, of in sorted(table.items()):
        speeds = {side: speed.per_s for side, speed in of.items()}
        best = max((s for s in speeds if s != "sized"), key=speeds.__getitem__)
        ratio = speeds["sized"] / speeds[best]
        report["tasks"][task] = {"speeds": speeds, "best": best, "ratio": ratio}
        print(
            f"| {task} | {speeds['plain']:.0f} | {speeds['sized']:.0f} | {speeds[best]:.0f} | "
            f"{best} | {ratio:.3f} |"
        )
    whole = mixed(table)
    best = max((s for s in whole if s != "sized"), key=whole.__getitem__)
    report["mixed"] = {"speeds": whole, "best": best, "ratio": whole["sized"] / whole[best]}
    print(
        f"| mixed | {whole['plain']:.0f} | {whole['sized']:.0f} | {whole[best]:.0f} | {best} | "
        f"{report['mixed']['ratio']:.3f} |"
    )
    report["experience"] = model.experience.as_json()
    return report


def named(arguments: argparse.Namespace) -> dict[str, Any]:
    """The rule against every policy by name."""
    model = edgespec_runtime.load(arguments.bundle, profile=arguments.profile)
    sides = {name: {"policy": name} for name in ("plain", "sized", *NAMED)}
    table = run_sides(model, rows_of(arguments), sides, arguments.passes, arguments.temperature)
    whole = mixed(table)
    print("| policy | tok/s | over plain | sized over it |\n|---|--:|--:|--:|")
    for side, speed in sorted(whole.items(), key=lambda item: -item[1]):
        print(
            f"| {side} | {speed:.0f} | {speed / whole['plain']:.2f} | "
            f"{whole['sized'] / speed:.3f} |"
        )
    return {"speeds": whole, "experience": model.experience.as_json()}


def coupling(arguments: argparse.Namespace) -> dict[str, Any]:
    """Accepted length and speed with and without the target's noise in the draft's ranking."""
    model = edgespec_runtime.load(arguments.bundle, profile=arguments.profile)
    rows = [row for row in rows_of(arguments) if row.task in ("detailed", "caption", "list")]
    report: dict[str, Any] = {}
    print(
        "| policy | T | accepted length, coupled | uncoupled | speed ratio |\n|---|--:|--:|--:|--:|"
    )
    policies = ["chain:depth=12", "eagle2:nodes=16,depth=6,top_k=4"]
    policies += ["sized"] if arguments.profile else []
    for policy in policies:
        for temperature in (0.5, 1.0, 1.5):
            sides = {
                "coupled": {"policy": policy, "coupled": True},
                "uncoupled": {"policy": policy, "coupled": False},
            }
            table = run_sides(model, rows, sides, arguments.passes, temperature)
            lengths = {
                side: sum(of[side].tokens for of in table.values())
                / sum(of[side].rounds for of in table.values())
                for side in sides
            }
            speed = mixed(table)
            ratio = speed["coupled"] / speed["uncoupled"]
            report[f"{policy} T={temperature}"] = {**lengths, "speed_ratio": ratio}
            print(
                f"| {policy} | {temperature} | {lengths['coupled']:.2f} | "
                f"{lengths['uncoupled']:.2f} | {ratio:.3f} |",
                flush=True,
            )
    return report


COMMANDS = {
    "sweep": sweep,
    "named": named,
    "losses": losses,
    "forecast": forecast,
    "coupling": coupling,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--task", action="append", default=[])
    parser.add_argument("--prompts", type=int, default=8, help="per task and set")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    report = COMMANDS[arguments.command](arguments)
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
