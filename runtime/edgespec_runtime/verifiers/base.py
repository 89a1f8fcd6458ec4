"""The verifier contract: the target names its own tokens, wherever it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

from edgespec.acceptance import Verdict
from edgespec.tree import TokenTree

if TYPE_CHECKING:
    from edgespec_runtime.remote.account import Account

Meanwhile: TypeAlias = Callable[[Callable[[], bool]], None]
"""What to do while an answer is under way; takes a function that tells whether it has come."""


class Verifier(Protocol):
    """One request's target; commits what it accepts before it answers."""

    @property
    def engine_s(self) -> float:
        """Seconds spent inside the engine so far."""

    @property
    def context(self) -> int:
        """Committed rows of its cache: all tokens so far but the last."""

    def begin(self) -> Verdict:
        """Takes in the prompt; the verdict's one token is the target's first."""

    def verify(self, tree: TokenTree, meanwhile: Meanwhile | None = None) -> Verdict:
        """Runs the tree below the last committed token in one forward and walks it. A verifier that
        has to wait for its answer calls ``meanwhile`` once, the request being sent; others do not.
        """

    def close(self) -> None:
        """The answer is over, or nobody wants the rest of it: lets go of what is held elsewhere.
        Never raises, does not wait, and may come more than once."""


@runtime_checkable
class Away(Protocol):
    """A verifier whose target is elsewhere."""

    @property
    def account(self) -> Account:
        """What talking to servers took so far."""
