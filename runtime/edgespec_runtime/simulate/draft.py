"""The runtime's own drafters over a recorded answer, and the bill for what they do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgespec.acceptance import Verdict
from edgespec.bundle import STAND_ALONE
from edgespec.sizing import Growth, Policy, Root, Sizer
from edgespec.tree import Candidates
from edgespec_runtime.drafts import Answered, Drafter
from edgespec_runtime.drafts.ahead import AheadDraft
from edgespec_runtime.drafts.feature import FeatureDraft, FeaturePrompt, ImageRows
from edgespec_runtime.drafts.growing import Chain
from edgespec_runtime.drafts.vlm import VlmDraft
from edgespec_runtime.kv import KVCache
from edgespec_runtime.simulate.clock import Meter
from edgespec_runtime.simulate.lines import Line
from edgespec_runtime.simulate.oracle import Oracle
from edgespec_runtime.simulate.session import SHAPE, Floats, Layout, ReplayChain, ReplaySession


def wants_features(line: Line) -> bool:
    """Whether the draft of a run feeds on the target's features."""
    return line.method not in STAND_ALONE


class ReplayDraft:
    """A drafter that also pays for its prompt, and for its part of a drafted round."""

    def __init__(self, inner: Drafter, oracle: Oracle, meter: Meter, line: Line) -> None:
        self._inner = inner
        self._oracle = oracle
        self._meter = meter
        self._line = line

    @property
    def engine_s(self) -> float:
        return 0.0

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
        self._inner.prepare()
        self._meter.draft_prompt(self._line.draft_prompt_tokens, self._line.images)

    def grow(self, sizer: Sizer, growth: Growth, root: Root) -> Candidates:
        candidates = self._inner.grow(sizer, growth, root)
        self._meter.drafted()
        self._oracle.count(candidates)
        return candidates

    def foresee(self, chosen: Sequence[int], root: Root, answered: Answered) -> None:
        self._inner.foresee(chosen, root, answered)

    def commit(self, chosen: Sequence[int], verdict: Verdict) -> None:
        self._inner.commit(chosen, verdict)


def open_draft(
    line: Line, oracle: Oracle, meter: Meter, policy: Policy, limit: int, *, ahead: bool = False
) -> Drafter:
    """A drafter for one replay that may emit ``limit`` tokens; with ``ahead`` a stand-alone one
    goes on while it waits."""
    features = wants_features(line)
    # A feature-level draft's rows are one ahead: its last prompt row holds the first token.
    length = line.prompt_tokens if features else line.draft_prompt_tokens
    layout = Layout(length - 1, length - 1) if features else Layout(length, length)
    steps = meter.costs.chain_steps
    segments = -(-policy.levels // steps) if steps else 0
    drafted = max(policy.max_drafted, segments * steps) * (2 if ahead else 1)
    cache = KVCache(SHAPE, length + limit + drafted + 1)
    session = ReplaySession(oracle, meter, layout, cache)
    chain = None
    if steps:
        chain = Chain(ReplayChain(oracle, meter, layout, cache, steps), steps)
    table: Floats = np.arange(oracle.vocabulary, dtype=np.float32)[:, None]
    inner: Drafter
    if features:
        inner = FeatureDraft(session, _prompt(length, table), line.draft_positions, chain)
    else:
        inner = alone = VlmDraft(
            session, table, lambda: np.zeros((length, 1), np.float32), line.draft_positions, chain
        )
        if ahead:
            inner = AheadDraft(alone)
    return ReplayDraft(inner, oracle, meter, line)


def _prompt(length: int, table: Floats) -> FeaturePrompt:
    """A prompt of ``length`` rows of which nothing is known."""

    def no_images(hidden: Floats, question: Floats) -> ImageRows:
        raise AssertionError("the prompt has no image runs")

    ids = np.zeros(length, dtype=np.int64)
    return FeaturePrompt(ids, (), table, "", no_images, lambda features: features)
