"""Along one answer: what the draft proposes below any path, and what the target says to it.

On the answer's path both are known. Off it, and where no run saw a position, a proposal of the same
task is drawn from those recorded at nearby depths: a function of the seed, the place and the path,
so that draft and verifier see the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgespec.tree import ROOT, Candidates
from edgespec_runtime.bench.proposals import Proposal
from edgespec_runtime.simulate.answers import Answer, Pool

MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Children:
    """What the draft proposes below a node. Tokens that are not the answer's have made-up ids."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    named: int
    """The target's token after the node; a token that is no child where it agrees with none."""


class Oracle:
    """One replay of one answer; counts what it had to draw."""

    def __init__(self, answer: Answer, pool: Pool, seed: int) -> None:
        self._answer = answer
        self._tokens = answer.tokens
        self._pool = pool
        self._loyalty = pool.loyalty
        self._seed = _mixed(seed, len(answer.tokens), *answer.tokens[:8], answer.line.seed)
        self.width = pool.top_k
        self._free = max(answer.tokens) + 1  # ids from here on are nobody's
        self.asked = 0
        """Nodes on the answer's path whose children became candidates,"""
        self.drawn = 0
        """and those whose children were drawn, as no run had seen them."""
        self._root = -1
        self._known: dict[tuple[int, ...], Children] = {}

    @property
    def vocabulary(self) -> int:
        """Ids below this one may occur."""
        return self._free + self.width + 1

    @property
    def nobody(self) -> int:
        """A token that is never proposed."""
        return self._free + self.width

    def following(self, root: int, path: Sequence[int]) -> int:
        """The target's token behind ``path`` below the token at index ``root``, on the answer's
        path or just behind its end."""
        at = root + len(path) + 1
        return self._tokens[at] if at < len(self._tokens) else self.nobody

    def on_path(self, root: int, path: tuple[int, ...]) -> bool:
        """Whether the answer goes on like this."""
        return self._tokens[root + 1 : root + 1 + len(path)] == path

    def children(self, root: int, path: tuple[int, ...]) -> Children:
        """Children of the node behind ``path`` below the token at index ``root``."""
        if root != self._root:
            self._root, self._known = root, {}
        found = self._known.get(path)
        if found is None:
            found = self._known[path] = self._children(root, path)
        return found

    def count(self, candidates: Candidates) -> None:
        """Takes note of what a round's candidates were made of; its root was asked for last."""
        node, at = ROOT, self._root
        while node in candidates.parents and at < len(self._tokens) - 1:
            self.asked += 1
            self.drawn += at not in self._answer.proposals
            at += 1
            named = self._tokens[at]
            below = [i for i, parent in enumerate(candidates.parents) if parent == node]
            found = [i for i in below if candidates.tokens[i] == named]
            if not found:
                return
            node = found[0]

    def _children(self, root: int, path: tuple[int, ...]) -> Children:
        depth = len(path)
        at = root + depth
        known = at < len(self._tokens) - 1 and self.on_path(root, path)
        place = _mixed(self._seed, at) if known else _mixed(self._seed, root, *path)
        proposal = self._proposal(at, depth, place) if known else self._drawn(depth, place)
        tokens = list(range(self._free, self._free + self.width))
        if known:
            named = self._tokens[at + 1]
            if 0 <= proposal.rank < self.width:
                tokens[proposal.rank] = named
        else:
            agrees = 0 <= proposal.rank < self.width and _share(place, 2) < self._loyalty
            named = tokens[proposal.rank] if agrees else self.nobody
        return Children(tuple(tokens), proposal.logprobs[: self.width], named)

    def _proposal(self, at: int, depth: int, place: int) -> Proposal:
        """The one recorded nearest to the depth asked for."""
        recorded = self._answer.proposals.get(at)
        if recorded is None:
            return self._drawn(depth, place)
        return recorded[min(recorded, key=lambda known: (abs(known - depth), known))]

    def _drawn(self, depth: int, place: int) -> Proposal:
        records = self._pool.near(depth)
        return records[int(_share(place, 1) * len(records))]


def _mixed(*words: int) -> int:
    """A 64-bit hash of integers (the finaliser of SplitMix64, word by word)."""
    value = 0
    for word in words:
        value = (value + (word & MASK) + 0x9E3779B97F4A7C15) & MASK
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
        value ^= value >> 31
    return value


def _share(place: int, purpose: int) -> float:
    """A number in [0, 1) that a place has for a purpose."""
    return (_mixed(place, purpose) >> 11) * 2.0**-53
