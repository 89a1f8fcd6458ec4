"""Answers decoded against a clock that a profile moves: nothing is measured, nothing is slow."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgespec.acceptance import StopRules, Verdict
from edgespec.latency import Costs, Curve, DeviceProfile
from edgespec.sizing import Growth, Policy, Root, Setting, Sized, Sizer
from edgespec.sizing.budgets import Budget
from edgespec.sizing.experience import Experience
from edgespec.tree import Candidates, TokenTree
from edgespec_runtime.decoder import Round, decode
from edgespec_runtime.drafts import Answered, Drafter
from edgespec_runtime.verifiers import Meanwhile, Verifier
from tests.support.fakes import ScriptedDraft, ScriptedVerifier, chain
from tests.support.profiles import costs, profile

PLAIN_MS = 10.0
EOS = 2
LEVELS = 4


class Clock:
    """Seconds, as far as someone lets them pass."""

    def __init__(self) -> None:
        self.ms = 0.0

    def __call__(self) -> float:
        return self.ms / 1e3


class ClockedVerifier:
    """A verifier that takes what the costs say, by ``factor``."""

    engine_s = 0.0

    def __init__(
        self, inner: Verifier, table: Costs, clock: Clock, factor: Callable[[], float]
    ) -> None:
        self._inner, self._costs, self._clock, self._factor = inner, table, clock, factor

    @property
    def context(self) -> int:
        return self._inner.context

    def begin(self) -> Verdict:
        return self._inner.begin()

    def close(self) -> None:
        self._inner.close()

    def verify(self, tree: TokenTree, meanwhile: Meanwhile | None = None) -> Verdict:
        ms = self._costs.verify.at(len(tree) + 1, self.context)
        self._clock.ms += ms * self._factor()
        return self._inner.verify(tree, meanwhile)


class ClockedDraft:
    """A drafter that takes what the costs say for its calls."""

    engine_s = 0.0

    def __init__(
        self, inner: Drafter, table: Costs, clock: Clock, prompt: int, factor: Callable[[], float]
    ) -> None:
        self._inner, self._costs, self._clock = inner, table, clock
        self._prompt, self._factor = prompt, factor

    @property
    def prepared(self) -> bool:
        return self._inner.prepared

    @property
    def unseen(self) -> int:
        return self._inner.unseen

    @property
    def ready(self) -> int:
        return self._inner.ready

    @property
    def calls(self) -> tuple[int, ...]:
        return self._inner.calls

    def begin(self, first: Verdict) -> None:
        self._inner.begin(first)

    def prepare(self) -> None:
        if self._prompt and self._costs.draft_prefill:
            self._clock.ms += self._costs.draft_prefill.at(self._prompt) * self._factor()
        self._inner.prepare()

    def grow(self, sizer: Sizer, growth: Growth, root: Root) -> Candidates:
        candidates = self._inner.grow(sizer, growth, root)
        chained = growth is Growth.CHAIN and self._costs.chain_steps > 0
        first = self._costs.chain_first if chained else self._costs.draft_first
        further = self._costs.chain_next if chained else self._costs.draft_step
        if self.calls and first and further:
            ms = first.at(self.calls[0], root.context) + self._costs.commit_ms
            ms += sum(further.at(width, root.context) for width in self.calls[1:])
            self._clock.ms += ms * self._factor()
        return candidates

    def foresee(self, chosen: Sequence[int], root: Root, answered: Answered) -> None:
        self._inner.foresee(chosen, root, answered)

    def commit(self, chosen: Sequence[int], verdict: Verdict) -> None:
        self._inner.commit(chosen, verdict)


def clocked(
    verifier: Verifier,
    draft: Drafter,
    policy: Policy,
    setting: Setting,
    limit: int = 512,
    factor: Callable[[], float] = lambda: 1.0,
) -> tuple[list[Round], float]:
    """All rounds of an answer and the milliseconds it took behind its first token; times are the
    setting's profile's, each by another ``factor``."""
    assert setting.profile is not None
    table, clock = setting.profile.costs, Clock()
    timed = ClockedDraft(draft, table, clock, setting.draft_prompt_tokens, factor)
    rounds = decode(
        ClockedVerifier(verifier, table, clock, factor),
        timed,
        policy.start(setting),
        StopRules(sorted(setting.eos), limit),
        clock,
    )
    return list(rounds), clock.ms


def flat_profile(drafting_ms: float, prepare_ms: float = 0.0) -> DeviceProfile:
    """Verifying takes ``PLAIN_MS`` whatever the tree, drafting always as long: one call."""
    nothing = 1e-6
    table = dataclasses.replace(
        costs(),
        verify=Curve.constant(PLAIN_MS),
        draft_first=Curve.constant(drafting_ms),
        draft_step=Curve.constant(nothing),
        chain_first=None,
        chain_next=None,
        chain_steps=0,
        draft_prefill=Curve.constant(max(prepare_ms, nothing)),
        draft_vision=None,
        commit_ms=0.0,
        host_round_ms=nothing,
        host_token_ms=0.0,
    )
    return dataclasses.replace(profile(), costs=table)


@dataclass(repr=False)
class Street:
    """One answer after the other. Each of the draft's ``LEVELS`` guesses holds with probability
    ``accepted`` (of the number of rounds so far), and it says so; drafting makes decoding
    ``speed`` times as fast where that is 0.5."""

    speed: float
    accepted: Callable[[int], float] = lambda number: 0.5
    prepare: float = 0.0
    questions: int = 1
    """Different ones in turn; 0: all are new."""
    lengths: tuple[int, int] = (40, 80)
    budget: Budget | None = None
    policy: Sized = field(default_factory=Sized)
    rounds: list[Round] = field(default_factory=list)
    """Of all answers, without their first tokens."""
    answers: list[list[Round]] = field(default_factory=list)
    spent: float = 0.0
    tokens: int = 0

    def __post_init__(self) -> None:
        self.experience = Experience()
        self._rng = np.random.default_rng(1)
        expected = 1.0 + sum(0.5**level for level in range(1, LEVELS + 1))
        self.profile = flat_profile((expected / self.speed - 1.0) * PLAIN_MS, self.prepare)

    def run(self, rounds: int) -> Street:
        """So many rounds more, and to the end of the answer."""
        end = len(self.rounds) + rounds
        while len(self.rounds) < end:
            self.answer(int(self._rng.integers(self.lengths[0], self.lengths[1] + 1)))
        return self

    def answer(self, length: int) -> list[Round]:
        """One answer of ``length`` tokens, its last the end of the text."""
        number = len(self.answers)
        own = 10 + (number % self.questions if self.questions else 3 * number)
        setting = Setting(
            draft="m",
            question=(1, 2, own),
            prompt_tokens=64,
            draft_prompt_tokens=64 if self.prepare else 0,
            eos=frozenset([EOS]),
            profile=self.profile,
            budget=self.budget,
            experience=self.experience,
        )

        def target(path: Sequence[int]) -> int:
            return EOS if len(path) + 1 >= length else 100 + len(path)

        def propose(path: Sequence[int], left: int) -> list[tuple[int, int, float]]:
            accepted, at = self.accepted(len(self.rounds)), len(path)
            luck = self._rng.random(LEVELS) < accepted
            tokens = [100 + at + i if held else 7 for i, held in enumerate(luck)]
            return chain(tokens[:left], float(np.log(0.5)))

        rounds, ms = clocked(ScriptedVerifier(target), ScriptedDraft(propose), self.policy, setting)
        assert sum(len(r.tokens) for r in rounds) == length
        self.answers.append(rounds[1:])
        self.rounds += rounds[1:]
        self.spent, self.tokens = self.spent + ms, self.tokens + length - 1
        return rounds[1:]

    @property
    def loss(self) -> float:
        """Share of plain decoding's time that was lost; negative: gained."""
        return self.spent / (PLAIN_MS * self.tokens) - 1.0

    def drafting(self, start: int = 0, end: int | None = None) -> float:
        """Share of rounds that asked the draft."""
        return float(np.mean([drafted(r) for r in self.rounds[start:end]]))

    @property
    def starts(self) -> list[int | None]:
        """Tokens emitted when each answer was first drafted for."""
        found: list[int | None] = []
        for rounds in self.answers:
            feedback = [r.feedback for r in rounds if drafted(r)]
            found.append(feedback[0].root.emitted if feedback and feedback[0] else None)
        return found


def drafted(outcome: Round) -> bool:
    """Whether the draft was asked in a round."""
    return outcome.feedback is not None and outcome.feedback.growth is not Growth.NONE
