"""Modelled time: every operation of a round advances a clock by what a profile says it costs."""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from edgespec.latency import Costs, Curve

Z95 = 1.6448536269514722
"""The 95th percentile of a standard normal."""


class Clock:
    """Tells seconds, as ``decode`` wants them."""

    def __init__(self) -> None:
        self.ms = 0.0

    def __call__(self) -> float:
        return self.ms / 1e3


class Meter:
    """One request's bill: operations at the profile's medians, or scattered around them."""

    def __init__(
        self, costs: Costs, clock: Clock, *, sampled: bool, noise: np.random.Generator | None = None
    ) -> None:
        """``sampled``: whether the target draws its tokens (temperature > 0). With ``noise`` every
        cost is log-normal with the median and the 95th percentile of its curve."""
        self.costs = costs
        self.clock = clock
        self._pick_ms = costs.pick_ms if sampled else 0.0
        self._noise = noise

    def prompt(self, tokens: int, images: int) -> None:
        """The target's side of the prompt."""
        if images:
            self._charge(self.costs.vision, images)
        self._charge(self.costs.prefill, tokens)
        self.clock.ms += self._pick_ms

    def verification(self, rows: int, context: int, visited: int) -> None:
        """One verification; ``visited`` nodes drew a token, the root included."""
        self._charge(self.costs.verify, rows, context)
        self.clock.ms += self._pick_ms * visited

    def forward_ms(self, rows: int, context: int) -> float:
        """What a verification of ``rows`` rows would take; nothing is charged."""
        before = self.clock.ms
        self.verification(rows, context, 1)
        took, self.clock.ms = self.clock.ms - before, before
        return took

    def draft_prompt(self, tokens: int, images: int) -> None:
        """The draft's side of the prompt."""
        if images and self.costs.draft_vision is not None:
            self._charge(self.costs.draft_vision, images)
        self._charge(self.costs.draft_prefill, tokens)

    def first(self, rows: int, context: int) -> None:
        """The step that takes in the committed rows."""
        self._charge(self.costs.draft_first, rows, context)

    def step(self, width: int, context: int) -> None:
        """A further step."""
        self._charge(self.costs.draft_step, width, context)

    def chain(self, rows: int, context: int, first: bool) -> None:
        """A call of the chain graph."""
        self._charge(self.costs.chain_first if first else self.costs.chain_next, rows, context)

    def drafted(self) -> None:
        """The draft's side of a round beyond its calls."""
        self.clock.ms += self.costs.commit_ms

    def host(self, tokens: int, rounds: int = 0) -> None:
        """Everything else of ``rounds`` rounds and ``tokens`` emitted tokens."""
        self.clock.ms += tokens * self.costs.host_token_ms + rounds * self.costs.host_round_ms

    def _charge(self, curve: Curve | None, size: int, context: int = 0) -> None:
        if curve is None:
            return
        ms = curve.at(size, context)
        if self._noise is not None:
            spread = math.log(_tail(curve).at(size, context) / ms) / Z95
            ms *= math.exp(max(spread, 0.0) * self._noise.standard_normal())
        self.clock.ms += ms


@cache
def _tail(curve: Curve) -> Curve:
    """The curve of its 95th percentiles."""
    return Curve(curve.sizes, curve.contexts, curve.p95_ms, curve.p95_ms)
