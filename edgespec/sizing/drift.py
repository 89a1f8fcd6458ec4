"""How a device drifts from its profile: power modes, heat, other load.

Corrections are factors on the profile's medians, one for the whole of an operation and one for each
range of sizes, learnt as running means of log ratios. What a network adds to a target elsewhere is
a sum of its own: a slow network makes no row dearer.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

FAST, SLOW = 0.08, 0.02
"""Weights of a new ratio: of the whole operation's factor, and of a size range's."""
OUTLIER = 0.7
"""Log ratios further off than a factor of two count as this much: a hiccup is no drift."""
MISFIT = 0.25
"""A profile whose factor stays further from 1 than this no longer fits its device."""
RECENT = 9
"""Verifications whose median tells how far away the target is."""


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
