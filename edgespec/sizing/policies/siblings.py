"""Who has which children in an arena."""

from __future__ import annotations

from edgespec.tree import Candidates


def siblings(candidates: Candidates) -> dict[int, list[int]]:
    """Children of every expanded node (``ROOT`` among them), best first by score, then index.

    The order in which a draft proposed them is not taken for their rank: a cascade adds nodes and
    raises scores. Parents appear before the children of their children.
    """
    found: dict[int, list[int]] = {}
    for index, parent in enumerate(candidates.parents):
        found.setdefault(parent, []).append(index)
    scores = candidates.scores
    for below in found.values():
        below.sort(key=lambda i: (-scores[i], i))
    return found
