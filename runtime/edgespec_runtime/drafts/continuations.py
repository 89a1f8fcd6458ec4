"""What followed what: an n-gram model that learns token by token and is asked by suffix.

Every run of 1..``max_n`` tokens remembers which tokens followed it and how often. A context's
estimate interpolates its suffixes from the shortest to the longest (Witten & Bell 1991):

    P_n(t) = (c_n(t) + D_n P_{n-1}(t)) / (C_n + D_n),    P_0(t) = 0

with c_n(t) the count of t behind the suffix of n tokens, C_n their sum and D_n the number of
different t. A longer match therefore weighs more (behind one single occurrence: 1/2, 3/4, 7/8, ...
for suffixes of 1, 2, 3, ... tokens), one that went on in many ways weighs less, and what is missing
from 1 is the probability of a token never seen there.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from operator import itemgetter

WIDTH = 8
"""Followers of one run that are weighed, the most recent ones: it bounds the cost of asking for
what follows a frequent word, which may be anything."""


class Followers(dict[int, int]):
    """Token -> how often it followed; in the order in which they were last seen."""

    __slots__ = ("total",)

    def __init__(self) -> None:
        self.total = 0

    def add(self, token: int) -> None:
        self[token] = self.pop(token, 0) + 1  # popped first: it becomes the most recent one
        self.total += 1


class Continuations:
    """Counts of everything learnt so far. About 1.5 kB per token with ``max_n`` = 4.

    ``barrier`` is a token that is no text (a picture's placeholder): no run reaches across it, and
    it is never a follower. Learning a token costs ``max_n`` dictionary updates, whatever the length
    of the history.
    """

    def __init__(self, max_n: int, barrier: int | None = None) -> None:
        self._max_n = max_n
        self._barrier = barrier
        self._followers: dict[tuple[int, ...], Followers] = {}
        self.context: tuple[int, ...] = ()
        """The last tokens learnt, ``max_n`` at most, none of them from before a barrier."""

    def learn(self, tokens: Iterable[int]) -> None:
        """Takes tokens that follow those learnt before."""
        known = self._followers
        for token in tokens:
            if token == self._barrier:
                self.context = ()
                continue
            context = self.context
            for start in range(len(context)):
                run = context[start:]
                followers = known.get(run)
                if followers is None:
                    followers = known[run] = Followers()
                followers.add(token)
            self.context = self.longer(context, token)

    def cut(self) -> None:
        """What is learnt next does not follow what was learnt before: another text begins."""
        self.context = ()

    def longer(self, context: tuple[int, ...], token: int) -> tuple[int, ...]:
        """The context one token later."""
        return (*context, token)[-self._max_n :]

    def predict(self, context: tuple[int, ...], count: int) -> list[tuple[int, float]]:
        """The ``count`` likeliest next tokens with their probabilities, best first.

        Among equals the one seen last behind the longest match comes first. Empty where not even
        the last token was seen before.
        """
        known = self._followers
        matches: list[Followers] = []  # shortest suffix first
        for start in range(len(context) - 1, -1, -1):
            followers = known.get(context[start:])
            if followers is None:
                break  # a run that was never seen ends no longer one
            matches.append(followers)
        rows = [(f.get, len(f), f.total + len(f)) for f in matches]
        estimates = []
        for token in _candidates(matches, count):
            p = 0.0
            for get, distinct, total in rows:
                p = (get(token, 0) + distinct * p) / total
            estimates.append((token, p))
        estimates.sort(key=_probability, reverse=True)  # stable: recency settles ties
        return estimates[:count]


_probability = itemgetter(1)


def _candidates(matches: list[Followers], count: int) -> list[int]:
    """Followers worth weighing: those of the longest match first, each the most recent first, and
    of shorter ones only while ``count`` are not found."""
    found: dict[int, None] = {}
    for followers in reversed(matches):
        found.update(dict.fromkeys(islice(reversed(followers), WIDTH)))
        if len(found) >= count:
            break
    return list(found)
