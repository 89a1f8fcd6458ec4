"""Target and draft of a loaded bundle, each on one cache that is put at any context.

A cache row costs the same whatever it holds, so a context is no more than a length: both caches are
filled once and are then wound back and forth.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgespec.acceptance import Verdict
from edgespec.sampling import Sampler, SamplingParams
from edgespec_runtime.drafts import Drafter
from edgespec_runtime.drafts.opening import DraftModel
from edgespec_runtime.engines.base import StepSession
from edgespec_runtime.inputs import VisualInputs, splice
from edgespec_runtime.kv import Cache
from edgespec_runtime.model import Model
from edgespec_runtime.prompt import Prompt
from edgespec_runtime.verifiers import LocalVerifier
from edgespec_runtime.verifiers.opening import names_best, target_outputs

Ids = npt.NDArray[np.int64]


class Source:
    """Random tokens and features, as one seed gives them."""

    def __init__(self, model: Model, seed: int = 0) -> None:
        meta = model.steps["target"].spec
        self._rng = np.random.default_rng(seed)
        self._features = next((int(t.axes[-1]) for t in meta.outputs if t.name == "hidden"), 0)
        image = model.manifest.text.get("image_token_id", -1)
        self._tokens = np.setdiff1d(np.arange(int(meta.meta["vocab"])), [image])

    def ids(self, count: int) -> Ids:
        """Tokens of text, [count]."""
        return self._rng.choice(self._tokens, count)

    def different(self, count: int) -> list[int]:
        """Tokens none of which occurs twice; from small vocabularies, none twice within a turn."""
        drawn = self._rng.choice(self._tokens, min(count, len(self._tokens)), replace=False)
        tokens: list[int] = np.resize(drawn, count).tolist()
        return tokens

    def verdict(self, tokens: int, rows: int) -> Verdict:
        """One that accepted nothing of a tree but names ``tokens`` tokens, with features of
        ``rows`` rows."""
        features = self._rng.standard_normal((rows, self._features), dtype=np.float32)
        return Verdict((), tuple(self.ids(tokens).tolist()), features if self._features else None)

    def prompt(self, length: int) -> Prompt:
        """Text of ``length`` tokens."""
        return Prompt("", self.ids(length), ())

    def fill(self, cache: Cache) -> None:
        """The same numbers in every row. Rows never written would all be one page of zeros, which
        is read from the nearest processor cache."""
        shape = cache.shape
        sizes = (shape.layers, 2, 1, shape.kv_heads, 1, shape.head_dim)
        cache.fill(self._rng.standard_normal(sizes, dtype=np.float32))


def text_only(model: Model) -> VisualInputs:
    """The visual side of a prompt without pictures."""
    return VisualInputs(dict(model.graphs), None, None)


def open_session(model: Model, capacity: int) -> StepSession:
    """A session of the target with the outputs that the bundle's draft wants."""
    features = model.draft is not None and model.draft.wants_features
    step = model.steps["target"]
    return step.open(capacity, target_outputs(names_best(step.spec, _greedy(model)), features))


def verifier_over(model: Model, session: StepSession, prompt: Ids) -> LocalVerifier:
    """A greedy verifier of a text prompt over ``open_session``, as ``Model.stream`` makes one."""
    table, sampler = model.tables["target"], _greedy(model)
    return LocalVerifier(
        session,
        table,
        lambda: splice(prompt, (), table, None),
        prompt.tolist(),
        sampler,
        features=model.draft is not None and model.draft.wants_features,
        named=names_best(model.steps["target"].spec, sampler),
    )


def _greedy(model: Model) -> Sampler:
    return Sampler(SamplingParams(), int(model.steps["target"].spec.meta["vocab"]))


class TargetRig:
    """The target at any of ``contexts``, with room for trees of ``rows`` rows."""

    def __init__(self, model: Model, source: Source, contexts: Sequence[int], rows: int) -> None:
        most = max(contexts)
        # Where a graph attends to its whole buffer, time depends on the buffer: one per context.
        whole = model.steps["target"].spec.meta["mask_span"] != "total"
        ends = {context: context if whole else most for context in contexts}
        opened: dict[int, tuple[LocalVerifier, StepSession]] = {}
        for end in set(ends.values()):
            session = open_session(model, end + rows)
            verifier = verifier_over(model, session, source.ids(1))
            verifier.begin()
            source.fill(session.cache)
            opened[end] = verifier, session
        self._opened = {context: opened[end] for context, end in ends.items()}

    def at(self, context: int) -> LocalVerifier:
        verifier, session = self._opened[context]
        session.cache.length, session.cache.pending = context, 0
        return verifier


class DraftRig:
    """The draft at any of ``contexts``, with room for ``rows`` rows behind them."""

    def __init__(self, model: Model, source: Source, contexts: Sequence[int], rows: int) -> None:
        assert model.draft is not None
        self._draft: DraftModel = model.draft
        self._source, self._visual = source, text_only(model)
        whole = self._draft.step.spec.meta["mask_span"] != "total"
        ends = {context: context if whole else max(contexts) for context in contexts}
        opened = {end: self._draft.sessions(end + rows) for end in set(ends.values())}
        self._opened = {context: opened[end] for context, end in ends.items()}
        for session, _ in opened.values():
            source.fill(session.cache)
        self._prompts = {context: source.prompt(context) for context in contexts}

    def at(self, context: int, unseen: int) -> Drafter:
        """A drafter that has taken in ``context`` rows and has ``unseen`` more to take in."""
        session, chain = self._opened[context]
        session.cache.length, session.cache.pending = context, 0
        drafter = self._draft.drafter(session, chain, self._prompts[context], self._visual)
        drafter.commit((), self._source.verdict(unseen, unseen))
        session.cache.length = context
        return drafter
