"""Whether the cost model is right: predicted against measured time of every fixed setting."""

from __future__ import annotations

import argparse
import random
import statistics
from dataclasses import dataclass
from typing import Any

from sizing_rig import rows_of

import edgespec_runtime
from edgespec.sizing import Feedback, Growth, Policy, Setting, Sizer, parse_policy
from edgespec.sizing.costs import RoundCosts
from edgespec.sizing.drift import Drift

DEPTHS = (1, 2, 3, 4, 6, 9, 12, 18, 24)


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
