"""The rule: the tree that makes tokens - lambda x time largest (section 11.2 of the facts).

Rounds are renewals, so long-run speed is E[tokens per round] / E[time per round]. By Dinkelbach's
argument the policy that maximises it is the one that maximises, round by round,
E[tokens] - lambda * E[time] with lambda the best achievable speed. Time already spent is sunk and
is in no comparison here.

Units: probabilities, milliseconds, lambda in tokens per millisecond.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def tree_order(reach: Floats) -> npt.NDArray[np.intp]:
    """Candidate indices by path probability, best first; ties by index, so parents come first."""
    return np.argsort(-reach, kind="stable")


def best_count(ranked: Floats, verify_ms: Floats, rate: float, limit_ms: float = np.inf) -> int:
    """How many of the best candidates to verify: argmax over n of A(n) - rate * verify_ms[n].

    ``ranked`` [N] are path probabilities, best first; A(n) their prefix sums; ``verify_ms`` [>= N
    + 1] the time to verify n nodes, any curve: every n is looked at, as a staircase has margins
    that lose before they win. n = 0 is allowed; sizes slower than ``limit_ms`` are not (0 always
    is). Ties go to the smaller tree.
    """
    times = verify_ms[: len(ranked) + 1]
    value = np.empty(len(times))
    value[0] = 0.0
    np.cumsum(ranked[: len(times) - 1], out=value[1:])
    value -= rate * times
    if limit_ms < np.inf:
        value[1:][times[1:] > limit_ms] = -np.inf
    return int(value.argmax())


def worth_of_levels(
    ranked: Floats, gains: Sequence[float], verify_ms: Floats, rate: float
) -> float:
    """What nodes still to be drafted could add to the best choice so far, in tokens.

    ``ranked`` are the path probabilities there are, best first, ``gains`` those expected of the
    new ones. The best cut with them, less the best cut without: what does not survive the cut is
    worth nothing (kappa of section 11.2), and the time to verify what does is counted.
    """
    most = len(verify_ms) - 1
    with_new = np.sort(np.concatenate([ranked, gains]))[::-1][:most]
    return best_value(with_new, verify_ms, rate) - best_value(ranked[:most], verify_ms, rate)


def best_value(ranked: Floats, verify_ms: Floats, rate: float) -> float:
    """max over n of A(n) - rate * verify_ms[n]."""
    times = verify_ms[: len(ranked) + 1]
    value = -rate * times
    value[1:] += np.cumsum(ranked[: len(times) - 1])
    return float(value.max())
