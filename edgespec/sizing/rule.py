"""The rule: the tree that makes tokens - lambda x time largest (section 11.2 of the facts).

Rounds are renewals, so long-run speed is E[tokens per round] / E[time per round]. By Dinkelbach's
argument the policy that maximises it is the one that maximises, round by round,
E[tokens] - lambda * E[time] with lambda the best achievable speed. Time already spent is sunk and
is in no comparison here.

Units: probabilities, milliseconds, lambda (``rate``) in tokens per millisecond. Lists, not arrays:
rounds have tens of candidates, for which plain Python is the faster.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def tree_order(reach: Sequence[float]) -> list[int]:
    """Candidate indices by path probability, best first; ties by index, so parents come first."""
    return sorted(range(len(reach)), key=lambda i: -reach[i])


def best_count(
    ranked: Sequence[float], verify_ms: Sequence[float], rate: float, limit_ms: float = math.inf
) -> tuple[int, float]:
    """How many of the best candidates to verify: argmax over n of A(n) - rate * verify_ms[n].

    ``ranked`` are path probabilities, best first; A(n) their prefix sums; ``verify_ms[n]`` the time
    to verify n nodes, any curve: every n is looked at, as a staircase has margins that lose before
    they win. n = 0 is allowed; sizes slower than ``limit_ms`` are not (0 always is). Ties go to the
    smaller tree. Returns (n, A(n)).
    """
    best, tokens, total = 0, 0.0, 0.0
    value = -rate * verify_ms[0]
    for n, (chance, ms) in enumerate(zip(ranked, verify_ms[1:], strict=False), start=1):
        total += chance
        gain = total - rate * ms
        if gain > value and ms <= limit_ms:
            best, tokens, value = n, total, gain
    return best, tokens


def worth_of_nodes(
    gains: Sequence[float], there: int, verify_ms: Sequence[float], rate: float
) -> float:
    """What nodes still to be drafted are expected to add, in tokens, the draft's time left out.

    ``gains`` are their expected path probabilities, ``there`` the nodes that would be verified
    without them. A node is worth its probability less the verification it lengthens, by the slope
    of the curve over as many nodes; what is worth less than nothing will be cut (kappa of
    section 11.2).
    """
    last = len(verify_ms) - 1
    start = min(there, last)
    end = min(start + len(gains), last)
    if end == start:
        return 0.0
    price = rate * (verify_ms[end] - verify_ms[start]) / (end - start)
    return sum(max(gain - price, 0.0) for gain in gains[: end - start])


def cheapest_node(verify_ms: Sequence[float]) -> float:
    """The least that a node costs, in milliseconds: the smallest mean over a tree's nodes, of trees
    of any size. 0 for a curve of the root alone."""
    slopes = ((ms - verify_ms[0]) / n for n, ms in enumerate(verify_ms[1:], start=1))
    return min(slopes, default=0.0)
