"""The cut that most policies make: the best nodes by score, above a floor."""

from __future__ import annotations

import math

from edgespec.tree import Candidates


def best(candidates: Candidates, nodes: int, min_prob: float = 0.0) -> list[int]:
    """The ``nodes`` best candidates in tree order whose path probability is above ``min_prob``."""
    ranked = candidates.ranked()[:nodes]
    floor = log(min_prob)
    return [i for i in ranked if candidates.scores[i] > floor] if min_prob else ranked


def log(probability: float) -> float:
    """Its logarithm; minus infinity for 0."""
    return math.log(probability) if probability > 0 else -math.inf
