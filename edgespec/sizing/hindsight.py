"""What rounds teach when they are over: times, acceptance, whether drafting pays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgespec.sizing.calibration import Paths
from edgespec.sizing.contract import Feedback, Growth, Setting
from edgespec.sizing.costs import RoundCosts
from edgespec.sizing.experience import Forecast, Lesson
from edgespec.sizing.rates import LEVELS
from edgespec.sizing.whether import Whether


@dataclass
class PlainRounds:
    """Sums over plain rounds not learnt from yet: they are short, and what they teach can wait."""

    rounds: int = 0
    ms: float = 0.0
    verify_ms: float = 0.0
    away_ms: float = 0.0

    def add(self, feedback: Feedback) -> None:
        """Takes one."""
        self.rounds += 1
        self.ms += feedback.round_ms
        self.verify_ms += feedback.verify_ms
        self.away_ms += feedback.away_ms


class Hindsight:
    """One answer's; what it learns goes on into the lesson of all."""

    def __init__(
        self,
        setting: Setting,
        costs: RoundCosts,
        whether: Whether,
        lesson: Lesson,
        explore: float,
    ) -> None:
        """``explore``: the share of a round's time that trials may lose."""
        self._setting, self._costs, self._whether = setting, costs, whether
        self._lesson, self._explore = lesson, explore
        self._plain = PlainRounds()
        self._drafted = Forecast()

    def take(self, feedback: Feedback, paths: Paths, expected: float) -> None:
        """A round, whose candidates had the chances of ``paths`` and whose tree was worth
        ``expected`` tokens."""
        if feedback.growth is Growth.NONE:
            self._plain.add(feedback)
            return
        ms = self._learn_times(feedback)
        if len(feedback.candidates):
            paths.learn(
                feedback.candidates,
                feedback.chosen,
                feedback.rows,
                feedback.named,
                feedback.tokens,
            )
            depths = feedback.candidates.depths
            self._whether.survival.add(_best_by_level(depths, paths.reach)[:LEVELS])
        self._whether.learn(True, expected, ms)
        self._drafted.add(expected, feedback.emitted, ms, feedback.round_ms)

    def _learn_times(self, feedback: Feedback) -> float:
        """Takes what a round took; returns what was predicted for it."""
        root, costs, tokens = feedback.root, self._costs, feedback.emitted
        nodes, drawn = len(feedback.chosen), len(feedback.tokens)
        ms = costs.learn_verify(nodes, drawn, root.context, feedback.verify_ms, feedback.away_ms)
        chain = feedback.growth is Growth.CHAIN and bool(costs.chain_steps)
        drafting = costs.learn_draft(
            chain, feedback.calls, root.context, feedback.draft_ms, begun=root.ready > 0
        )
        ms += drafting or feedback.draft_ms
        if not root.prepared:
            setting = self._setting
            costs.learn_prepare(setting.draft_prompt_tokens, setting.images, feedback.prepare_ms)
        ms += costs.host(tokens)
        costs.learn_host(tokens, feedback.round_ms - feedback.draft_ms - feedback.verify_ms)
        return ms

    def settle(self, context: int) -> None:
        """Learns from the plain rounds since the last time."""
        plain, rounds = self._plain, self._plain.rounds
        if not rounds:
            return
        verify_ms, away_ms = plain.verify_ms / rounds, plain.away_ms / rounds
        predicted = self._costs.learn_verify(0, 1, context, verify_ms, away_ms)
        predicted += self._costs.host(1)
        self._whether.learn(False, rounds, plain.ms, rounds)
        self._lesson.allowance_ms += self._explore * plain.ms
        self._lesson.forecast.add(rounds, rounds, rounds * predicted, plain.ms, rounds)
        self._plain = PlainRounds()

    def finish(self, emitted: int) -> None:
        """Hands on what the answer of ``emitted`` tokens was like."""
        self.settle(self._setting.prompt_tokens)
        mine, lesson = self._drafted, self._lesson
        lesson.allowance_ms += self._explore * mine.ms_predicted
        lesson.forecast.add(
            mine.tokens_predicted, mine.tokens, mine.ms_predicted, mine.ms, mine.rounds
        )
        self._whether.finish(emitted)


def _best_by_level(depths: Sequence[int], reach: Sequence[float]) -> list[float]:
    """The likeliest path to every level; n-grams come best first, not level by level."""
    best = [0.0] * max(depths)
    for depth, chance in zip(depths, reach, strict=True):
        best[depth - 1] = max(best[depth - 1], chance)
    return best
