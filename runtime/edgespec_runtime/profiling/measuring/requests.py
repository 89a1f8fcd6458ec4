"""Whole requests, driven as a user's are: what of a round neither drafts nor verifies.

The texts are nonsense, but how far they are accepted is settled beforehand, so that rounds of every
length occur whatever the draft is worth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import numpy.typing as npt

from edgespec.acceptance import Verdict
from edgespec.sampling import Sampler, SamplingParams
from edgespec.sizing import Eagle2, Feedback, Growth, Policy, Root, Setting, Sizer
from edgespec.tree import ROOT, Candidates, TokenTree
from edgespec_runtime.drafts import Drafter
from edgespec_runtime.engines.base import Array, StepSession
from edgespec_runtime.inputs import splice
from edgespec_runtime.kv import KVCache
from edgespec_runtime.model import Model
from edgespec_runtime.profiling.measuring.rigs import Source, text_only
from edgespec_runtime.profiling.measuring.samples import Samples
from edgespec_runtime.request import Request
from edgespec_runtime.verifiers import LocalVerifier, Verifier

WANTED = np.float32(1e30)
"""A logit above all others."""
PROMPT, NEW = 48, 192
"""Tokens of a request."""


class SteeredSession:
    """The target's session; the logits it returns name the tokens that ``wanted`` asks for."""

    def __init__(self, session: StepSession) -> None:
        self._session = session
        self.wanted: Mapping[int, int] = {}
        """Row of the coming step -> token."""

    @property
    def cache(self) -> KVCache:
        return self._session.cache

    @property
    def engine_s(self) -> float:
        return self._session.engine_s

    def set_temperature(self, temperature: float) -> None:
        self._session.set_temperature(temperature)

    def step(
        self,
        embeds: npt.NDArray[np.float32],
        positions: Sequence[int] | npt.NDArray[np.int64],
        mask: npt.NDArray[np.bool_],
        last_only: bool = False,
        *,
        hidden: npt.NDArray[np.float32] | None = None,
        offset: npt.NDArray[np.float32] | None = None,
        noise: npt.NDArray[np.float32] | None = None,
    ) -> list[Array]:
        outputs = self._session.step(
            embeds, positions, mask, last_only, hidden=hidden, offset=offset, noise=noise
        )
        for row, token in self.wanted.items():
            outputs[0][row, token] = WANTED
        return outputs


class SteeredVerifier:
    """A verifier that accepts as many levels of its trees as it is told to, one round after the
    other; what the target itself would have said plays no part, its work is done all the same."""

    def __init__(self, verifier: Verifier, session: SteeredSession, levels: Iterator[int]) -> None:
        self._verifier, self._session, self._levels = verifier, session, levels

    @property
    def engine_s(self) -> float:
        return self._verifier.engine_s

    @property
    def context(self) -> int:
        return self._verifier.context

    def begin(self) -> Verdict:
        return self._verifier.begin()

    def verify(self, tree: TokenTree) -> Verdict:
        self._session.wanted = _downwards(tree, next(self._levels))
        return self._verifier.verify(tree)


def _downwards(tree: TokenTree, levels: int) -> dict[int, int]:
    """Rows and the tokens to name there to accept the first child, its first child, ..."""
    wanted: dict[int, int] = {}
    at = 0
    for row, (parent, token) in enumerate(zip(tree.parents, tree.tokens, strict=True), start=1):
        if parent == at and len(wanted) < levels:
            wanted[at] = token
            at = row
    return wanted


class ClockedSizer:
    """A sizer whose time within ``beam`` is added up."""

    def __init__(self, sizer: Sizer) -> None:
        self._sizer = sizer
        self.seconds = 0.0

    @property
    def policy(self) -> Policy:
        return self._sizer.policy

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


class ClockedDraft:
    """A drafter whose calls of a round are clocked, its sizer's time left out."""

    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter
        self._grown_ms = 0.0
        self.rounds: list[tuple[float, float]] = []
        """Milliseconds of growing (0 where there was none) and of committing, round by round."""

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
    def calls(self) -> tuple[int, ...]:
        return self._drafter.calls

    def begin(self, first: Verdict) -> None:
        self._drafter.begin(first)

    def prepare(self) -> None:
        self._drafter.prepare()

    def grow(self, sizer: Sizer, growth: Growth, root: Root) -> Candidates:
        clocked = ClockedSizer(sizer)
        started = perf_counter()
        candidates = self._drafter.grow(clocked, growth, root)
        self._grown_ms = (perf_counter() - started - clocked.seconds) * 1e3
        return candidates

    def commit(self, chosen: Sequence[int], verdict: Verdict) -> None:
        started = perf_counter()
        self._drafter.commit(chosen, verdict)
        self.rounds.append((self._grown_ms, (perf_counter() - started) * 1e3))
        self._grown_ms = 0.0


class RandomDraft:
    """Proposes a chain of random tokens: for bundles without a draft of their own, where n-grams
    may still be drafted."""

    engine_s = 0.0
    prepared = True
    unseen = 0
    calls: tuple[int, ...] = ()

    def __init__(self, source: Source) -> None:
        self._source = source

    def begin(self, first: Verdict) -> None:
        """Nothing to prepare."""

    def prepare(self) -> None:
        """Nothing to prepare."""

    def grow(self, sizer: Sizer, growth: Growth, root: Root) -> Candidates:
        candidates = Candidates()
        for i, token in enumerate(self._source.different(sizer.policy.levels)):
            candidates.extend(i - 1 if i else ROOT, [token], [-0.1])
        return candidates

    def commit(self, chosen: Sequence[int], verdict: Verdict) -> None:
        """Nothing to remember."""


@dataclass(frozen=True)
class HostRound:
    """One real round. Milliseconds."""

    tokens: int
    calls_ms: float
    """Draft calls, without the sizer's decisions between them."""
    commit_ms: float
    verify_ms: float
    total_ms: float

    @property
    def host_ms(self) -> float:
        return self.total_ms - self.calls_ms - self.commit_ms - self.verify_ms


class RequestBench:
    """Runs steered requests and clocks their rounds."""

    def __init__(self, model: Model, source: Source, seed: int = 0) -> None:
        rows = min(int(step.spec.meta["tree_rows"]) for step in model.steps.values())
        nodes = min(12, rows)
        self.policy = Eagle2(nodes=nodes, depth=nodes, top_k=1)
        positions = [int(step.spec.meta["max_positions"]) for step in model.steps.values()]
        self._new = min(NEW, (min(positions) - nodes) // 2)
        self._prompt = min(PROMPT, self._new)
        self._model, self._source = model, source
        self._rng = np.random.default_rng(seed)

    def run(self, samples: Samples) -> None:
        """Clocks one request."""
        for outcome in self.rounds():
            samples.add("host", outcome.tokens, outcome.host_ms)
            samples.add("commit", 1, outcome.commit_ms)

    def rounds(self) -> list[HostRound]:
        """The drafted rounds of one request, but for the first: it takes in the draft's prompt."""
        request, draft = self._request()
        clocked = []
        started = perf_counter()
        for record in request:
            clocked.append((record, (perf_counter() - started) * 1e3))
            started = perf_counter()
        rounds, at, index = [], 1, 0
        while at < len(clocked):
            head = clocked[at][0]
            total = sum(ms for _, ms in clocked[at : at + head.accepted])
            if index and head.tree_nodes:
                rounds.append(HostRound(head.accepted, *draft.rounds[index], head.verify_ms, total))
            at, index = at + head.accepted, index + 1
        return rounds

    def _request(self) -> tuple[Request, ClockedDraft]:
        model, policy, new = self._model, self.policy, self._new
        prompt = self._source.prompt(self._prompt)
        step, table = model.steps["target"], model.tables["target"]
        features = model.draft is not None and model.draft.wants_features
        capacity = self._prompt + new + policy.max_nodes + 1
        session = SteeredSession(
            step.open(capacity, ("logits", "hidden") if features else ("logits",))
        )
        verifier = LocalVerifier(
            session,
            table,
            lambda: splice(prompt.ids, (), table, None),
            prompt.ids.tolist(),
            Sampler(SamplingParams(), int(step.spec.meta["vocab"])),
            features=features,
        )
        own: Drafter = RandomDraft(self._source)
        if model.draft:
            own = model.draft.open(prompt, text_only(model), policy, new)
        draft = ClockedDraft(own)
        setting = Setting(prompt_tokens=self._prompt)
        return Request(
            SteeredVerifier(verifier, session, self._levels()),
            draft,
            policy.start(setting),
            model.tokenizer,
            eos_ids=(),
            stop=(),
            max_new_tokens=new,
            setting=setting,
        ), draft

    def _levels(self) -> Iterator[int]:
        """How far the rounds of a request are accepted: every length once, in random order, and
        again."""
        while True:
            yield from self._rng.permutation(self.policy.levels + 1).tolist()
