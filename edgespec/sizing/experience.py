"""What earlier requests taught: shared by the requests of one loaded bundle.

Nothing here can change a text; it only makes the next tree a better guess.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import Any

from edgespec.sizing.calibration import Calibrator
from edgespec.sizing.contract import Growth, Setting
from edgespec.sizing.costs import Drift
from edgespec.sizing.lengths import Lengths

QUESTIONS = 256


@dataclass
class Rate:
    """Tokens per millisecond as a fading mean: sums that halve every ``half_life`` rounds."""

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

    @property
    def value(self) -> float:
        """0 before the first round."""
        return self.tokens / self.ms if self.ms else 0.0

    def lightly(self, half_life: float, rounds: float) -> Rate:
        """A copy that weighs ``rounds`` at most, so that what follows soon outweighs it."""
        share = min(1.0, rounds / self.rounds) if self.rounds else 0.0
        return Rate(half_life, self.tokens * share, self.ms * share, self.rounds * share)


SHARED, LOCAL, CARRIED = 200.0, 16.0, 8.0
"""Half-lives of shared and of one answer's rates, and the rounds that an answer starts with."""


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

    def lightly(self) -> Arms:
        """What an answer starts with."""
        copy = Arms(LOCAL)
        copy.overall = self.overall.lightly(LOCAL, CARRIED)
        copy.by = {growth: rate.lightly(LOCAL, CARRIED) for growth, rate in self.by.items()}
        return copy


@dataclass
class Forecast:
    """Predicted against realised: tokens and milliseconds per drafted round."""

    rounds: int = 0
    tokens_predicted: float = 0.0
    tokens: float = 0.0
    ms_predicted: float = 0.0
    ms: float = 0.0

    def add(self, tokens_predicted: float, tokens: float, ms_predicted: float, ms: float) -> None:
        """Takes one round."""
        self.rounds += 1
        self.tokens_predicted += tokens_predicted
        self.tokens += tokens
        self.ms_predicted += ms_predicted
        self.ms += ms

    def since(self, earlier: Forecast) -> Forecast:
        """Of the rounds after ``earlier``, a copy of this taken before."""
        return Forecast(
            self.rounds - earlier.rounds,
            self.tokens_predicted - earlier.tokens_predicted,
            self.tokens - earlier.tokens,
            self.ms_predicted - earlier.ms_predicted,
            self.ms - earlier.ms,
        )

    def as_json(self) -> dict[str, Any]:
        """Means per round."""
        rounds = max(self.rounds, 1)
        return {
            "rounds": self.rounds,
            "tokens_per_round_predicted": self.tokens_predicted / rounds,
            "tokens_per_round": self.tokens / rounds,
            "ms_per_round_predicted": self.ms_predicted / rounds,
            "ms_per_round": self.ms / rounds,
        }


@dataclass
class Lesson:
    """Of one drafter at one temperature."""

    calibrator: Calibrator = field(default_factory=Calibrator)
    arms: Arms = field(default_factory=Arms)
    forecast: Forecast = field(default_factory=Forecast)
    allowance_ms: float = 0.0
    """Time that may still be lost on trying what looks worse."""
    kept: float = 0.8
    """Of a path's probability, what its best child keeps: the expected gain of one level more."""
    _questions: OrderedDict[int, Arms] = field(default_factory=OrderedDict)

    def of(self, question: int) -> Arms:
        """The rates of a question; those of all questions until it is known."""
        arms = self._questions.get(question)
        return arms if arms and arms.overall.rounds >= CARRIED else self.arms

    def add(self, question: int, growth: Growth, tokens: float, ms: float) -> None:
        """Takes one round."""
        self.arms.add(growth, tokens, ms)
        own = self._questions.setdefault(question, Arms())
        own.add(growth, tokens, ms)
        self._questions.move_to_end(question)
        if len(self._questions) > QUESTIONS:
            self._questions.popitem(last=False)


class Experience:
    """Mutable; one per loaded bundle."""

    def __init__(self) -> None:
        self.drift = Drift()
        self.lengths = Lengths()
        self._lessons: dict[tuple[str, float, bool], Lesson] = {}

    def lesson(self, setting: Setting) -> Lesson:
        """What there is to know of the setting's drafter at its temperature."""
        key = (setting.draft, round(setting.temperature, 1), setting.coupled)
        return self._lessons.setdefault(key, Lesson())

    def as_json(self) -> dict[str, Any]:
        """Everything learnt, for ``--json`` and reports."""
        return {
            "drift": self.drift.as_json(),
            "lessons": [
                {
                    "draft": draft,
                    "temperature": temperature,
                    "coupled": coupled,
                    "calibration": lesson.calibrator.reliability.as_json(),
                    "forecast": lesson.forecast.as_json(),
                }
                for (draft, temperature, coupled), lesson in self._lessons.items()
            ],
        }


def snapshot(forecast: Forecast) -> Forecast:
    """A copy, to tell one answer's part later."""
    return replace(forecast)
