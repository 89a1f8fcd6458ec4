"""Prompt lookup as a drafter: the text so far, and texts given beforehand, propose what follows.

Needs no model and no training, and pays where answers repeat: text read off a picture, lists,
code, a question taken up again (Saxena 2023, prompt lookup decoding; here the matches of all suffix
lengths become one tree, scored by ``Continuations``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from heapq import heappop, heappush

from edgespec.acceptance import Verdict
from edgespec.errors import ConfigError
from edgespec.sizing import Growth, Policy, Root, Sizer
from edgespec.tree import ROOT, Candidates
from edgespec_runtime.drafts.base import Answered
from edgespec_runtime.drafts.continuations import Continuations

MAX_N = 4
"""Longest suffix that is looked up: behind four equal tokens, a fifth hardly tells more."""

Proposal = tuple[float, int, int, int, float, tuple[int, ...]]
"""Minus the path's score, serial number, parent, token, its log-probability, the context behind."""


class NgramDraft:
    """One request's drafter over its own history."""

    engine_s = 0.0
    unseen = 0
    ready = 0
    calls: tuple[int, ...] = ()

    def __init__(
        self,
        prompt: Sequence[int],
        *,
        image_token_id: int | None = None,
        max_n: int = MAX_N,
        corpus: Sequence[Sequence[int]] = (),
    ) -> None:
        """``prompt`` are its token ids; those of pictures (``image_token_id``) are never proposed
        and no match reaches across them. ``corpus`` holds further texts to look up in, such as
        earlier answers of the target, in ids of its vocabulary; it is learnt at ``prepare``, some
        microseconds per token. Raises ConfigError for a ``max_n`` below 1."""
        if max_n < 1:
            raise ConfigError(f"max_n is {max_n!r}; it must be an integer >= 1")
        self._prompt = prompt
        self._corpus = corpus
        self._history = Continuations(max_n, image_token_id)
        self._waiting: list[int] = []  # committed tokens, until the prompt is learnt
        self.prepared = False

    def begin(self, first: Verdict) -> None:
        self._waiting = list(first.tokens)

    def prepare(self) -> None:
        self.prepared = True
        for text in self._corpus:
            self._history.learn(text)
            self._history.cut()
        self._history.learn(self._prompt)
        self._history.learn(self._waiting)

    def grow(self, sizer: Sizer, growth: Growth, root: Root) -> Candidates:
        """The likeliest ``policy.max_nodes`` paths, best first, down to ``sizer.floor``; fewer or
        none if less was seen."""
        return self.paths(sizer.policy, root, sizer.floor)

    def paths(self, policy: Policy, root: Root, floor: float = 0.0) -> Candidates:
        """The same, down to any probability."""
        candidates = Candidates()
        levels = min(policy.levels, root.depth_left)
        if levels < 1:
            return candidates
        history, top_k = self._history, policy.top_k
        least = -math.log(floor) if floor > 0 else math.inf
        queue: list[Proposal] = []
        serial = 0
        parent, score, context = ROOT, 0.0, history.context
        while True:
            if parent == ROOT or candidates.depths[parent] < levels:
                for token, p in history.predict(context, top_k):
                    logprob = math.log(p)
                    behind = history.longer(context, token)
                    serial += 1
                    heappush(queue, (-(score + logprob), serial, parent, token, logprob, behind))
            if not queue or len(candidates) == policy.max_nodes:
                return candidates
            negative, _, above, token, logprob, context = heappop(queue)
            if negative > least:
                return candidates
            candidates.extend(above, [token], [logprob])
            parent, score = len(candidates) - 1, -negative

    def foresee(self, chosen: Sequence[int], root: Root, answered: Answered) -> None:
        """Nothing to do ahead."""

    def commit(self, chosen: Sequence[int], verdict: Verdict) -> None:
        if self.prepared:
            self._history.learn(verdict.tokens)
        else:
            self._waiting += verdict.tokens
