"""What a round will cost here and now: a profile's curves, corrected by what rounds really took
(``edgespec.sizing.drift``)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from edgespec.latency import Costs, Curve, DeviceProfile
from edgespec.sizing.drift import Drift

Floats = npt.NDArray[np.float64]

REFRESH = 8
"""Rounds for which a corrected curve is good: drift is slow."""
CONTEXT_STEP = 64
"""Curves are looked up anew when the context has grown by so many rows."""


@dataclass(frozen=True)
class Tables:
    """The profile's bare medians at one context, ready to be indexed."""

    context: int
    verify: Floats
    """[nodes + 1], by nodes."""
    first: dict[bool, Floats]
    """By chain or not: the first draft call, by unseen rows up to ``UNSEEN``."""
    further: dict[bool, Floats]
    """A further draft call, by width; the chain's has one width."""


UNSEEN = 64
"""Unseen rows that are told apart; more of them cost what the last slope says."""


class RoundCosts:
    """One request's view: corrected times at its context."""

    def __init__(
        self, costs: Costs, drift: Drift, *, nodes: int, width: int, sampled: bool
    ) -> None:
        """``nodes``: the most of a tree; ``width``: the most of a beam; ``sampled``: whether tokens
        are drawn (temperature > 0)."""
        self._costs = costs
        self._nodes, self._width = nodes, width
        self._pick_ms = costs.pick_ms if sampled else 0.0
        self.drift = drift
        self.chain_steps = costs.chain_steps if costs.chain_first else 0
        self.can_step = costs.draft_step is not None
        self._tables: Tables | None = None
        self._shown: Tables | None = None
        self._age = 0
        self._corrected: list[float] = []

    def verify(self, context: int) -> list[float]:
        """Milliseconds to verify 0..nodes nodes, [nodes + 1]."""
        tables = self._at(context)
        self._age += 1
        if self._age >= REFRESH or self._shown is not tables:
            self._age, self._shown = 0, tables
            factors = self.drift.verify.table(self._nodes)
            self._corrected = (tables.verify * factors).tolist()
        if away := self.drift.away.ms:
            return [ms + away for ms in self._corrected]
        return self._corrected

    def verify_one(self, nodes: int, context: int) -> float:
        """The same for one size."""
        here = float(self._at(context).verify[nodes]) * self.drift.verify.of(nodes)
        return here + self.drift.away.ms

    def host(self, tokens: float) -> float:
        """Of one round, beyond drafting and verifying."""
        bare = self._costs.host_round_ms + self._costs.host_token_ms * tokens
        return bare * math.exp(self.drift.host.log)

    def prepare(self, tokens: int, images: int) -> float:
        """The draft's side of pictures, and its prompt."""
        return self._bare_prepare(tokens, images) * math.exp(self.drift.prepare.log)

    def first(self, chain: bool, unseen: int, context: int) -> float:
        """The first draft call of a round, and the draft's commit."""
        return self.calls(chain, (unseen,), context)

    def calls(self, chain: bool, calls: Sequence[int], context: int) -> float:
        """All of a round's drafting, by the rows of its calls."""
        return self._bare_calls(chain, calls, context) * math.exp(self.drift.draft.log)

    def further(self, chain: bool, context: int) -> Floats:
        """A further draft call over 0..width nodes; of a chain, index 1."""
        table = self._at(context).further[chain]
        return table * math.exp(self.drift.draft.log)

    def learn_verify(
        self, nodes: int, tokens: int, context: int, measured: float, away: float = 0.0
    ) -> float:
        """Takes a verification's time, ``tokens`` drawn, of which ``away`` was no computing of the
        target's; returns what was predicted for it."""
        bare = float(self._at(context).verify[nodes])
        drawing = self._pick_ms * tokens  # the same whatever the tree: no part of the choice
        expected = self.drift.away.ms
        predicted = bare * self.drift.verify.of(nodes) + drawing + expected
        self.drift.verify.learn(measured - away - drawing, bare, nodes, (away, expected))
        self.drift.away.learn(away)
        return predicted

    def learn_draft(
        self,
        chain: bool,
        calls: Sequence[int],
        context: int,
        measured: float,
        *,
        begun: bool = False,
    ) -> float:
        """Takes a round's drafting time; returns what was predicted for it. ``begun``: the round
        started with levels that were there, so that all its calls are further ones."""
        bare = self._bare_calls(chain, (0, *calls) if begun else calls, context)
        predicted = bare * math.exp(self.drift.draft.log)
        self.drift.draft.learn(measured, bare, 0)
        return predicted

    def learn_prepare(self, tokens: int, images: int, measured: float) -> None:
        """Takes what the draft's prompt took."""
        self.drift.prepare.learn(measured, self._bare_prepare(tokens, images), 0)

    def learn_host(self, tokens: int, measured: float) -> None:
        """Takes what a round took beyond drafting and verifying."""
        bare = self._costs.host_round_ms + self._costs.host_token_ms * tokens
        self.drift.host.learn(measured, bare, 0)

    def _at(self, context: int) -> Tables:
        if self._tables is None or abs(context - self._tables.context) >= CONTEXT_STEP:
            costs = self._costs
            first, further = {}, {}
            if costs.draft_first is not None and costs.draft_step is not None:
                first[False] = costs.draft_first.row(context, UNSEEN)
                further[False] = costs.draft_step.row(context, self._width)
                further[False][0] = 0.0
            if costs.chain_first is not None and costs.chain_next is not None:
                first[True] = costs.chain_first.row(context, UNSEEN)
                further[True] = costs.chain_next.row(context, 1)
            verify = costs.verify.row(context, self._nodes + 1)[1:]
            self._tables = Tables(context, verify, first, further)
        return self._tables

    def _bare_prepare(self, tokens: int, images: int) -> float:
        costs = self._costs
        total = costs.draft_prefill.at(tokens) if costs.draft_prefill else 0.0
        if images and costs.draft_vision:
            total += costs.draft_vision.at(images)
        return total

    def _bare_calls(self, chain: bool, calls: Sequence[int], context: int) -> float:
        tables = self._at(context)
        if not calls or chain not in tables.first:
            return 0.0
        first, further = tables.first[chain], tables.further[chain]
        total = self._costs.commit_ms
        if calls[0]:
            total += float(first[min(calls[0], UNSEEN)])
        if calls[0] > UNSEEN:
            total += (calls[0] - UNSEEN) * float(first[UNSEEN] - first[UNSEEN - 1])
        for width in calls[1:]:
            total += float(further[width])
        return total


def costs_of(profile: DeviceProfile, remote: Curve | None) -> Costs:
    """The profile's, with the target's part of them where it runs elsewhere: what it takes to draw
    tokens there is a part of the curve."""
    if remote is None:
        return profile.costs
    return replace(profile.costs, verify=remote, pick_ms=0.0)
