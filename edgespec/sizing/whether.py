"""Whether to draft at all in a round of an answer: plain decoding is one of the choices.

Drafting's rate is learnt from rounds that drafted, of similar questions first; plain decoding's is
what the device's curves say. Where drafting looks worse it is tried again only as far as an
allowance of time goes that all rounds pay into, so that what trials lose is bounded.
"""

from __future__ import annotations

import math

from edgespec.sizing.contract import Root, Setting
from edgespec.sizing.costs import RoundCosts
from edgespec.sizing.experience import Experience
from edgespec.sizing.lengths import start_after
from edgespec.sizing.questions import STRANGER
from edgespec.sizing.rates import Rate, Record, Survival

TURN = 0.2
"""Of the log of achieved over expected rate: beyond it the draft has become worse."""
TRIES = 3
"""Rounds of drafting before its rate is trusted."""
BONUS = 0.2
"""Of a rate known from one round: how much better it may be; fades with the root of the rounds."""
REST, LONGEST_REST = 8, 64
"""Tokens for which a no holds: at first, and at most, doubling from no to no."""
CREDIT = 20.0
"""Plain rounds whose time hopeful trials may be ahead of the allowance."""
MARGIN = 1.01
"""Drafting must look so much better than plain decoding: a tie is not worth its spread."""


class Whether:
    """The choice in one answer."""

    def __init__(self, setting: Setting, experience: Experience, costs: RoundCosts) -> None:
        self._setting, self._costs = setting, costs
        key = experience.key(setting)
        self._lesson = experience.lesson(key)
        self._asked = experience.questions.ask(setting.question)
        self._near = experience.questions.near(self._asked)
        self._record: Record = self._asked.records.setdefault(key, Record())
        known = [(w, asked.records[key]) for w, asked in self._near if key in asked.records]
        known.append((STRANGER, self._lesson.record))  # what is known of all, where no one asked
        self._drafted = Rate.blended((w, record.drafted) for w, record in known)
        self._overall = Rate.blended((w, record.overall) for w, record in known)
        self._known = self._drafted.rounds
        self._drafted.lighten()
        self._expected = self._drafted.value
        if self._lesson.trend < -TURN:  # lately it went worse than expected, whatever was asked
            self._drafted.tokens *= math.exp(self._lesson.trend)
        self._overall.lighten()
        self.survival = Survival.blended([(w, record.survival) for w, record in known])
        # Plain sums of this answer's own rounds.
        self._mine, self._plain = Rate(), Rate()
        self._start = self._start_after()
        self._rest = REST
        self.wake = 0
        """Tokens emitted before which no round drafts."""
        self.trying = False
        """Whether the last yes was a trial: it is good for one round."""
        tried = self._lesson.record.drafted.rounds >= TRIES
        if tried and self._lesson.allowance_ms < self.prepare_ms:
            self.wake = min(self._start, REST)

    @property
    def rate(self) -> float:
        """Tokens per millisecond being achieved in answers like this one: lambda."""
        return self._overall.value

    @property
    def prepare_ms(self) -> float:
        """What the draft's prompt will take."""
        setting = self._setting
        if not setting.draft_prompt_tokens:
            return 0.0
        return self._costs.prepare(setting.draft_prompt_tokens, setting.images)

    def drafts(self, root: Root, plain_ms: float) -> bool:
        """Whether this round is to draft, where a plain one takes ``plain_ms``. If not, neither are
        those before ``wake``: asking costs time as well."""
        untried = self._lesson.record.drafted.rounds + self._mine.rounds < TRIES
        ready = root.prepared or root.emitted >= self._start
        self.trying = untried or not (ready and self._drafted.value * plain_ms > MARGIN)
        if untried or not self.trying:
            return True
        hopeful = ready and self._hoped * plain_ms > MARGIN
        if self._on_trial(root, plain_ms, CREDIT * plain_ms if hopeful else 0.0):
            return True
        self.wake = root.emitted + self._rest
        if not ready:
            self.wake = min(self.wake, self._start)
        self._rest = min(2 * self._rest, LONGEST_REST)
        return False

    @property
    def _hoped(self) -> float:
        """Drafting's rate, with what it may hopefully be where little is known: other questions
        went better by one deviation, and what was seldom tried may be luckier next time."""
        value, hope = self._drafted.value, self._lesson.spread.hopeful
        if hope > value:
            value = (self._known * value + TRIES * hope) / (self._known + TRIES)
        return value * (1.0 + BONUS / math.sqrt(self._known + 1.0))

    def _start_after(self) -> int:
        """Tokens after which the draft's prompt is likely to be paid for in this answer."""
        setting, rate = self._setting, self._drafted.value
        if not rate:
            return 1
        plain_ms = self._costs.verify_one(0, setting.prompt_tokens) + self._costs.host(1)
        return start_after(
            self._near, setting.max_new_tokens, self.prepare_ms, plain_ms - 1.0 / rate
        )

    def _on_trial(self, root: Root, plain_ms: float, credit_ms: float) -> bool:
        """Whether enough has been saved up, or is lent, for what a trial is expected to lose."""
        arm = self._drafted
        if not arm.rounds:
            return credit_ms > 0
        loss = (arm.ms - arm.tokens * plain_ms) / arm.rounds
        if not root.prepared:
            loss += self.prepare_ms
        if loss > self._lesson.allowance_ms + credit_ms:
            return False
        self._lesson.allowance_ms -= max(loss, 0.0)
        return True

    def learn(self, drafted: bool, tokens: float, ms: float, rounds: int = 1) -> None:
        """Takes rounds of this answer: tokens expected of their trees, and their time."""
        self._overall.add(tokens, ms, rounds)
        if drafted:
            self._drafted.add(tokens, ms, rounds)
            self._known += rounds
        of = self._mine if drafted else self._plain
        of.tokens += tokens
        of.ms += ms
        of.rounds += rounds

    def finish(self, emitted: int) -> None:
        """Hands on what this answer was like."""
        self._asked.lengths.append(emitted)
        mine, plain = self._mine, self._plain
        if not mine.rounds:
            return  # of a short answer without a draft there is no more to learn
        for record in (self._record, self._lesson.record):
            record.overall.add(
                mine.tokens + plain.tokens, mine.ms + plain.ms, int(mine.rounds + plain.rounds)
            )
            record.drafted.add(mine.tokens, mine.ms, int(mine.rounds))
            record.survival.add(self.survival.levels, int(mine.rounds))
        self._lesson.spread.add(mine.value)
        if self._expected and mine.value:
            off = math.log(mine.value / self._expected)
            self._lesson.trend += 0.3 * (off - self._lesson.trend)
