"""What every drafter with a model shares: growing a tree, level by level or a chain in segments.

Rows of a drafted tree are pending in the draft's cache; each candidate that was expanded knows the
pending rows of its path. How rows are fed, and what is kept of them, differs: a stand-alone draft
VLM (``vlm``) feeds tokens and keeps what was accepted, a feature-level draft (``feature``) feeds
tokens with hidden states and starts again from the target's true features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from edgespec.sizing import Growth, Root, Sizer
from edgespec.sizing.contract import newest
from edgespec.tree import ROOT, Candidates
from edgespec_runtime.drafts.base import Answered
from edgespec_runtime.drafts.coupling import Coupling
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
    """A session of the chain graph on the draft's cache."""

    session: StepSession
    steps: int
    """Levels of one call."""


class GrowingDraft:
    """One request's drafter over a step session; subclasses say what is fed."""

    ready = 0

    def __init__(
        self,
        session: StepSession,
        max_positions: int,
        chain: Chain | None,
        coupling: Coupling | None = None,
    ) -> None:
        self.prepared = False
        self._coupling = coupling
        if coupling is not None:
            for each in (session, *((chain.session,) if chain else ())):
                each.set_temperature(coupling.temperature)
        self._session = session
        self._max_positions = max_positions
        self._chain = chain
        self._calls: list[int] = []
        self._rows: dict[int, list[int]] = {}  # expanded candidate -> pending rows of its path
        self._root_position = 0  # of the root's row, once it is fed
        # What a chain adds to every token's embedding [H]: ViSpec's global vector.
        self._offset: Floats | None = None

    @property
    def engine_s(self) -> float:
        return self._session.engine_s + (self._chain.session.engine_s if self._chain else 0.0)

    @property
    def calls(self) -> tuple[int, ...]:
        return tuple(self._calls)

    def grow(self, sizer: Sizer, growth: Growth, root: Root) -> Candidates:
        """See ``Drafter.grow``."""
        candidates = Candidates()
        self._rows = {}
        self._calls = []
        root = self._within(root)
        if root.depth_left < 1:
            return candidates
        unseen = self._take_unseen()
        self._root_position = unseen.positions[-1]
        if self._chain and growth is Growth.CHAIN:
            self._grow_chain(candidates, self._chain, unseen, sizer, root)
        else:
            outputs = self._refeed(unseen, self._noise(root, (0,)))
            self._extend(candidates, [ROOT], outputs, sizer.policy.top_k)
            self._grow_steps(candidates, 1, sizer, root)
        return candidates

    def grow_on(self, candidates: Candidates, sizer: Sizer, growth: Growth, root: Root) -> None:
        """Goes on growing ``candidates``, what the last ``grow`` gave by the same ``growth``, whole
        levels of them; nothing was committed since."""
        self._calls = []
        root, level = self._within(root), candidates.depths[-1]
        if self._chain and growth is Growth.CHAIN:
            self._grow_chain(candidates, self._chain, None, sizer, root)
        else:
            self._grow_steps(candidates, level, sizer, root)

    def _within(self, root: Root) -> Root:
        """The draft's own context may be the shorter one: then it proposes less, or nothing."""
        return replace(root, depth_left=min(root.depth_left, self.room))

    @property
    def room(self) -> int:
        """Levels below the last committed token that fit into the draft's context."""
        return self._max_positions - self._next_position()

    def foresee(self, chosen: Sequence[int], root: Root, answered: Answered) -> None:
        """Nothing: ``ahead.AheadDraft`` does it, for drafts that need no more than tokens."""

    def _next_position(self) -> int:
        """Position behind the last committed row."""
        raise NotImplementedError

    def _take_unseen(self) -> Rows:
        """The committed rows that the cache does not hold yet, root last; now it will."""
        raise NotImplementedError

    def _beam_rows(self, candidates: Candidates, beam: Sequence[int], position: int) -> Rows:
        """Rows of the candidates ``beam``; ``position`` is that of the root's row."""
        raise NotImplementedError

    def _learn(self, parents: Sequence[int], outputs: Sequence[Array]) -> None:
        """Takes what a call gave beside candidates: of the last of ``parents`` in a chain, of all
        of them in a step."""

    def _grow_steps(self, candidates: Candidates, level: int, sizer: Sizer, root: Root) -> None:
        """One call per level; ``level`` of them are there."""
        top_k = sizer.policy.top_k
        while beam := sizer.beam(candidates, level, root):
            depths = [candidates.depths[i] for i in beam]
            noise = self._noise(root, depths if len(set(depths)) > 1 else depths[:1])
            outputs = self._expand(candidates, beam, noise)
            self._extend(candidates, beam, outputs, top_k)
            level += 1

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

    def _noise(self, root: Root, depths: Sequence[int]) -> Floats | None:
        """The target's noise for the children of nodes at ``depths`` (the root's is 0)."""
        if self._coupling is None:
            return None
        return self._coupling.rows([root.context + depth + 1 for depth in depths])

    def _refeed(self, unseen: Rows, noise: Floats | None) -> list[Array]:
        """Feeds committed rows; the outputs are the root's."""
        cache = self._session.cache
        self._calls.append(len(unseen))
        outputs = self._session.step(
            unseen.embeds,
            unseen.positions,
            causal_mask(cache.length, len(unseen)),
            last_only=True,
            hidden=unseen.hidden,
            noise=noise,
        )
        cache.commit(range(len(unseen)))
        return outputs

    def _expand(
        self, candidates: Candidates, beam: Sequence[int], noise: Floats | None
    ) -> list[Array]:
        """One draft step over the beam; every node attends to the prefix and its own path."""
        cache = self._session.cache
        first, committed, width = cache.pending, cache.length, len(beam)
        mask = np.zeros((width, cache.used + width), dtype=np.bool_)
        mask[:, :committed] = True
        for i, index in enumerate(beam):
            rows = self._rows[index] = [*self._rows.get(candidates.parents[index], ()), first + i]
            mask[i, [committed + row for row in rows]] = True
        fed = self._beam_rows(candidates, beam, self._root_position)
        self._calls.append(width)
        return self._session.step(fed.embeds, fed.positions, mask, hidden=fed.hidden, noise=noise)

    def _grow_chain(
        self, candidates: Candidates, chain: Chain, unseen: Rows | None, sizer: Sizer, root: Root
    ) -> None:
        """Several levels per call; the best child of each is the next one's parent. The next call
        feeds the tip: pending rows are always the path down to it. Without ``unseen`` rows it goes
        on from its tip."""
        cache, top_k = self._session.cache, sizer.policy.top_k
        most = min(sizer.policy.levels, root.depth_left)
        level = 0 if unseen else candidates.depths[-1]
        tip = newest(candidates, level)[0] if level else ROOT
        while True:
            if level and (level >= most or not sizer.beam(candidates, level, root)):
                return
            fed = unseen or self._beam_rows(candidates, [tip], self._root_position)
            unseen = None
            new = len(fed)
            self._calls.append(new)
            mask = causal_mask(cache.used, new)
            outputs = chain.session.step(
                fed.embeds,
                fed.positions,
                mask,
                hidden=fed.hidden,
                offset=self._offset,
                noise=self._noise(root, range(level, level + chain.steps)),
            )
            if level == 0:
                cache.settle(new)
            logprobs, tokens = outputs[:2]
            count = min(chain.steps, most - level)
            ids, values = tokens[:count, :top_k].tolist(), logprobs[:count, :top_k].tolist()
            parent = tip
            for children, scores in zip(ids, values, strict=True):
                if tip != ROOT:
                    self._rows[tip] = list(range(level))
                parent, tip = tip, len(candidates)
                candidates.extend(parent, children, scores)
                level += 1
            self._learn([parent], outputs)
