"""When in an answer drafting should begin: taking in the draft's prompt must pay for itself.

An answer that ends soon cannot win back what the draft's prompt costs. How long answers are is
learnt from those that ended, to similar questions first.
"""

from __future__ import annotations

from collections.abc import Iterable

from edgespec.sizing.questions import Asked


def start_after(
    near: Iterable[tuple[float, Asked]], most: int, prepare_ms: float, gain_ms: float
) -> int:
    """Tokens to emit plainly before drafting begins; ``most`` is the length limit.

    Minimises the time expected to be lost, over past answers by weight: an answer of L tokens that
    drafting begins in after s < L tokens costs ``prepare_ms`` and saves ``gain_ms`` for each of
    the L - s others. An answer longer than all before is drafted from there on, as what has
    lasted is likely to last. Without answers to go by drafting begins at once.
    """
    if gain_ms <= 0:
        return most
    pairs = sorted(
        ((min(length, most), weight) for weight, asked in near for length in asked.lengths),
        reverse=True,
    )
    if not pairs:
        return 1
    best, least = pairs[0][0], 0.0
    longer = weighed = 0.0  # weights of the answers longer than s, and of their tokens
    for place, (length, weight) in enumerate(pairs):
        longer += weight
        weighed += weight * length
        s = pairs[place + 1][0] if place + 1 < len(pairs) else 1
        if s < length:
            cost = longer * (prepare_ms + gain_ms * s) - gain_ms * weighed
            if cost < least:
                best, least = s, cost
    return best
