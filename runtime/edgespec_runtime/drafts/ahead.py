"""Drafting ahead: while a verification is under way elsewhere, the next round is begun on a guess.

The guess is a node of the tree at which acceptance ends and the token that the target names behind
it: a leaf with the draft's own best token (SpecEdge's "proactive" drafting; section 12.1 of the
project's facts), or, where leaves are unlikely, the best token that was proposed and left out of
the tree. If it is right, the next round starts with levels that cost nothing; if not, the draft
goes back to what of the text it guessed right. Candidates are the same either way.

For stand-alone drafts only: a feature-level draft feeds on the target's features of the accepted
text, which nobody knows before the answer has come.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgespec.acceptance import Verdict
from edgespec.sizing import Growth, Policy, Root, Sizer
from edgespec.sizing.contract import Steady, newest
from edgespec.tree import ROOT, Candidates
from edgespec_runtime.drafts.base import Answered, Drafter
from edgespec_runtime.drafts.cascade import CascadeDraft
from edgespec_runtime.drafts.vlm import VlmDraft

UNASKED = math.log(0.8)
"""Of the best token behind a leaf, as long as the draft was not asked for it."""


@dataclass(frozen=True)
class Guess:
    """What a verification is expected to say."""

    start: int
    """Rows in the draft's cache before the tokens."""
    tokens: tuple[int, ...]
    """Down to the leaf, then the bonus token."""


class AheadDraft:
    """One request's stand-alone draft that does not wait idly."""

    def __init__(self, inner: VlmDraft) -> None:
        self._inner = inner
        self._grown = Candidates()  # of the round at hand
        self._policy: Policy | None = None
        self._growth = Growth.NONE
        self._depth, self._width = 0, 1  # how far it grew
        self._guess: Guess | None = None
        self._root: tuple[int, ...] = ()  # the last committed token, after a guess
        self._ahead = Candidates()  # below the guess; the next round's, once it is right
        self._calls: tuple[int, ...] = ()  # not those made ahead of the next
        self.tried = self.hits = 0
        """Verifications of which the outcome was guessed, and guessed right."""

    @property
    def engine_s(self) -> float:
        return self._inner.engine_s

    @property
    def prepared(self) -> bool:
        return self._inner.prepared

    @property
    def unseen(self) -> int:
        return self._inner.unseen

    @property
    def ready(self) -> int:
        return _depth(self._ahead)

    @property
    def calls(self) -> tuple[int, ...]:
        return self._calls

    def begin(self, first: Verdict) -> None:
        self._inner.begin(first)

    def prepare(self) -> None:
        self._inner.prepare()

    def first_token(self, context: int) -> int:
        """See ``VlmDraft.first_token``."""
        return self._inner.first_token(context)

    def grow(self, sizer: Sizer, growth: Growth, root: Root) -> Candidates:
        inner, grown = self._inner, self._ahead
        if len(grown) and growth is not self._growth:  # what is there was grown in another way
            inner.rewind(inner.cached - 1, self._root)
            grown = Candidates()
        if len(grown):
            inner.grow_on(grown, sizer, growth, root)
            beams = inner.calls
        else:
            grown = inner.grow(sizer, growth, root)
            beams = inner.calls[1:]
        self._ahead, self._calls = Candidates(), inner.calls
        self._depth, self._width = _depth(grown), max(beams, default=self._width)
        self._grown, self._policy, self._growth = grown, sizer.policy, growth
        return grown

    def foresee(self, chosen: Sequence[int], root: Root, answered: Answered) -> None:
        grown, inner = self._grown, self._inner
        path, bonus = _likeliest(grown, chosen)
        left = min(root.depth_left, inner.room) - len(path) - 1
        if not self._depth or left < 1 or answered():
            return
        start = inner.cached
        rows = tuple(chosen.index(i) + 1 for i in path)
        tokens = tuple(grown.tokens[i] for i in path)
        if bonus is None:
            inner.commit(chosen, Verdict(rows, tokens))  # the leaf stands for a bonus token
            bonus = inner.next_token(root.context + len(path))
            inner.commit((), Verdict((), (bonus,)))
        else:
            inner.commit(chosen, Verdict(rows, (*tokens, bonus)))
        self._guess = Guess(start, (*tokens, bonus))
        if answered():
            return
        assert self._policy is not None
        gained = len(path) + 1
        after = Root(left, root.context + gained, inner.unseen, True, root.emitted + gained)
        onwards = _Onwards(self._policy, self._width, self._depth, answered)
        self._ahead = inner.grow(onwards, self._growth, after)

    def commit(self, chosen: Sequence[int], verdict: Verdict) -> None:
        guess, self._guess = self._guess, None
        self._grown, self._depth = Candidates(), 0
        if guess is None:
            self._ahead = Candidates()  # were there some, the round did not draft
            self._inner.commit(chosen, verdict)
            return
        said = verdict.tokens
        hit = said == guess.tokens
        self.tried += 1
        self.hits += hit
        self._root = said[-1:]
        if not hit or not len(self._ahead):
            self._ahead = Candidates()
            # The last token is fed again, if it was: what comes behind it is to be asked for.
            cached = min(self._inner.cached - guess.start, len(said) - 1)
            right = _same(guess.tokens[:cached], said)
            self._inner.rewind(guess.start + right, said[right:])


class _Onwards(Steady):
    """Grows as deep and as wide as the round before, until the answer has come."""

    def __init__(self, policy: Policy, width: int, depth: int, answered: Answered) -> None:
        super().__init__(policy)
        self._width, self._depth, self._answered = width, depth, answered

    def begin(self, root: Root) -> Growth:
        raise AssertionError("how to grow is settled")

    def beam(self, candidates: Candidates, level: int, root: Root) -> list[int]:
        if level >= min(self._depth, self.policy.levels, root.depth_left) or self._answered():
            return []
        return candidates.ranked(newest(candidates, level))[: self._width]

    def choose(self, candidates: Candidates) -> list[int]:
        raise AssertionError("nothing is verified before the answer has come")


def _likeliest(candidates: Candidates, chosen: Sequence[int]) -> tuple[list[int], int | None]:
    """How the verification of ``chosen`` will most likely end: the path (candidate indices) that is
    accepted and the token behind it. That is the best candidate just outside the tree, or what the
    draft says behind a leaf, None where it was not asked yet."""
    scores, parents = candidates.scores, candidates.parents
    tree = {ROOT, *chosen}
    outside = [i for i, above in enumerate(parents) if above in tree and i not in tree]
    asked = {*parents, ROOT}
    ends: list[tuple[float, int, int | None]]
    ends = [(scores[i], parents[i], candidates.tokens[i]) for i in outside]
    ends += [(scores[i] + UNASKED, i, None) for i in chosen if i not in asked]
    _, node, bonus = max(ends, key=lambda end: end[0], default=(0.0, ROOT, None))
    path: list[int] = []
    while node != ROOT:
        path.insert(0, node)
        node = parents[node]
    return path, bonus


def _depth(candidates: Candidates) -> int:
    """Levels of candidates that were grown level by level."""
    return candidates.depths[-1] if len(candidates) else 0


def _same(some: Sequence[int], others: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    pairs = zip(some, others, strict=False)
    return next(
        (i for i, (one, other) in enumerate(pairs) if one != other), min(len(some), len(others))
    )


def counts(drafter: Drafter) -> dict[str, int] | None:
    """How often a request's drafter drafted ahead, and how often the outcome was the one it had
    drafted for; None where it does not."""
    own = drafter.model if isinstance(drafter, CascadeDraft) else drafter
    return {"tried": own.tried, "hits": own.hits} if isinstance(own, AheadDraft) else None
