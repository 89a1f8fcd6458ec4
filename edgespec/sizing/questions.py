"""What answers to similar questions were like: how long, and how fast with and without a draft.

Robots ask the same few things again and again. Whether drafting will pay is decided before any of
the answer is known, so it is learnt from answers to questions in similar words: past questions
weigh by the words they share with this one. Words of all questions (the chat template's) say
nothing, and those of one or two are names. Nothing here can change a text.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from edgespec.sizing.rates import Record

REMEMBERED = 64
"""Questions; the ones asked longest ago are forgotten first."""
ANSWERS = 8
"""Lengths kept of one question; one with so many answers speaks for itself."""
SHARPNESS = 4.0
"""Weight of a question = similarity to this power."""
AKIN = 0.5
"""Weight of a question that asks the same about something else."""
TELLING = 3
"""Questions that a word must occur in to count."""
STRANGER = 0.004
"""Weight of a question that shares nothing: better than nothing to go by."""


@dataclass
class Asked:
    """One question's answers."""

    words: frozenset[int]
    lengths: deque[int] = field(default_factory=lambda: deque(maxlen=ANSWERS))
    records: dict[object, Record] = field(default_factory=dict)
    """By lesson."""


class Questions:
    """Mutable; shared by the requests of one loaded bundle."""

    def __init__(self) -> None:
        self._asked: OrderedDict[frozenset[int], Asked] = OrderedDict()
        self._in: Counter[int] = Counter()

    def ask(self, tokens: Iterable[int]) -> Asked:
        """The entry of a question, new where it was not asked before."""
        words = frozenset(tokens)
        entry = self._asked.get(words)
        if entry is None:
            entry = self._asked[words] = Asked(words)
            self._in.update(words)
            if len(self._asked) > REMEMBERED:
                gone, _ = self._asked.popitem(last=False)
                self._in.subtract(gone)
        self._asked.move_to_end(words)
        return entry

    def near(self, entry: Asked) -> list[tuple[float, Asked]]:
        """Questions with their weights for this one; its own is 1, and enough if often asked."""
        if len(entry.lengths) >= ANSWERS:
            return [(1.0, entry)]
        count = len(self._asked) + 1.0
        seen = self._in
        # A word of one or two questions is a name: it tells what is asked about, not what is asked.
        rarity = {w: math.log(count / n) for w, n in seen.items() if n >= TELLING}
        own = {word: rarity[word] for word in entry.words if word in rarity}
        total = sum(own.values())
        found = []
        for other in self._asked.values():
            if other is entry:
                found.append((1.0, other))
                continue
            shared = sum(own[word] for word in other.words if word in own)
            apart = sum(rarity[w] for w in other.words if w in rarity and w not in own)
            alike = shared / (total + apart) if shared else 0.0
            found.append((max(AKIN * alike**SHARPNESS, STRANGER), other))
        return found
