"""What earlier requests taught: shared by the requests of one loaded bundle.

Nothing here can change a text; it only makes the next tree a better guess.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from edgespec.sizing.calibration import Calibrator
from edgespec.sizing.contract import Setting
from edgespec.sizing.drift import Drift
from edgespec.sizing.questions import Questions
from edgespec.sizing.rates import Record, Spread


@dataclass
class Forecast:
    """Predicted against realised: tokens and milliseconds per round."""

    rounds: int = 0
    tokens_predicted: float = 0.0
    tokens: float = 0.0
    ms_predicted: float = 0.0
    ms: float = 0.0

    def add(
        self,
        tokens_predicted: float,
        tokens: float,
        ms_predicted: float,
        ms: float,
        rounds: int = 1,
    ) -> None:
        """Takes rounds, with what all of them brought and took."""
        self.rounds += rounds
        self.tokens_predicted += tokens_predicted
        self.tokens += tokens
        self.ms_predicted += ms_predicted
        self.ms += ms

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
    record: Record = field(default_factory=Record)
    spread: Spread = field(default_factory=Spread)
    forecast: Forecast = field(default_factory=Forecast)
    trend: float = 0.0
    """Running mean of log(achieved / expected rate) of answers that drafted."""
    allowance_ms: float = 0.0
    """Time that may still be lost on trying what looks worse."""


LessonKey = tuple[str, float, bool]


class Experience:
    """Mutable; one per loaded bundle."""

    def __init__(self) -> None:
        self.drift = Drift()
        self.questions = Questions()
        self._lessons: dict[LessonKey, Lesson] = {}

    def key(self, setting: Setting) -> LessonKey:
        """Names the lesson of the setting's drafter at its temperature."""
        return (setting.draft, round(setting.temperature, 1), setting.coupled)

    def lesson(self, key: LessonKey) -> Lesson:
        """What there is to know."""
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
