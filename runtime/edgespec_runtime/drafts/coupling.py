"""Coupled drafting: a draft that ranks its candidates with the noise the target will draw with.

At temperature T > 0 the target's token is argmax(log p + g) with noise g that depends on seed,
position and token alone (DESIGN, decision 1). A draft that ranks by log q / T + g guesses that very
token as far as q is like p, where one that ranks by log q can only name what is likely. Which token
is emitted is the target's draw all the same: candidates decide how fast, never what.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgespec.sampling import Noise

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Coupling:
    """One request's noise as its draft wants it."""

    noise: Noise
    temperature: float
    ids: npt.NDArray[np.int64] | None = None
    """Target ids of the tokens a draft may propose, [V_d]; None: all of them, in their order."""

    def rows(self, positions: Sequence[int]) -> Floats:
        """Noise of the tokens at absolute ``positions``, [P, V_d]."""
        noise = np.stack([self.noise.roughly(position) for position in positions])
        return noise if self.ids is None else noise[:, self.ids]
