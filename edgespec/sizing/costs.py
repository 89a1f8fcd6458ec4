"""What a round will cost here and now: a profile's curves, corrected by what rounds really took.

Machines drift: power modes, heat, other load. Corrections are factors on the profile's medians, one
for the whole of an operation and one for each range of sizes, learnt as running means of log ratios.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.latency import Costs, Curve

Floats = npt.NDArray[np.float64]

FAST, SLOW = 0.08, 0.02
"""Weights of a new ratio: of the whole operation's factor, and of a size range's."""
OUTLIER = 0.7
"""Log ratios further off than a factor of two count as this much: a hiccup is no drift."""
MISFIT = 0.25
"""A profile whose factor stays further from 1 than this no longer fits its device."""
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

    def of(self, size: int) -> float:
        """The factor at a size."""
        return math.exp(self.log + self.bins.get(_bin(size), 0.0))

    def table(self, most: int) -> Floats:
        """The factors at sizes 0..most."""
        values = np.full(most + 1, self.log)
        for index, value in self.bins.items():
            low = 0 if index == 0 else 2 ** (index - 1)
            values[low : 2**index if index else 1] += value
        return np.exp(values)

    def learn(self, measured: float, predicted: float, size: int) -> None:
        """Takes what one operation took against what the bare profile says."""
        if measured <= 0 or predicted <= 0:
            return
        where = _bin(size)
        own = self.bins.get(where, 0.0)
        off = math.log(measured / predicted) - self.log - own
        # The 95th percentile by Robbins-Monro: steps up are 19 times those down.
        self.log_p95 = max(self.log_p95 + 0.02 * (0.95 if off > self.log_p95 else -0.05), 0.0)
        off = min(max(off, -OUTLIER), OUTLIER)
        self.rounds += 1
        fast = max(FAST, 1.0 / self.rounds)  # the first rounds say more than the profile's day
        self.log += fast * off
        self.bins[where] = own + SLOW * off

    @property
    def fits(self) -> bool:
        """Whether the profile still tells the device's times."""
        return self.rounds < 20 or abs(self.log) < MISFIT


def _bin(size: int) -> int:
    return size.bit_length()


@dataclass
class Drift:
    """Corrections of one loaded bundle, shared by its requests."""

    verify: Factor = field(default_factory=Factor)
    draft: Factor = field(default_factory=Factor)
    prepare: Factor = field(default_factory=Factor)
    host: Factor = field(default_factory=Factor)

    def as_json(self) -> dict[str, Any]:
        """Factors by operation, and whether the profile still fits."""
        parts = {"verify": self.verify, "draft": self.draft, "prepare": self.prepare}
        return {
            **{name: math.exp(part.log) for name, part in parts.items()},
            "profile_fits": all(part.fits for part in parts.values()),
        }


class RoundCosts:
    """One request's view: corrected times at its context."""

    def __init__(self, costs: Costs, drift: Drift, nodes: int, sampled: bool) -> None:
        """``nodes``: the most of a tree; ``sampled``: whether tokens are drawn (temperature > 0)."""
        self._costs = costs
        self._nodes = nodes
        self._pick_ms = costs.pick_ms if sampled else 0.0
        self.drift = drift
        self._at = -CONTEXT_STEP
        self._verify = np.zeros(nodes + 1)

    @property
    def chain_steps(self) -> int:
        return self._costs.chain_steps if self._costs.chain_first else 0

    def verify(self, context: int) -> Floats:
        """Milliseconds to verify 0..nodes nodes, this side's bookkeeping included."""
        return self._bare_verify(context) * self.drift.verify.table(self._nodes) + self.host(1.0)

    def host(self, tokens: float) -> float:
        """Of one round, beyond drafting and verifying."""
        base = self._costs.host_round_ms + self._costs.host_token_ms * tokens
        return base * math.exp(self.drift.host.log)

    def prepare(self, tokens: int, images: int) -> float:
        """The draft's side of pictures, and its prompt."""
        bare = self._bare_prepare(tokens, images)
        return bare * math.exp(self.drift.prepare.log)

    def first(self, chain: bool, unseen: int, context: int) -> float:
        """The first draft call of a round, commit included."""
        bare = self._bare_calls(chain, (unseen,), context)
        return bare * math.exp(self.drift.draft.log)

    def segment(self, context: int) -> float:
        """A further call of the chain graph."""
        assert self._costs.chain_next is not None
        return self._costs.chain_next.at(1, context) * math.exp(self.drift.draft.log)

    def steps(self, widths: int, context: int) -> Floats:
        """A further draft step over 0..widths nodes."""
        assert self._costs.draft_step is not None
        times = self._costs.draft_step.row(context, widths)
        times[0] = 0.0
        return times * math.exp(self.drift.draft.log)

    def learn_verify(self, nodes: int, tokens: int, context: int, measured: float) -> float:
        """Takes a verification's time; returns what was predicted for it."""
        bare = float(self._bare_verify(context)[nodes]) + self._pick_ms * tokens
        predicted = bare * self.drift.verify.of(nodes)
        self.drift.verify.learn(measured, bare, nodes)
        return predicted

    def learn_draft(
        self, chain: bool, calls: Sequence[int], context: int, measured: float
    ) -> float:
        """Takes a round's drafting time; returns what was predicted for it."""
        bare = self._bare_calls(chain, calls, context)
        predicted = bare * self.drift.draft.of(0)
        self.drift.draft.learn(measured, bare, 0)
        return predicted

    def learn_prepare(self, tokens: int, images: int, measured: float) -> None:
        self.drift.prepare.learn(measured, self._bare_prepare(tokens, images), 0)

    def _bare_verify(self, context: int) -> Floats:
        if abs(context - self._at) >= CONTEXT_STEP:
            self._at = context
            self._verify = self._costs.verify.row(context, self._nodes + 1)[1:]
        return self._verify

    def _bare_prepare(self, tokens: int, images: int) -> float:
        costs = self._costs
        total = costs.draft_prefill.at(tokens) if costs.draft_prefill else 0.0
        if images and costs.draft_vision:
            total += costs.draft_vision.at(images)
        return total

    def _bare_calls(self, chain: bool, calls: Sequence[int], context: int) -> float:
        costs = self._costs
        first, further = costs.draft_first, costs.draft_step
        if chain and costs.chain_first is not None:
            first, further = costs.chain_first, costs.chain_next
        if first is None or further is None or not calls:
            return 0.0
        total = costs.commit_ms + _at(first, calls[0], context)
        return total + sum(_at(further, width, context) for width in calls[1:])


def _at(curve: Curve, size: int, context: int) -> float:
    return curve.at(size, context)
