"""Tokens per millisecond, as fading means."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from edgespec.sizing.contract import Growth

SHARED, LOCAL, CARRIED = 200.0, 16.0, 8.0
"""Half-lives in rounds of shared and of one answer's rates; rounds that an answer starts with."""


@dataclass
class Rate:
    """Sums that halve every ``half_life`` rounds."""

    half_life: float
    tokens: float = 0.0
    ms: float = 0.0
    rounds: float = 0.0

    def add(self, tokens: float, ms: float) -> None:
        """Takes one round."""
        fade = 0.5 ** (1.0 / self.half_life)
        self.tokens = self.tokens * fade + tokens
        self.ms = self.ms * fade + ms
        self.rounds = self.rounds * fade + 1.0

    def include(self, other: Rate, weight: float) -> None:
        """Adds another's sums."""
        self.tokens += weight * other.tokens
        self.ms += weight * other.ms
        self.rounds += weight * other.rounds

    def lighten(self, rounds: float) -> None:
        """Makes it weigh ``rounds`` at most, so that what follows soon outweighs it."""
        share = min(1.0, rounds / self.rounds) if self.rounds else 0.0
        self.tokens, self.ms, self.rounds = (
            self.tokens * share,
            self.ms * share,
            self.rounds * share,
        )

    @property
    def value(self) -> float:
        """0 before the first round."""
        return self.tokens / self.ms if self.ms else 0.0


@dataclass
class Arms:
    """Rates by kind of growth, and over all."""

    half_life: float = SHARED
    overall: Rate = field(init=False)
    by: dict[Growth, Rate] = field(init=False)

    def __post_init__(self) -> None:
        self.overall = Rate(self.half_life)
        self.by = {growth: Rate(self.half_life) for growth in Growth}

    def add(self, growth: Growth, tokens: float, ms: float) -> None:
        """Takes one round."""
        self.overall.add(tokens, ms)
        self.by[growth].add(tokens, ms)

    @staticmethod
    def blended(parts: Iterable[tuple[float, Arms]]) -> Arms:
        """A weighted sum, at an answer's half-life; not lightened yet."""
        blend = Arms(LOCAL)
        for weight, arms in parts:
            blend.overall.include(arms.overall, weight)
            for growth, rate in arms.by.items():
                blend.by[growth].include(rate, weight)
        return blend

    def lighten(self, rounds: float = CARRIED) -> None:
        """Makes every rate weigh ``rounds`` at most."""
        for rate in (self.overall, *self.by.values()):
            rate.lighten(rounds)


@dataclass
class Spread:
    """Mean and spread of a kind of growth's rate over answers: how different questions are."""

    answers: int = 0
    mean: float = 0.0
    variance: float = 0.0

    def add(self, rate: float) -> None:
        """Takes one answer's rate; fading, so that 50 answers ago counts little."""
        self.answers += 1
        weight = max(1.0 / self.answers, 0.04)
        off = rate - self.mean
        self.mean += weight * off
        self.variance += weight * (off * off * (1.0 - weight) - self.variance)

    @property
    def hopeful(self) -> float:
        """What a question of which nothing is known may be like: one deviation up."""
        return float(self.mean + self.variance**0.5)
