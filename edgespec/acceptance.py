"""The verification walk and the stop rules: the one rule that makes every mode lossless.

At each node the target names one token (argmax, or its seeded draw); the walk descends while that
token is a child; the last token named is the bonus (sample-and-match: SpecExec, SpecEdge; form B of
section 9.4 of the project's facts). Every emitted token is the target's own, whatever the tree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.tree import TokenTree


@dataclass(frozen=True)
class Verdict:
    """What one verification settled: accepted rows and the tokens they carry, bonus last."""

    rows: tuple[int, ...]
    """Accepted tree rows from the root's child downwards; empty when the first guess failed."""
    tokens: tuple[int, ...]
    """The target's own tokens: one per accepted row, then the bonus token."""
    features: npt.NDArray[np.floating[Any]] | None = field(default=None, compare=False)
    """Target features [rows, F] of what this call committed, where a draft feeds on them: the
    prompt's rows for the first verdict, then the root and the accepted rows of each round."""
    named: tuple[int, ...] | None = field(default=None, compare=False)
    """The target's token at every row of the tree, root first, where all are known for free."""
    away_ms: float = field(default=0.0, compare=False)
    """Of the time that the caller waited, milliseconds that were no computing of the target's:
    network, queueing. 0 where the target runs here."""
    source: str = field(default="target", compare=False)
    """Whose text the tokens are: "target", or "draft" where nobody verified them (or what they
    follow)."""


def walk(
    tree: TokenTree,
    pick: Callable[[int, Sequence[int]], int],
    named: tuple[int, ...] | None = None,
) -> Verdict:
    """Follows the target through the tree.

    ``pick(row, path)`` returns the target's token after the root and ``path`` (the tokens accepted
    so far in this walk); it is called once per visited node, root first.
    ``named``: see ``Verdict``.
    """
    row = 0
    rows: list[int] = []
    tokens: list[int] = []
    while True:
        token = pick(row, tokens)
        tokens.append(token)
        child = tree.child(row, token)
        if child is None:
            return Verdict(tuple(rows), tuple(tokens), named=named)
        rows.append(child)
        row = child


class StopRules:
    """Decides after every single token whether the text ends there.

    Applied to each token of an accepted path in order, so nothing after an end-of-sequence token, a
    stop string or the length limit is ever emitted, wherever in the path it falls.
    """

    def __init__(
        self,
        eos_ids: Sequence[int],
        max_new_tokens: int,
        completes_stop_string: Callable[[int], bool] = lambda token: False,
    ) -> None:
        self._eos_ids = frozenset(eos_ids)
        self._left = max_new_tokens
        self._completes_stop_string = completes_stop_string

    @property
    def tokens_left(self) -> int:
        """How many more tokens may be emitted; a tree deeper than this is wasted work."""
        return self._left

    def push(self, token: int) -> str | None:
        """Takes one token; returns ``"eos"``, ``"stop"``, ``"length"``, or None to go on.

        End-of-sequence is looked at first: its token carries no text.
        """
        self._left -= 1
        if token in self._eos_ids:
            return "eos"
        if self._completes_stop_string(token):
            return "stop"
        return "length" if self._left <= 0 else None
