"""The drafter contract, and the drafter that proposes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from edgespec.acceptance import Verdict
from edgespec.sizing import Growth, Root, Sizer
from edgespec.tree import Candidates

Answered: TypeAlias = Callable[[], bool]
"""Whether the answer that is waited for has come."""


class Drafter(Protocol):
    """Grows candidates after the committed text; one object per request."""

    @property
    def engine_s(self) -> float:
        """Seconds spent inside the engine so far."""

    @property
    def prepared(self) -> bool:
        """Whether its prompt is taken in."""

    @property
    def unseen(self) -> int:
        """Committed rows to take in at the next growth, beside the prompt's."""

    @property
    def ready(self) -> int:
        """Levels that the next growth starts with, grown while the last verification was under way;
        0 where it starts from the root."""

    @property
    def calls(self) -> tuple[int, ...]:
        """Rows of every call of the last growth: the unseen ones, then beams (or chain tips). Calls
        made ahead of it are not among them: where it started with what was ready, all are beams."""

    def begin(self, first: Verdict) -> None:
        """Called once, when the target has named its first token (``first.tokens``). Costs next to
        nothing: an answer that is never drafted for must not pay for drafting."""

    def prepare(self) -> None:
        """Takes in the prompt; called once, before the first ``grow``."""

    def grow(self, sizer: Sizer, growth: Growth, root: Root) -> Candidates:
        """Proposes a tree below the last committed token, at most ``root.depth_left`` deep."""

    def foresee(self, chosen: Sequence[int], root: Root, answered: Answered) -> None:
        """Called while a verification of ``chosen`` is under way elsewhere: may draft on for the
        outcome that it expects, and stops between engine calls once ``answered()``."""

    def commit(self, chosen: Sequence[int], verdict: Verdict) -> None:
        """Learns what was accepted: ``chosen[row - 1]`` is the candidate of tree row ``row``.
        Called after every verification, drafted for or not."""


class NoDraft:
    """Plain decoding: the same loop with an empty tree every round."""

    engine_s = 0.0
    prepared = True
    unseen = 0
    ready = 0
    calls: tuple[int, ...] = ()

    def begin(self, first: Verdict) -> None:
        """Nothing to prepare."""

    def prepare(self) -> None:
        """Nothing to prepare."""

    def grow(self, sizer: Sizer, growth: Growth, root: Root) -> Candidates:
        return Candidates()

    def foresee(self, chosen: Sequence[int], root: Root, answered: Answered) -> None:
        """Nothing to do ahead."""

    def commit(self, chosen: Sequence[int], verdict: Verdict) -> None:
        """Nothing to remember."""
