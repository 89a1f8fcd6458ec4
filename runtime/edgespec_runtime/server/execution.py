"""How the engine runs what several sessions ask for at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from edgespec_runtime.engines.base import Array, StepSession
from edgespec_runtime.verifiers.local import Ask


class Executor(Protocol):
    """Runs verifications of different sessions."""

    @property
    def width(self) -> int:
        """Most that one call takes."""

    def run(self, asked: Sequence[tuple[StepSession, Ask]]) -> Sequence[Sequence[Array]]:
        """The outputs of every session's rows, which are pending in its cache afterwards; valid
        until the next call. Raises where any of them fails; none is pending then."""


class OneByOne:
    """A call of its own for each session."""

    width = 1

    def run(self, asked: Sequence[tuple[StepSession, Ask]]) -> Sequence[Sequence[Array]]:
        return [session.step(ask.embeds, ask.positions, ask.mask) for session, ask in asked]
