"""The drafter contract, and the drafter that proposes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from edgespec.acceptance import Verdict
from edgespec.sizing import Policy
from edgespec.tree import Candidates


class Drafter(Protocol):
    """Grows candidates after the committed text; one object per request."""

    @property
    def engine_s(self) -> float:
        """Seconds spent inside the engine so far."""

    def begin(self, first: Verdict) -> None:
        """Called once, when the target has named its first token (``first.tokens``)."""

    def grow(self, policy: Policy, depth_left: int) -> Candidates:
        """Proposes a tree below the last committed token; ``depth_left`` bounds its depth."""

    def commit(self, chosen: Sequence[int], verdict: Verdict) -> None:
        """Learns what was accepted: ``chosen[row - 1]`` is the candidate of tree row ``row``."""


class NoDraft:
    """Plain decoding: the same loop with an empty tree every round."""

    engine_s = 0.0

    def begin(self, first: Verdict) -> None:
        """Nothing to prepare."""

    def grow(self, policy: Policy, depth_left: int) -> Candidates:
        return Candidates()

    def commit(self, chosen: Sequence[int], verdict: Verdict) -> None:
        """Nothing to remember."""
