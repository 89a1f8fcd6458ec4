"""Tokens per millisecond with and without a draft, and how deep drafts survive: fading means."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

SHARED, LOCAL, CARRIED = 60.0, 16.0, 8.0
"""Half-lives in rounds of shared and of one answer's means; rounds that an answer starts with."""


@dataclass
class Rate:
    """Sums that halve every ``half_life`` rounds."""

    half_life: float = SHARED
    tokens: float = 0.0
    ms: float = 0.0
    rounds: float = 0.0

    def __post_init__(self) -> None:
        self._fade = 0.5 ** (1.0 / self.half_life)

    def add(self, tokens: float, ms: float, rounds: int = 1) -> None:
        """Takes rounds, one by default, with what all of them brought and took."""
        fade = self._fade if rounds == 1 else self._fade**rounds
        self.tokens = self.tokens * fade + tokens
        self.ms = self.ms * fade + ms
        self.rounds = self.rounds * fade + rounds

    @staticmethod
    def blended(parts: Iterable[tuple[float, Rate]]) -> Rate:
        """A weighted sum, fading as one answer's do."""
        blend = Rate(LOCAL)
        for weight, rate in parts:
            blend.tokens += weight * rate.tokens
            blend.ms += weight * rate.ms
            blend.rounds += weight * rate.rounds
        return blend

    def lighten(self, rounds: float = CARRIED) -> None:
        """Makes it weigh ``rounds`` at most, so that what follows soon outweighs it."""
        share = min(1.0, rounds / self.rounds) if self.rounds else 0.0
        self.tokens *= share
        self.ms *= share
        self.rounds *= share

    @property
    def value(self) -> float:
        """Tokens per millisecond; 0 before the first round."""
        return self.tokens / self.ms if self.ms else 0.0


@dataclass
class Spread:
    """Mean and spread of drafting's rate over answers: how different questions are."""

    answers: int = 0
    mean: float = 0.0
    variance: float = 0.0

    def add(self, rate: float) -> None:
        """Takes one answer's rate; fading, so that 20 answers ago counts little."""
        self.answers += 1
        weight = max(1.0 / self.answers, 0.1)
        off = rate - self.mean
        self.mean += weight * off
        self.variance += weight * (off * off * (1.0 - weight) - self.variance)

    @property
    def hopeful(self) -> float:
        """What a question of which nothing is known may be like: one deviation up."""
        return float(self.mean + self.variance**0.5)


LEVELS = 18
"""That are told apart; behind them it goes on as between the last two."""


@dataclass
class Survival:
    """Mean over rounds of the probability that the best path reaches each level."""

    weight: float
    """Of a new round, once there were some."""
    levels: list[float] = field(
        default_factory=lambda: [0.8**level for level in range(1, LEVELS + 1)]
    )
    rounds: float = 0.0

    def add(self, reached: Sequence[float], rounds: int = 1) -> None:
        """Takes rounds: mean probabilities by level. Where drafting stopped before ``LEVELS`` it
        would have gone on as it did so far."""
        self.rounds += rounds
        weight = 1.0 - (1.0 - self.weight) ** rounds
        weight = max(weight, rounds / (self.rounds + 3.0))  # the prior weighs three rounds
        known = [*reached, *(reached[-1] * k for k in self.beyond(len(reached), LEVELS))]
        self.levels = [s + weight * (r - s) for s, r in zip(self.levels, known, strict=False)]

    def beyond(self, level: int, count: int) -> list[float]:
        """Of what reaches ``level``, how much reaches the ``count`` levels behind it."""
        levels = self.levels
        at = min(level, LEVELS - 1)
        base = max(levels[at - 1], 1e-9)
        kept = [min(value / base, 1.0) for value in levels[at : at + count]]
        # Behind the last level known: as from the one before it.
        last = min(levels[-1] / max(levels[-2], 1e-9), 1.0)
        while len(kept) < count:
            kept.append((kept[-1] if kept else 1.0) * last)
        return kept

    @staticmethod
    def blended(parts: Sequence[tuple[float, Survival]]) -> Survival:
        """A weighted mean by rounds, at an answer's pace."""
        blend = Survival(0.1)
        total = sum(weight * part.rounds for weight, part in parts)
        if total > 0:
            shares = [(weight * part.rounds / total, part.levels) for weight, part in parts]
            blend.levels = [
                sum(share * levels[level] for share, levels in shares) for level in range(LEVELS)
            ]
            blend.rounds = min(total, CARRIED)
        return blend


@dataclass
class Record:
    """What is known of drafting somewhere: for a question, or for all of them."""

    drafted: Rate = field(default_factory=Rate)
    overall: Rate = field(default_factory=Rate)
    survival: Survival = field(default_factory=lambda: Survival(0.02))
