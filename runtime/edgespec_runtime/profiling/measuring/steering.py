"""Rounds that are accepted as far as is settled beforehand, whatever draft and target say.

Texts come out as nonsense, but all the work of real ones is done for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from edgespec.acceptance import Verdict
from edgespec.sizing import Growth, Root, Sizer
from edgespec.tree import ROOT, Candidates, TokenTree
from edgespec_runtime.drafts import Answered
from edgespec_runtime.engines.base import Array, StepSession
from edgespec_runtime.kv import Cache
from edgespec_runtime.profiling.measuring.rigs import Source
from edgespec_runtime.verifiers import Meanwhile, Verifier

WANTED = np.float32(1e30)
"""A logit above all others."""


class SteeredSession:
    """The target's session; its first output, logits or best tokens, names what ``wanted`` asks
    for."""

    def __init__(self, session: StepSession) -> None:
        self._session = session
        self.wanted: Mapping[int, int] = {}
        """Row of the coming step -> token."""

    @property
    def cache(self) -> Cache:
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
            if outputs[0].ndim == 1:  # the graph's own arg-max
                outputs[0][row] = token
            else:
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

    def close(self) -> None:
        self._verifier.close()

    def verify(self, tree: TokenTree, meanwhile: Meanwhile | None = None) -> Verdict:
        self._session.wanted = _downwards(tree, next(self._levels))
        return self._verifier.verify(tree, meanwhile)


def _downwards(tree: TokenTree, levels: int) -> dict[int, int]:
    """Rows and the tokens to name there to accept the first child, its first child, ..."""
    wanted: dict[int, int] = {}
    at = 0
    for row, (parent, token) in enumerate(zip(tree.parents, tree.tokens, strict=True), start=1):
        if parent == at and len(wanted) < levels:
            wanted[at] = token
            at = row
    return wanted


class RandomDraft:
    """Proposes a chain of random tokens: for bundles without a draft of their own, where n-grams
    may still be drafted."""

    engine_s = 0.0
    prepared = True
    unseen = 0
    ready = 0
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

    def foresee(self, chosen: Sequence[int], root: Root, answered: Answered) -> None:
        """Nothing to do ahead."""

    def commit(self, chosen: Sequence[int], verdict: Verdict) -> None:
        """Nothing to remember."""
