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
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

import edgespec_runtime
from edgespec.bundle import read_bundle
from edgespec.latency import bundle_facts, load_profile
from edgespec.sizing import Feedback, Growth, Policy, Setting, Sizer, parse_policy
from edgespec.sizing.costs import Drift, RoundCosts
from edgespec_export.exporter import export_bundle
from edgespec_export.family import export_request, sample_folder
from edgespec_runtime.bench.data import Row, read_sets, select

DEPTHS = (1, 2, 3, 4, 6, 9, 12, 18, 24)
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
HOG = "while True: pass"


@dataclass
class Speed:
    """Sums of one side on one task."""

    tokens: int = 0
    rounds: int = 0
    times: list[float] = field(default_factory=list)
    """After the first token, of every answer."""
    whole: list[float] = field(default_factory=list)
    """From the call, of every answer."""
    per_prompt: dict[str, list[float]] = field(default_factory=dict)

    @property
    def per_s(self) -> float:
        """Tokens per second over all prompts, each with its median time."""
        ms = sum(statistics.median(times) for times in self.per_prompt.values())
        return 1e3 * self.tokens / self.passes / ms if ms else 0.0

    @property
    def passes(self) -> int:
        return max(len(times) for times in self.per_prompt.values())


Table = dict[str, dict[str, Speed]]  # task -> side -> speed


def sweep_settings() -> list[str]:
    """Fixed settings: chains of every depth without and with siblings, beams of 2 and 4."""
    found = [f"eagle2:nodes={d},depth={d},top_k=1" for d in DEPTHS]
    found += [f"eagle2:nodes={2 * d},depth={d},top_k=2,beam_width=1" for d in (2, 3, 6, 9, 12)]
    found += [
        f"eagle2:nodes={n},depth={d},top_k={w}"
        for w in (2, 4)
        for d in (2, 3, 4, 6)
        for n in (w * d // 2, w * d)
    ]
    return found


def run_sides(
    model: edgespec_runtime.Model,
    rows: Sequence[Row],
    sides: dict[str, dict[str, Any]],
    passes: int,
    temperature: float = 0.0,
    before: Callable[[int, int], None] = lambda done, total: None,
    warm_up: bool = True,
) -> Table:
    """``passes`` counted passes over all rows in random order, every side on each, behind one
    that is not; without ``warm_up`` just the engine is warmed, by plain decoding."""
    rng, table, texts = random.Random(0), Table(), dict[str, tuple[int, ...]]()
    first = 0 if warm_up else 1
    total, done = (passes + 1 - first) * len(rows), 0
    for row in rows[:5]:
        model.generate(list(row.images), row.turns[0], policy="plain")
    for counted in range(first, passes + 1):
        for row in rng.sample(list(rows), len(rows)):
            before(done, total)
            done += 1
            for side in rng.sample(list(sides), len(sides)):
                settings = {"temperature": temperature, "seed": hash(row.id) % 1000}
                answer = model.generate(list(row.images), row.turns[0], **settings, **sides[side])
                key = f"{row.domain}/{row.id}"
                if texts.setdefault(key, answer.token_ids) != answer.token_ids:
                    sys.exit(f"NOT EXACT: {side} on {key}")
                if counted:
                    speed = table.setdefault(row.task, {}).setdefault(side, Speed())
                    stats = answer.stats
                    speed.tokens += len(answer.token_ids) - 1
                    speed.rounds += stats.rounds
                    times = speed.per_prompt.setdefault(key, [])
                    times.append(stats.total_ms - stats.ttft_ms)
                    speed.times.append(times[-1])
                    speed.whole.append(stats.total_ms)
            print(f"\r{done}/{total}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return table


def mixed(table: Table) -> dict[str, float]:
    """Tokens per second of every side over all tasks."""
    sides = next(iter(table.values()))
    sums = {}
    for side in sides:
        tokens = sum(of[side].tokens / of[side].passes for of in table.values())
        ms = sum(
            statistics.median(times)
            for of in table.values()
            for times in of[side].per_prompt.values()
        )
        sums[side] = 1e3 * tokens / ms
    return sums


def rows_of(arguments: argparse.Namespace) -> list[Row]:
    paths = [sample_folder() / f"{domain}.jsonl" for domain in ("in_domain", "out_of_domain")]
    single = [row for row in read_sets(paths) if len(row.turns) == 1]
    return select(single, arguments.task, arguments.prompts)


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


def losses(arguments: argparse.Namespace) -> dict[str, Any]:
    """Sizing against plain decoding where drafting cannot win; learning included, nothing is
    warmed up but the engine. Ratios of decoding speed, and of the time from call to last token."""
    load = partial(edgespec_runtime.load, profile=arguments.profile)
    rows = rows_of(arguments)
    report = {}
    print("| scenario | sized / plain, decoding | end to end |\n|---|--:|--:|")

    def scenario(name: str, model: Any, chosen: Sequence[Row], temperature: float = 0.0) -> None:
        hog: list[subprocess.Popen[bytes]] = []

        def half_way(done: int, total: int) -> None:
            if name == "hog" and not hog and done >= total // 2:
                hog.append(subprocess.Popen([sys.executable, "-c", HOG]))

        sides: dict[str, dict[str, Any]] = {"plain": {"policy": "plain"}, "sized": {}}
        try:
            table = run_sides(
                model, chosen, sides, arguments.passes, temperature, half_way, warm_up=False
            )
        finally:
            for process in hog:
                process.kill()
        decode = {s: sum(sum(of[s].times) for of in table.values()) for s in sides}
        whole = {s: sum(sum(of[s].whole) for of in table.values()) for s in sides}
        ratios = (decode["plain"] / decode["sized"], whole["plain"] / whole["sized"])
        report[name] = ratios
        print(f"| {name} | {ratios[0]:.3f} | {ratios[1]:.3f} |", flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        bundle = with_random_draft(Path(scratch))
        facts = bundle_facts(read_bundle(bundle, check_hashes=False))
        profile = replace(load_profile(arguments.profile), bundle=facts)
        scenario("adversarial draft", edgespec_runtime.load(bundle, profile=profile), rows)
    scenario("T = 1.5", load(arguments.bundle), rows, 1.5)
    model = load(arguments.bundle)
    short = [r for r in rows if len(model.generate(list(r.images), r.turns[0]).token_ids) <= 4]
    scenario("one-word answers", load(arguments.bundle), short)
    scenario("hog", load(arguments.bundle), rows)
    return report


def with_random_draft(folder: Path) -> Path:
    """The built-in target with a draft whose weights are noise of the same spread."""
    request = export_request("draft", folder / "random.bundle")
    noisy = folder / "draft"
    shutil.copytree(str(request.draft), noisy)
    rng = np.random.default_rng(0)
    for file in noisy.glob("*.safetensors"):
        noise = {
            name: (rng.standard_normal(old.shape) * old.std()).astype(old.dtype)
            for name, old in load_file(file).items()
        }
        save_file(noise, file, metadata={"format": "pt"})
    export_bundle(replace(request, draft=str(noisy)))
    return folder / "random.bundle"


@dataclass(frozen=True)
class Watched:
    """A policy whose rounds are kept."""

    policy: Policy
    rounds: list[Feedback]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)

    def start(self, setting: Setting) -> Sizer:
        sizer = self.policy.start(setting)
        learn = sizer.learn

        def watched(feedback: Feedback) -> None:
            self.rounds.append(feedback)
            learn(feedback)

        sizer.learn = watched  # type: ignore[method-assign]
        return sizer


def forecast(arguments: argparse.Namespace) -> dict[str, Any]:
    """The profile's prediction for the rounds that every fixed setting really had, against the
    time they took: is the cost model right? No correction is learnt."""
    model = edgespec_runtime.load(arguments.bundle, profile=arguments.profile)
    assert model.profile is not None and model.draft is not None
    rows = rows_of(arguments)
    costs = RoundCosts(model.profile.costs, Drift(), nodes=64, width=16, sampled=False)
    report: dict[str, Any] = {}
    names = ("plain", *sweep_settings())
    times: dict[str, dict[str, list[tuple[float, float]]]] = {name: {} for name in names}
    tokens = {}
    rng = random.Random(0)
    for counted in range(arguments.passes + 1):
        for row in rng.sample(rows, len(rows)):
            for name in rng.sample(names, len(names)):
                watched = Watched(parse_policy(name), [])
                answer = model.generate(list(row.images), row.turns[0], policy=watched)
                stats, key = answer.stats, f"{row.domain}/{row.id}"
                if counted:
                    predicted = sum(predicted_ms(costs, f) for f in watched.rounds)
                    measured = stats.total_ms - stats.ttft_ms - stats.prepare_ms
                    times[name].setdefault(key, []).append((predicted, measured))
                    tokens[key] = len(answer.token_ids) - 1
    print("| setting | predicted tok/s | measured | predicted / measured |\n|---|--:|--:|--:|")
    for name, of in times.items():
        predicted, measured = (
            sum(statistics.median(pair[i] for pair in pairs) for pairs in of.values())
            for i in (0, 1)
        )
        report[name] = measured / predicted
        print(
            f"| {name} | {1e3 * sum(tokens.values()) / predicted:.0f} | "
            f"{1e3 * sum(tokens.values()) / measured:.0f} | {measured / predicted:.3f} |"
        )
    off = [abs(ratio - 1) for ratio in report.values()]
    print(f"median difference {statistics.median(off):.1%}, largest {max(off):.1%}")
    pace = statistics.median(report.values())
    off = [abs(ratio / pace - 1) for ratio in report.values()]
    print(
        f"after one factor for all, {pace:.3f}, as drift correction learns it: median "
        f"{statistics.median(off):.1%}, largest {max(off):.1%}"
    )
    return report


def predicted_ms(costs: RoundCosts, feedback: Feedback) -> float:
    """A round's time by the profile alone."""
    context = feedback.root.context
    total = costs.verify_one(len(feedback.chosen), context) + costs.host(feedback.emitted)
    if feedback.growth is not Growth.NONE:
        total += costs.calls(feedback.growth is Growth.CHAIN, feedback.calls, context)
    return total


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
