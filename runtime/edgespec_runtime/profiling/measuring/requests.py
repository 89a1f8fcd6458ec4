"""Whole requests, driven as a user's are: what is neither draft call nor verification."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from edgespec.acceptance import Verdict
from edgespec.sizing import Eagle2, Feedback, Growth, Plain, Policy, Root, Setting, Sizer
from edgespec.tree import Candidates
from edgespec_runtime.drafts import Answered, Drafter, NoDraft
from edgespec_runtime.model import Model
from edgespec_runtime.profiling.measuring.rigs import (
    Source,
    open_session,
    text_only,
    verifier_over,
)
from edgespec_runtime.profiling.measuring.samples import Samples
from edgespec_runtime.profiling.measuring.steering import (
    RandomDraft,
    SteeredSession,
    SteeredVerifier,
)
from edgespec_runtime.request import Request

PROMPT, NEW, PLAIN = 48, 192, 24
"""Tokens of a request: its prompt, what is drafted for, what is decoded plainly."""
NODES = 12
"""Of a tree: a chain as long as the runtime's fixed policy has it."""


@dataclass(frozen=True)
class Grown:
    """One round's growth."""

    growth: Growth
    calls: tuple[int, ...]
    """Rows of its draft calls."""
    context: int
    ms: float
    """The calls, without the sizer's decisions between them."""


NOTHING = Grown(Growth.NONE, (), 0, 0.0)


class CallClock:
    """A drafter whose growths are clocked round by round, the sizer's time left out."""

    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter
        self._grown = NOTHING
        self.rounds: list[Grown] = []

    @property
    def engine_s(self) -> float:
        return self._drafter.engine_s

    @property
    def prepared(self) -> bool:
        return self._drafter.prepared

    @property
    def unseen(self) -> int:
        return self._drafter.unseen

    @property
    def ready(self) -> int:
        return self._drafter.ready

    @property
    def calls(self) -> tuple[int, ...]:
        return self._drafter.calls

    def begin(self, first: Verdict) -> None:
        self._drafter.begin(first)

    def prepare(self) -> None:
        self._drafter.prepare()

    def grow(self, sizer: Sizer, growth: Growth, root: Root) -> Candidates:
        clocked = SizerClock(sizer)
        started = perf_counter()
        candidates = self._drafter.grow(clocked, growth, root)
        ms = (perf_counter() - started - clocked.seconds) * 1e3
        self._grown = Grown(growth, self._drafter.calls, root.context, ms)
        return candidates

    def foresee(self, chosen: Sequence[int], root: Root, answered: Answered) -> None:
        self._drafter.foresee(chosen, root, answered)

    def commit(self, chosen: Sequence[int], verdict: Verdict) -> None:
        self._drafter.commit(chosen, verdict)
        self.rounds.append(self._grown)
        self._grown = NOTHING


class SizerClock:
    """A sizer whose time within ``beam`` is added up."""

    def __init__(self, sizer: Sizer) -> None:
        self._sizer = sizer
        self.seconds = 0.0

    @property
    def policy(self) -> Policy:
        return self._sizer.policy

    @property
    def floor(self) -> float:
        return self._sizer.floor

    def begin(self, root: Root) -> Growth:
        return self._sizer.begin(root)

    def beam(self, candidates: Candidates, level: int, root: Root) -> list[int]:
        started = perf_counter()
        beam = self._sizer.beam(candidates, level, root)
        self.seconds += perf_counter() - started
        return beam

    def choose(self, candidates: Candidates) -> list[int]:
        return self._sizer.choose(candidates)

    def learn(self, feedback: Feedback) -> None:
        self._sizer.learn(feedback)

    def finish(self, emitted: int, ended: bool) -> None:
        self._sizer.finish(emitted, ended)


@dataclass(frozen=True)
class ClockedRound:
    """One round of a request. Milliseconds."""

    tokens: int
    nodes: int
    context: int
    """Cached rows of the target before it."""
    grown: Grown
    draft_ms: float
    """All of the draft's side, as records tell it."""
    verify_ms: float
    total_ms: float


class RequestBench:
    """Runs steered requests and clocks their rounds."""

    def __init__(self, model: Model, source: Source, seed: int = 0) -> None:
        metas = [step.spec.meta for step in model.steps.values()]
        nodes = min(NODES, *(int(meta["tree_rows"]) for meta in metas))
        self._policy = Eagle2(nodes=nodes, depth=nodes, top_k=1)
        room = min(int(meta["max_positions"]) for meta in metas) - nodes
        self._new = min(NEW, room // 2)
        self._prompt = min(PROMPT, self._new)
        self._model, self._source = model, source
        self._rng = np.random.default_rng(seed)

    def run(self, samples: Samples) -> list[ClockedRound]:
        """Clocks a drafted and a plain request; returns their rounds."""
        drafted, plain = self.drafted(), self.plain()
        for outcome in drafted:
            rest = outcome.total_ms - outcome.draft_ms - outcome.verify_ms
            samples.add("host", outcome.tokens, rest)
            samples.add("commit", 1, outcome.draft_ms - outcome.grown.ms)
        for outcome in plain:
            samples.add("host", 1, outcome.total_ms - outcome.verify_ms)
        return drafted + plain

    def drafted(self) -> list[ClockedRound]:
        """The drafted rounds of one request, but for the first: it takes in the draft's prompt."""
        prompt = self._source.prompt(self._prompt)
        own: Drafter = RandomDraft(self._source)
        if self._model.draft:
            visual = text_only(self._model)
            own = self._model.draft.open(prompt, visual, self._policy, self._new)
        rounds = self._clock(prompt.ids.tolist(), own, self._policy, self._new)
        return [outcome for outcome in rounds[1:] if outcome.nodes]

    def plain(self) -> list[ClockedRound]:
        """The rounds of a request without a draft, but for the first."""
        ids = self._source.ids(self._prompt).tolist()
        return self._clock(ids, NoDraft(), Plain(), min(PLAIN, self._new))[1:]

    def _clock(
        self, prompt: list[int], drafter: Drafter, policy: Policy, new: int
    ) -> list[ClockedRound]:
        clock = CallClock(drafter)
        request = self._request(prompt, clock, policy, new)
        clocked = []
        started = perf_counter()
        for record in request:
            clocked.append((record, (perf_counter() - started) * 1e3))
            started = perf_counter()
        rounds: list[ClockedRound] = []
        at = 1  # behind the prefill's token, whose row is not in the cache yet
        while at < len(clocked):
            head = clocked[at][0]
            rounds.append(
                ClockedRound(
                    tokens=head.accepted,
                    nodes=head.tree_nodes,
                    context=len(prompt) + at - 1,
                    grown=clock.rounds[len(rounds)],
                    draft_ms=head.draft_ms,
                    verify_ms=head.verify_ms,
                    total_ms=sum(ms for _, ms in clocked[at : at + head.accepted]),
                )
            )
            at += head.accepted
        return rounds

    def _request(self, prompt: list[int], drafter: Drafter, policy: Policy, new: int) -> Request:
        model = self._model
        session = SteeredSession(open_session(model, len(prompt) + new + policy.max_nodes + 1))
        verifier = verifier_over(model, session, np.asarray(prompt))
        setting = Setting(prompt_tokens=len(prompt))
        return Request(
            SteeredVerifier(verifier, session, self._levels()),
            drafter,
            policy.start(setting),
            model.tokenizer,
            eos_ids=(),
            stop=(),
            max_new_tokens=new,
            setting=setting,
        )

    def _levels(self) -> Iterator[int]:
        """How far the rounds of a request are accepted: every length once, in random order, and
        again."""
        while True:
            yield from self._rng.permutation(self._policy.levels + 1).tolist()
