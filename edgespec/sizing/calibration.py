"""From a draft's confidence to the probability that the target agrees, learnt while decoding.

Every verified node is a free label: the target's token below its parent is known, and either it is
the node's or it is not. An online logistic regression turns what the draft says of an edge into the
probability of acceptance given that its parent was accepted (section 11.4 of the project's facts);
path probabilities are products of edges, so a child never outranks its parent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp, log1p
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.tree import Candidates

Floats = npt.NDArray[np.float64]

FEATURES = ("bias", "logit q", "log rank", "first", "log q of path", "depth", "gap")
IDENTITY = np.array([0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
"""The prior: acceptance = the draft's own probability."""
STRENGTH = np.array([2.0, 20.0, 4.0, 4.0, 20.0, 10.0, 20.0])
"""Precision of the prior: what some ten nodes can move is loose."""
HALF_LIFE = 1000.0
"""Nodes after which a label counts half: drafts are better at some tasks than at others."""
EASY, THINNED = 500, 8
"""After so many nodes only every ``THINNED``-th round is learnt from: it costs as it did."""
WATCHED, SURPRISE, SHOCK = 0.04, 0.25, 0.8
"""Weight of a new round in what is expected and found; by how much they part where the draft has
become another; what a lesson from before is worth then, per round."""


@dataclass
class Reliability:
    """Predictions against outcomes, made before the outcome was learnt; ten bins."""

    counts: Floats = field(default_factory=lambda: np.zeros(10))
    predicted: Floats = field(default_factory=lambda: np.zeros(10))
    accepted: Floats = field(default_factory=lambda: np.zeros(10))
    squared: float = 0.0
    nodes: int = 0

    def add(self, p: Floats, y: Floats) -> None:
        """Counts predictions ``p`` [M] with their outcomes ``y`` [M]."""
        bins = np.minimum((p * 10).astype(np.intp), 9)
        self.counts += np.bincount(bins, minlength=10)
        self.predicted += np.bincount(bins, p, minlength=10)
        self.accepted += np.bincount(bins, y, minlength=10)
        self.squared += float(((p - y) ** 2).sum())
        self.nodes += len(p)

    @property
    def ece(self) -> float:
        """Expected calibration error: mean over nodes of |predicted - accepted| of their bin."""
        return float(np.abs(self.predicted - self.accepted).sum() / max(self.nodes, 1))

    @property
    def brier(self) -> float:
        """Mean squared difference between prediction and outcome."""
        return self.squared / max(self.nodes, 1)

    def as_json(self) -> dict[str, Any]:
        """Figures, and the reliability diagram's points: [predicted, accepted, nodes] per bin."""
        filled = [i for i in range(10) if self.counts[i]]
        return {
            "nodes": self.nodes,
            "ece": self.ece,
            "brier": self.brier,
            "diagram": [
                [
                    self.predicted[i] / self.counts[i],
                    self.accepted[i] / self.counts[i],
                    int(self.counts[i]),
                ]
                for i in filled
            ],
        }


class Calibrator:
    """Online logistic regression with forgetting: one Newton step per round.

    The precision matrix of what was seen fades with every node (``HALF_LIFE``); the prior's does
    not, so that scarce evidence leaves the draft's own probability standing.
    """

    def __init__(self) -> None:
        self.weights = IDENTITY.copy()
        self.reliability = Reliability()
        self._seen = np.zeros((len(IDENTITY), len(IDENTITY)))
        self._rounds = 0
        self._expected = self._found = 1.0

    def due(self, expected: float, found: float) -> bool:
        """Whether a round is to be learnt from, whose tree was worth ``expected`` tokens and
        brought ``found``."""
        self._rounds += 1
        self._expected += WATCHED * (expected - self._expected)
        self._found += WATCHED * (found - self._found)
        return self.surprised or self.reliability.nodes < EASY or self._rounds % THINNED == 0

    @property
    def surprised(self) -> bool:
        """Whether rounds of late bring much less or more than expected: what was learnt is of
        another draft, or of another task."""
        return abs(self._found - self._expected) > SURPRISE * self._expected

    def learn(self, x: Floats, predicted: Floats, y: Floats, weight: Floats) -> None:
        """Takes M labelled nodes: features, what was predicted for them, outcomes 0 or 1, weights.

        ``weight`` is 1 below accepted nodes; elsewhere the context is not the text's, and a node
        counts as much as its parent was likely.
        """
        sure = weight >= 1.0
        self.reliability.add(predicted[sure], y[sure])
        p = 1.0 / (1.0 + np.exp(-(x @ self.weights)))
        faded = 0.5 ** (float(weight.sum()) / HALF_LIFE) * (SHOCK if self.surprised else 1.0)
        self._seen = faded * self._seen + (x * (weight * p * (1.0 - p))[:, None]).T @ x
        precision = self._seen.copy()
        precision.flat[:: len(IDENTITY) + 1] += STRENGTH
        step = np.linalg.solve(precision, x.T @ (weight * (y - p)))
        self.weights = self.weights + np.clip(step, -1.0, 1.0)


class Paths:
    """Acceptance probabilities of one round's candidates, kept up to date while they grow."""

    def __init__(self, calibrator: Calibrator, eos: frozenset[int] = frozenset()) -> None:
        self._calibrator = calibrator
        self._eos = eos
        self.reach: list[float] = []
        """P(every edge down to the candidate is accepted), [N]; 0 for a token that ends the answer
        and below it: the target names it by itself behind its parent, and nothing follows."""
        self._families = 0
        self._scores: list[float] = []

    def extend(self, candidates: Candidates) -> list[float]:
        """Takes the candidates that are new; returns ``reach`` of all.

        Scalar arithmetic: a round's few candidates are done before a dozen array calls are.
        """
        reach, scores, parents = self.reach, candidates.scores, candidates.parents
        families, tokens, eos = candidates.families, candidates.tokens, self._eos
        bias, odds, rank, first, path, depth, gap = self._calibrator.weights.tolist()
        if self._scores != scores[: len(reach)]:  # a cascade lifts nodes that were there before
            reach.clear()
            self._families = 0
        index = len(reach)
        for size in families[self._families :]:
            parent = parents[index]
            above, up = (scores[parent], reach[parent]) if parent >= 0 else (0.0, 1.0)
            base = bias + path * max(LEAST, above) + depth * candidates.depths[index] / 8.0
            logits, gaps = _family(scores[index : index + size], above)
            for place in range(size):
                z = base + odds * logits[place] + rank * _RANKS[place] + gap * gaps[place]
                if place == 0:
                    z += first
                reach.append(
                    0.0 if tokens[index + place] in eos else up / (1.0 + exp(min(-z, 30.0)))
                )
            index += size
        self._families, self._scores = len(families), scores[:]
        return reach

    def learn(
        self,
        candidates: Candidates,
        chosen: Sequence[int],
        rows: Sequence[int],
        named: Sequence[int] | None,
        tokens: Sequence[int],
    ) -> None:
        """Labels every candidate whose parent the target answered, and teaches the calibrator."""
        reach, proposed = self.reach, candidates.tokens
        expected = 1.0 + sum([reach[i] for i in chosen])
        if not reach or not self._calibrator.due(expected, len(tokens)):
            return
        visited = {-1: tokens[0]}  # candidate -> the target's token behind it
        visited.update((chosen[r - 1], tokens[i]) for i, r in enumerate(rows, start=1))
        answers = visited
        if named is not None:
            answers = {-1: named[0]}
            answers.update(zip(chosen, named[1:], strict=True))
        labelled = [
            i for i, parent in enumerate(candidates.parents) if parent in answers and reach[i] > 0
        ]
        above = [candidates.parents[i] for i in labelled]
        outcomes = [answers[p] == proposed[i] for i, p in zip(labelled, above, strict=True)]
        weights = [1.0 if parent in visited else reach[parent] for parent in above]
        x = features(candidates)[labelled]
        edges = np.array(
            [reach[i] / (reach[p] if p >= 0 else 1.0) for i, p in zip(labelled, above, strict=True)]
        )
        self._calibrator.learn(x, edges, np.array(outcomes, dtype=np.float64), np.array(weights))


def _family(scores: Sequence[float], above: float) -> tuple[list[float], list[float]]:
    """(logit of the draft's probability given the parent, log-probability ahead of the next best
    or behind the best) of children that came together, best first."""
    # LEAST comes first: what is no number counts as hopeless.
    own = [max(LEAST, score - above) for score in scores]
    logits = [p - log1p(-exp(min(p, MOST))) for p in own]
    best = own[0]
    gaps = [p - best for p in own]
    gaps[0] = best - own[1] if len(own) > 1 else -LEAST
    return logits, gaps


def features(candidates: Candidates) -> Floats:
    """What the draft says of every candidate, [N, F] (``FEATURES``)."""
    x = np.zeros((len(candidates), len(FEATURES)))
    index = 0
    for size in candidates.families:
        rows = x[index : index + size]
        parent = candidates.parents[index]
        above = candidates.scores[parent] if parent >= 0 else 0.0
        logits, gaps = _family(candidates.scores[index : index + size], above)
        rows[:, 1], rows[:, 6] = logits, gaps
        rows[:, 2] = _RANKS[:size]
        rows[0, 3] = 1.0
        rows[:, 4] = max(LEAST, above)
        rows[:, 5] = candidates.depths[index] / 8.0
        index += size
    x[:, 0] = 1.0
    return x


LEAST, MOST = -9.0, -1.2e-4
"""Log-probabilities beyond these (logits of about -9 and 9) tell no more."""
_RANKS = [log1p(rank) for rank in range(256)]
