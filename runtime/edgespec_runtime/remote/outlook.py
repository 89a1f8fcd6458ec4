"""Tokens per millisecond that each way of answering brings here and now: measured, or predicted.

    hybrid  tau / (own + network + queue)     own: drafting not hidden, verification, bookkeeping
    remote  1 / interval                      interval: queue and compute of one row, as it comes

Of hybrid rounds a record is kept by draft; under another network it is scaled by a model of the
best depth there, so that it holds where the record was made and follows where it was not.
"""

from __future__ import annotations

import math

import numpy as np

from edgespec.latency.curve import Floats
from edgespec.sizing import Setting
from edgespec_runtime.remote.experience import LEVELS, RemoteExperience

DOUBT, PACE = 0.3, 50.0
"""Of hybrid's rate: what it may be better than it was seen to be, over the root of the rounds and
growing with the logarithm of the tokens that have gone by (the upper confidence bound of bandits:
Auer et al., 2002); and the tokens at which that begins."""
SERVED = 16.0
"""Streamed tokens that the server's own figures are worth."""
NEAR = 0.15
"""Networks so near to each other call for the same trees."""
REQUEST, NODE = 60, 4
"""Bytes of a verification request, without and per node."""


class Outlook:
    """One request's view. ``levels`` is the most that its policy drafts; ``adapts``: whether the
    policy sizes trees by the time a round takes."""

    def __init__(
        self,
        experience: RemoteExperience,
        setting: Setting,
        *,
        levels: int,
        adapts: bool,
    ) -> None:
        self._link = experience.link
        self._drafted = experience.drafted(setting)
        self._interval = experience.interval
        self._levels = max(min(levels, LEVELS), 1)
        self._adapts = adapts
        self._costs = setting.profile.costs if setting.profile else None
        self._prompt = (setting.draft_prompt_tokens, setting.images)

    def stream(self) -> float:
        """Of the server by itself; 0 where nothing is known of it."""
        served = self._link.compute(1) + self._link.queue.mean
        if served > 0:  # tokens that had come before they were asked for took no time
            known, expected = self._interval, SERVED * served
            served *= max((known.ms + expected) / (known.tokens + expected), 1.0)
        return 1.0 / served if served > 0 else 0.0

    def hybrid(self) -> float:
        """Of drafting here and verifying there; more than it looks like, the fewer rounds it is
        known from: a draft that had no luck at first must not be given up for that."""
        seen = self._drafted
        doubt = math.sqrt((1.0 + math.log1p(seen.passed / PACE)) / (seen.count + 2.0))
        return self._hybrid() * (1.0 + DOUBT * doubt)

    def _hybrid(self) -> float:
        seen, away = self._drafted, self.away
        if not seen.rounds:
            return self._model(away)
        tokens, own = seen.tokens / seen.rounds, seen.own_ms / seen.rounds
        as_it_was = tokens / max(own + away, 1e-6)
        then = seen.away_ms / seen.rounds
        if not self._adapts or abs(away - then) <= NEAR * then:
            return as_it_was
        measured = tokens / max(own + then, 1e-6)
        scaled = measured * self._model(away) / max(self._model(then), 1e-9)
        return max(as_it_was, scaled)

    @property
    def away(self) -> float:
        """Network and queue of a round, milliseconds."""
        return self._away(self._nodes)

    @property
    def tokens(self) -> float:
        """Of a hybrid round."""
        seen = self._drafted
        return seen.tokens / seen.rounds if seen.rounds else max(seen.reach.tokens(self._levels))

    @property
    def _nodes(self) -> float:
        """Of a tree, as they are here."""
        seen = self._drafted
        return seen.nodes / seen.rounds if seen.rounds else float(self._levels)

    def _away(self, nodes: float) -> float:
        return self._link.network(int(REQUEST + NODE * nodes)) + self._link.queue.mean

    def _model(self, away: float) -> float:
        """Tokens per millisecond with the best depth of tree, ``away`` being network and queue."""
        tokens = np.array(self._drafted.reach.tokens(self._levels))
        return float((tokens / np.maximum(self._own() + away, 1e-6)).max())

    def _own(self) -> Floats:
        """A round's own time by the depth of its tree, [levels + 1]."""
        seen, depths = self._drafted, np.arange(self._levels + 1)
        if not seen.rounds or not seen.levels:
            drafting = np.array([self._draft(depth) for depth in depths.tolist()])
            return drafting + self._link.computes(self._levels + 1)[1:]
        levels, nodes = seen.levels / seen.rounds, seen.nodes / seen.rounds
        rows = np.rint(depths * nodes / levels).astype(int) + 1
        work = self._link.computes(max(int(rows[-1]), round(nodes) + 1))
        own = seen.own_ms / seen.rounds + (depths - levels) * seen.draft_ms / seen.levels
        ms: Floats = np.maximum(own + work[rows] - work[round(nodes) + 1], 0.0)
        return ms

    def _draft(self, depth: int) -> float:
        """Drafting so deep, by this device's profile; unknown counts as nothing, so that it is
        tried."""
        costs = self._costs
        if costs is None or not depth:
            return 0.0
        total = costs.commit_ms + costs.host_round_ms
        context = self._prompt[0]
        if costs.chain_first is not None and costs.chain_next is not None:
            calls = -(-depth // costs.chain_steps)
            first, further = costs.chain_first.at(1, context), costs.chain_next.at(1, context)
        elif costs.draft_first is not None and costs.draft_step is not None:
            calls = depth
            first, further = costs.draft_first.at(1, context), costs.draft_step.at(1, context)
        else:
            return total
        return total + first + (calls - 1) * further

    def take_up(self, unseen: int, prepared: bool) -> float:
        """Milliseconds until the draft is where the text is: its prompt, where it was not taken in
        yet, and ``unseen`` tokens."""
        costs, total = self._costs, 0.0
        first = (costs.draft_first or costs.chain_first) if costs else None
        if first is not None:
            total += first.at(max(unseen, 1)) - first.at(1)
        if prepared:
            return total
        if self._drafted.prepare_ms:
            return total + self._drafted.prepare_ms
        tokens, pictures = self._prompt
        if costs and costs.draft_prefill and tokens:
            total += costs.draft_prefill.at(tokens)
        if costs and costs.draft_vision and pictures:
            total += costs.draft_vision.at(pictures)
        return total

    def reopen(self) -> float:
        """Milliseconds to leave a stream: the session is opened anew behind the last token that was
        taken, which the server has in its cache."""
        return self._link.network(REQUEST) + (self._link.reopen.mean or self._link.compute(1))
