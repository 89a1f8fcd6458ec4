"""When in an answer drafting should begin: taking in the draft's prompt must pay for itself.

An answer that ends soon cannot win back what the draft's prompt costs. How long answers are is
learnt from those that ended, the same question's where it was asked before.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence

import numpy as np

ENOUGH = 3
"""Answers to one question before they are preferred to all answers."""
REMEMBERED = 48
QUESTIONS = 256


class Lengths:
    """Tokens of past answers, by question and over all."""

    def __init__(self) -> None:
        self._all: deque[int] = deque(maxlen=REMEMBERED)
        self._by: OrderedDict[int, deque[int]] = OrderedDict()

    def add(self, question: int, tokens: int) -> None:
        """Takes one answer's length."""
        self._all.append(tokens)
        own = self._by.setdefault(question, deque(maxlen=REMEMBERED))
        own.append(tokens)
        self._by.move_to_end(question)
        if len(self._by) > QUESTIONS:
            self._by.popitem(last=False)

    def of(self, question: int) -> Sequence[int]:
        """The lengths to go by."""
        own = self._by.get(question, ())
        return own if len(own) >= ENOUGH else self._all


def start_after(lengths: Sequence[int], most: int, prepare_ms: float, gain_ms: float) -> int:
    """Tokens to emit plainly before drafting begins; ``most`` is the length limit.

    Minimises, over the answers seen, the time lost: an answer of L tokens that drafting begins in
    after s < L tokens costs ``prepare_ms`` and saves ``gain_ms`` for each of the L - s others. An
    s that no answer reaches is plain decoding. Without answers to go by drafting begins at once.
    """
    if gain_ms <= 0:
        return most
    if not lengths:
        return 1
    seen = np.minimum(np.array(lengths), most)
    best, least = int(seen.max()), 0.0
    for s in sorted({1, *(int(value) for value in seen)}):
        left = seen - s
        cost = float(np.where(left > 0, prepare_ms - gain_ms * left, 0.0).sum())
        if cost < least:
            best, least = s, cost
    return best
