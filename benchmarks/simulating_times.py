"""Times of policies, measured and predicted, and how far they are apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgespec_runtime.simulate.simulation import PLAIN


@dataclass
class Times:
    """Of one policy on one task: tokens after the first and their time, every answer once."""

    tokens: int = 0
    measured_ms: float = 0.0
    predicted_ms: float = 0.0
    rounds: int = 0
    predicted_rounds: int = 0

    def add(self, other: Times) -> None:
        self.tokens += other.tokens
        self.measured_ms += other.measured_ms
        self.predicted_ms += other.predicted_ms
        self.rounds += other.rounds
        self.predicted_rounds += other.predicted_rounds

    @property
    def measured(self) -> float:
        """Tokens per second."""
        return 1e3 * self.tokens / self.measured_ms

    @property
    def predicted(self) -> float:
        return 1e3 * self.tokens / self.predicted_ms

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1

    def as_json(self) -> dict[str, float]:
        return {
            "measured": self.measured,
            "predicted": self.predicted,
            "error": self.error,
            "accepted_length": self.tokens / self.rounds,
            "accepted_length_predicted": self.tokens / self.predicted_rounds,
        }


Table = dict[str, dict[str, Times]]  # task -> policy -> times


def over_all(table: Table) -> dict[str, Times]:
    """Sums over all tasks."""
    total: dict[str, Times] = {}
    for of_task in table.values():
        for name, times in of_task.items():
            total.setdefault(name, Times()).add(times)
    return total


def speedups(of_policy: Mapping[str, Times], name: str) -> tuple[float, float]:
    """Over plain decoding, measured and predicted."""
    plain, own = of_policy[PLAIN], of_policy[name]
    return own.measured / plain.measured, own.predicted / plain.predicted


def show(title: str, of_policy: Mapping[str, Times]) -> None:
    print(f"\n{title}\n")
    print(
        "| policy | measured tok/s | predicted | error | speedup | predicted | error "
        "| accepted length | predicted |"
    )
    print("|---|" + "--:|" * 8)
    for name, times in of_policy.items():
        real, told = speedups(of_policy, name)
        print(
            f"| {name} | {times.measured:.0f} | {times.predicted:.0f} | {times.error:+.1%} | "
            f"{real:.2f} | {told:.2f} | {told / real - 1:+.1%} | "
            f"{times.tokens / times.rounds:.2f} | {times.tokens / times.predicted_rounds:.2f} |"
        )


def furthest_off(of_policy: Mapping[str, Times]) -> tuple[float, float]:
    """The largest error of a speed, and of a speedup over plain decoding."""
    pairs = [speedups(of_policy, name) for name in of_policy]
    return (
        max(abs(times.error) for times in of_policy.values()),
        max(abs(predicted / measured - 1) for measured, predicted in pairs),
    )
