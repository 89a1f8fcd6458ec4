"""When in an answer drafting should begin: taking in the draft's prompt must pay for itself.

An answer that ends soon cannot win back what the draft's prompt costs. How long answers are is
learnt from those that ended, to similar questions first.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

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
    pairs = [(min(length, most), weight) for weight, asked in near for length in asked.lengths]
    if not pairs:
        return 1
    seen, weights = np.array(pairs).T
    best, least = int(seen.max()), 0.0
    for s in sorted({1, *seen.astype(int).tolist()}):
        left = seen - s
        cost = float((weights * np.where(left > 0, prepare_ms - gain_ms * left, 0.0)).sum())
        if cost < least:
            best, least = s, cost
    return best
