"""What every drafter with a model shares: growing a tree, level by level or a chain in one call.

Rows of a drafted tree are pending in the draft's cache; each candidate that was expanded knows the
pending rows of its path. How rows are fed, and what is kept of them, differs: a stand-alone draft
VLM (``vlm``) feeds tokens and keeps what was accepted, a feature-level draft (``feature``) feeds
tokens with hidden states and starts again from the target's true features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgespec.sizing import Policy
from edgespec.tree import ROOT, Candidates
from edgespec_runtime.engines.base import Array, StepSession
from edgespec_runtime.prefill import causal_mask

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Rows:
    """Rows for one step: ``embeds`` [S, H], ``positions`` [S], ``hidden`` [S, H] of a feature-level
    draft."""

    embeds: Floats
    positions: Sequence[int]
    hidden: Floats | None = None

    def __len__(self) -> int:
        return len(self.positions)


@dataclass(frozen=True)
class Chain:
    """A session of the chain graph on the draft's cache; ``offset`` [H] is ViSpec's vector."""

    session: StepSession
    steps: int


class GrowingDraft:
    """One request's drafter over a step session; subclasses say what is fed."""

    def __init__(self, session: StepSession, max_positions: int, chain: Chain | None) -> None:
        self._session = session
        self._max_positions = max_positions
        self._chain = chain
        self._rows: dict[int, list[int]] = {}  # expanded candidate -> pending rows of its path
        # What a chain adds to every token's embedding [H]: ViSpec's global vector.
        self._offset: Floats | None = None

    @property
    def engine_s(self) -> float:
        return self._session.engine_s + (self._chain.session.engine_s if self._chain else 0.0)

    def grow(self, policy: Policy, depth_left: int) -> Candidates:
        """See ``Drafter.grow``."""
        candidates = Candidates()
        self._rows = {}
        # The draft's own context may be the shorter one: then it proposes less, or nothing.
        depth_left = min(depth_left, self._max_positions - self._next_position())
        if depth_left < 1:
            return candidates
        unseen = self._take_unseen()
        root = unseen.positions[-1]
        if self._chain and policy.chain and policy.levels <= self._chain.steps:
            self._grow_chain(candidates, self._chain, unseen, policy, depth_left)
            return candidates
        outputs = self._refeed(unseen)
        self._extend(candidates, [ROOT], outputs, policy.top_k)
        level = 1
        while beam := policy.beam(candidates, level, depth_left):
            outputs = self._expand(candidates, beam, root)
            self._extend(candidates, beam, outputs, policy.top_k)
            level += 1
        return candidates

    def _next_position(self) -> int:
        """Position behind the last committed row."""
        raise NotImplementedError

    def _take_unseen(self) -> Rows:
        """The committed rows that the cache does not hold yet, root last; now it will."""
        raise NotImplementedError

    def _beam_rows(self, candidates: Candidates, beam: Sequence[int], root: int) -> Rows:
        """Rows of the candidates ``beam``; ``root`` is the position of the root's row."""
        raise NotImplementedError

    def _learn(self, parents: Sequence[int], outputs: Sequence[Array]) -> None:
        """Takes what a step gave beside the candidates of ``parents``."""

    def _extend(
        self,
        candidates: Candidates,
        parents: Sequence[int],
        outputs: Sequence[Array],
        top_k: int,
    ) -> None:
        logprobs, tokens = outputs[:2]
        ids, values = tokens[:, :top_k].tolist(), logprobs[:, :top_k].tolist()
        for parent, children, scores in zip(parents, ids, values, strict=True):
            candidates.extend(parent, children, scores)
        self._learn(parents, outputs)

    def _refeed(self, unseen: Rows) -> list[Array]:
        """Feeds committed rows; the outputs are the root's."""
        cache = self._session.cache
        outputs = self._session.step(
            unseen.embeds,
            unseen.positions,
            causal_mask(cache.length, len(unseen)),
            last_only=True,
            hidden=unseen.hidden,
        )
        cache.commit(range(len(unseen)))
        return outputs

    def _expand(self, candidates: Candidates, beam: Sequence[int], root: int) -> list[Array]:
        """One draft step over the beam; every node attends to the prefix and its own path."""
        cache = self._session.cache
        first, committed, width = cache.pending, cache.length, len(beam)
        mask = np.zeros((width, cache.used + width), dtype=np.bool_)
        mask[:, :committed] = True
        for i, index in enumerate(beam):
            rows = self._rows[index] = [*self._rows.get(candidates.parents[index], ()), first + i]
            mask[i, [committed + row for row in rows]] = True
        fed = self._beam_rows(candidates, beam, root)
        return self._session.step(fed.embeds, fed.positions, mask, hidden=fed.hidden)

    def _grow_chain(
        self, candidates: Candidates, chain: Chain, unseen: Rows, policy: Policy, depth_left: int
    ) -> None:
        """All levels in one engine call; the best child of each is the next one's parent."""
        cache, new = self._session.cache, len(unseen)
        mask = causal_mask(cache.length, new)
        logprobs, tokens = chain.session.step(
            unseen.embeds, unseen.positions, mask, hidden=unseen.hidden, offset=self._offset
        )
        cache.settle(new)
        top_k, levels = policy.top_k, min(policy.levels, depth_left)
        rows = zip(
            tokens[:levels, :top_k].tolist(), logprobs[:levels, :top_k].tolist(), strict=True
        )
        parent = ROOT
        for level, (ids, values) in enumerate(rows):
            if parent != ROOT:
                self._rows[parent] = list(range(level))
            first = len(candidates)
            candidates.extend(parent, ids, values)
            parent = first
