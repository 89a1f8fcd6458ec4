"""What a round will cost here and now: a profile's curves, corrected by what rounds really took.

Machines drift: power modes, heat, other load. Corrections are factors on the profile's medians,
one for the whole of an operation and one for each range of sizes, learnt as running means of log
ratios. What a network adds to a target elsewhere is a sum of its own: a slow network makes no row
dearer.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.latency import Costs

Floats = npt.NDArray[np.float64]

FAST, SLOW = 0.08, 0.02
"""Weights of a new ratio: of the whole operation's factor, and of a size range's."""
OUTLIER = 0.7
"""Log ratios further off than a factor of two count as this much: a hiccup is no drift."""
MISFIT = 0.25
"""A profile whose factor stays further from 1 than this no longer fits its device."""
REFRESH = 8
"""Rounds for which a corrected curve is good: drift is slow."""
RECENT = 9
"""Verifications whose median tells how far away the target is."""
CONTEXT_STEP = 64
"""Curves are looked up anew when the context has grown by so many rows."""


@dataclass
class Factor:
    """Measured over predicted, and the spread of single rounds around it."""

    log: float = 0.0
    log_p95: float = 0.15
    """Of measured over corrected prediction: a running 95th percentile."""
    bins: dict[int, float] = field(default_factory=dict)
    rounds: int = 0
    misfit: float = 0.0
    """Running mean of log(measured / profile), whatever the size."""

    def of(self, size: int) -> float:
        """The factor at a size."""
        return math.exp(self.log + self.bins.get(_bin(size), 0.0))

    def table(self, most: int) -> Floats:
        """The factors at sizes 0..most."""
        values = np.full(most + 1, self.log)
        for index, value in self.bins.items():
            low = 0 if index == 0 else 2 ** (index - 1)
            values[low : 2**index if index else 1] += value
        factors: Floats = np.exp(values)
        return factors

    def learn(
        self, measured: float, predicted: float, size: int, beside: tuple[float, float] = (0, 0)
    ) -> None:
        """Takes what one operation took against what the bare profile says. ``beside``: time that
        came on top, taken and expected; it is a part of the spread, and of no factor."""
        if measured <= 0 or predicted <= 0:
            return
        where = _bin(size)
        own = self.bins.get(where, 0.0)
        ratio = math.log(measured / predicted)
        off = ratio - self.log - own
        took, expected = beside
        spread = off
        if took or expected:
            spread = math.log((measured + took) / (measured * math.exp(-off) + expected))
        # The 95th percentile by Robbins-Monro: steps up are 19 times those down.
        self.log_p95 = max(self.log_p95 + 0.02 * (0.95 if spread > self.log_p95 else -0.05), 0.0)
        off = min(max(off, -OUTLIER), OUTLIER)
        self.rounds += 1
        fast = max(FAST, 1.0 / self.rounds)  # the first rounds say more than the profile's day
        self.log += fast * off
        self.bins[where] = own + SLOW * off
        self.misfit += fast * (min(max(ratio, -2.0), 2.0) - self.misfit)

    @property
    def fits(self) -> bool:
        """Whether the profile still tells the device's times."""
        return self.rounds < 20 or abs(self.misfit) < MISFIT


def _bin(size: int) -> int:
    return size.bit_length()


@dataclass
class Away:
    """What comes on top of every verification of a target elsewhere, whatever the tree: network and
    queueing. A running median: one late packet is no slow network, and a network that became slow
    is known within some rounds."""

    ms: float = 0.0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))

    @property
    def known(self) -> bool:
        """Whether anything was told."""
        return bool(self.recent)

    def learn(self, ms: float) -> None:
        """Takes one verification's; what took no time away was not away."""
        if ms > 0:
            self.recent.append(ms)
            self.ms = statistics.median(self.recent)


@dataclass
class Drift:
    """Corrections of one loaded bundle, shared by its requests."""

    verify: Factor = field(default_factory=Factor)
    draft: Factor = field(default_factory=Factor)
    prepare: Factor = field(default_factory=Factor)
    host: Factor = field(default_factory=Factor)
    away: Away = field(default_factory=Away)

    def as_json(self) -> dict[str, Any]:
        """Factors by operation, and whether the profile still fits; of a target elsewhere, the
        milliseconds that come on top."""
        parts = {"verify": self.verify, "draft": self.draft, "prepare": self.prepare}
        return {
            **{name: math.exp(part.misfit) for name, part in parts.items()},
            "profile_fits": all(part.fits for part in parts.values()),
            **({"away_ms": self.away.ms} if self.away.known else {}),
        }


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
