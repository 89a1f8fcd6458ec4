"""A stand-alone small LLaVA as drafter (Spec-LLaVA's arrangement).

Its prompt holds the same text and its own, possibly compressed, visual tokens at contiguous
positions of its own. Tree rows it computed while drafting are kept when they are accepted, so only
the tokens it has not seen (the bonus, an unexpanded leaf) are fed again at the next round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from edgespec.acceptance import Verdict
from edgespec.sizing import Policy
from edgespec.tree import ROOT, Candidates
from edgespec_runtime.engines.base import StepSession
from edgespec_runtime.prefill import causal_mask, prefill

Floats = npt.NDArray[np.float32]
OUTPUTS = ("topk_logprobs", "topk_ids")
"""What a draft session must be opened with."""


class VlmDraft:
    """One request's drafter over a draft step session."""

    def __init__(
        self,
        session: StepSession,
        table: Floats,
        prompt: Callable[[], Floats],
        max_positions: int,
        chain: tuple[StepSession, int] | None = None,
    ) -> None:
        """``prompt`` computes the draft's prompt embeddings [L, H]; it is called at ``begin`` so
        that drafting costs nothing before the first token is out. ``chain`` is a session of the
        chain graph on the same cache, and its number of steps."""
        self._chain = chain[0] if chain else None
        self._chain_steps = chain[1] if chain else 0
        self._session = session
        self._table = table
        self._prompt = prompt
        self._max_positions = max_positions
        self._unseen: list[int] = []  # committed tokens whose rows are not in the cache yet
        self._rows: dict[int, list[int]] = {}  # expanded candidate -> pending rows of its path

    @property
    def engine_s(self) -> float:
        return self._session.engine_s + (self._chain.engine_s if self._chain else 0.0)

    def begin(self, first: Verdict) -> None:
        embeds = self._prompt()
        if len(embeds) < self._max_positions:
            prefill(self._session, embeds)
        else:
            self._max_positions = 0  # the prompt alone is too long for the draft: never propose
        self._unseen = list(first.tokens)

    def grow(self, policy: Policy, depth_left: int) -> Candidates:
        candidates = Candidates()
        self._rows = {}
        start = self._session.cache.length + len(self._unseen)
        # The draft's own context may be the shorter one: then it proposes less, or nothing.
        depth_left = min(depth_left, self._max_positions - start)
        if depth_left < 1:
            return candidates
        if policy.chain and policy.levels <= self._chain_steps:
            return self._grow_chain(candidates, policy, depth_left)
        logprobs, tokens = self._refeed()
        top_k = policy.top_k
        candidates.extend(ROOT, tokens[-1, :top_k].tolist(), logprobs[-1, :top_k].tolist())
        level = 1
        while beam := policy.beam(candidates, level, depth_left):
            logprobs, tokens = self._expand(candidates, beam, start)
            children, scores = tokens[:, :top_k].tolist(), logprobs[:, :top_k].tolist()
            for parent, ids, values in zip(beam, children, scores, strict=True):
                candidates.extend(parent, ids, values)
            level += 1
        return candidates

    def commit(self, chosen: Sequence[int], verdict: Verdict) -> None:
        kept: list[int] = []
        for row in verdict.rows:
            rows = self._rows.get(chosen[row - 1])
            if rows is None:
                break
            kept = rows
        self._session.cache.commit(kept)
        self._unseen += verdict.tokens[len(kept) :]

    def _grow_chain(self, candidates: Candidates, policy: Policy, depth_left: int) -> Candidates:
        """All levels in one engine call; the best child of each is the next one's parent."""
        assert self._chain is not None
        cache, new = self._session.cache, len(self._unseen)
        mask = causal_mask(cache.length, new)
        positions = range(cache.length, cache.length + new)
        embeds = self._table[self._unseen]
        logprobs, tokens = self._chain.step(embeds, positions, mask)
        cache.settle(new)
        self._unseen = []
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
        return candidates

    def _refeed(self) -> list[npt.NDArray[np.float32]]:
        """Feeds the committed tokens not seen yet; the last one is the tree's root."""
        session, unseen = self._session, self._unseen
        cached, new = session.cache.length, len(unseen)
        outputs = session.step(
            self._table[unseen],
            range(cached, cached + new),
            causal_mask(cached, new),
            last_only=True,
        )
        session.cache.commit(range(new))
        self._unseen = []
        return outputs

    def _expand(
        self, candidates: Candidates, beam: Sequence[int], start: int
    ) -> list[npt.NDArray[np.float32]]:
        """One draft step over the beam; every node attends to the prefix and its own path."""
        cache = self._session.cache
        first, committed, width = cache.pending, cache.length, len(beam)
        mask = np.zeros((width, cache.used + width), dtype=np.bool_)
        mask[:, :committed] = True
        for i, index in enumerate(beam):
            rows = self._rows[index] = [*self._rows.get(candidates.parents[index], ()), first + i]
            mask[i, [committed + row for row in rows]] = True
        depths, tokens = candidates.depths, candidates.tokens
        return self._session.step(
            self._table[[tokens[i] for i in beam]],
            [start - 1 + depths[i] for i in beam],
            mask,
        )
