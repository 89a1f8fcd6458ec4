"""From a draft's confidence to the probability that the target agrees, learnt while decoding.

Every verified node is a free label: the target's token below its parent is known, and either it is
the node's or it is not. An online logistic regression turns what the draft says of an edge into the
probability of acceptance given that its parent was accepted (section 11.4 of the project's facts);
path probabilities are products of edges, so a child never outranks its parent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
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
SHARPEST = 9.0
"""Logits beyond +-SHARPEST tell no more."""


@dataclass
class Reliability:
    """Predictions against outcomes, made before the outcome was learnt; ten bins."""

    counts: Floats = field(default_factory=lambda: np.zeros(10))
    predicted: Floats = field(default_factory=lambda: np.zeros(10))
    accepted: Floats = field(default_factory=lambda: np.zeros(10))
    squared: float = 0.0

    def add(self, p: Floats, y: Floats) -> None:
        """Counts predictions ``p`` [M] with their outcomes ``y`` [M]."""
        bins = np.minimum((p * 10).astype(np.intp), 9)
        self.counts += np.bincount(bins, minlength=10)
        self.predicted += np.bincount(bins, p, minlength=10)
        self.accepted += np.bincount(bins, y, minlength=10)
        self.squared += float(((p - y) ** 2).sum())

    @property
    def nodes(self) -> int:
        return int(self.counts.sum())

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

    def predict(self, x: Floats) -> Floats:
        """Features [M, F] -> acceptance given the parent's, [M]."""
        logits = np.clip(x @ self.weights, -SHARPEST, SHARPEST)
        probabilities: Floats = 1.0 / (1.0 + np.exp(-logits))
        return probabilities

    def learn(self, x: Floats, predicted: Floats, y: Floats, weight: Floats) -> None:
        """Takes M labelled nodes: features, what was predicted for them, outcomes 0 or 1, weights.

        ``weight`` is 1 below accepted nodes; elsewhere the context is not the text's, and a node
        counts as much as its parent was likely.
        """
        sure = weight >= 1.0
        self.reliability.add(predicted[sure], y[sure])
        p = self.predict(x)
        faded = 0.5 ** (float(weight.sum()) / HALF_LIFE)
        self._seen = faded * self._seen + (x * (weight * p * (1.0 - p))[:, None]).T @ x
        precision = self._seen.copy()
        precision.flat[:: len(IDENTITY) + 1] += STRENGTH
        step = np.linalg.solve(precision, x.T @ (weight * (y - p)))
        self.weights = self.weights + np.clip(step, -1.0, 1.0)


class Paths:
    """Acceptance probabilities of one round's candidates, kept up to date while they grow."""

    def __init__(self, calibrator: Calibrator) -> None:
        self._calibrator = calibrator
        self.reach: list[float] = []
        """P(every edge down to the candidate is accepted), [N]."""
        self._x: list[Floats] = []
        self._edges: list[Floats] = []

    def extend(self, candidates: Candidates) -> list[float]:
        """Takes the candidates that are new; returns ``reach`` of all."""
        done, reach = len(self.reach), self.reach
        if done < len(candidates):
            x = features(candidates, done)
            edges = self._calibrator.predict(x)
            self._x.append(x)
            self._edges.append(edges)
            for edge, parent in zip(edges.tolist(), candidates.parents[done:], strict=True):
                reach.append(edge * reach[parent] if parent >= 0 else edge)
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
        if not self.reach:
            return
        visited = {-1: tokens[0]}  # candidate -> the target's token behind it
        visited.update((chosen[r - 1], tokens[i]) for i, r in enumerate(rows, start=1))
        answers = visited
        if named is not None:
            answers = {-1: named[0]}
            answers.update(zip(chosen, named[1:], strict=True))
        indices, outcomes, weights = [], [], []
        pairs = zip(candidates.parents, candidates.tokens, strict=True)
        for index, (parent, token) in enumerate(pairs):
            answer = answers.get(parent)
            if answer is not None:
                indices.append(index)
                outcomes.append(float(token == answer))
                weights.append(1.0 if parent in visited else self.reach[parent])
        x, edges = np.concatenate(self._x), np.concatenate(self._edges)
        self._calibrator.learn(x[indices], edges[indices], np.array(outcomes), np.array(weights))


def features(candidates: Candidates, start: int = 0) -> Floats:
    """What the draft says of the candidates from index ``start`` on, [M, F] (``FEATURES``).

    Children of one parent that were proposed together lie side by side, best first.
    """
    scores = np.array(candidates.scores)
    parents = np.array(candidates.parents[start:])
    above = np.where(parents >= 0, scores[parents], 0.0)
    own = np.maximum(scores[start:] - above, -30.0)
    count = len(own)
    opens = np.empty(count, dtype=np.bool_)
    opens[0] = True
    np.not_equal(parents[1:], parents[:-1], out=opens[1:])
    heads = np.flatnonzero(opens)
    group = np.cumsum(opens) - 1
    rank = np.arange(count) - heads[group]
    second = np.minimum(heads + 1, count - 1)
    alone = opens[second]
    lead = np.where(alone, 8.0, own[heads] - own[second])
    x = np.empty((count, len(FEATURES)))
    x[:, 0] = 1.0
    x[:, 1] = np.clip(own - np.log1p(-np.exp(np.minimum(own, -1e-4))), -SHARPEST, SHARPEST)
    x[:, 2] = np.log1p(rank)
    x[:, 3] = opens
    x[:, 4] = np.maximum(above, -6.0)
    x[:, 5] = np.minimum(np.array(candidates.depths[start:]), 16) / 8.0
    behind = own - own[heads][group]
    x[:, 6] = np.clip(np.where(opens, lead[group], behind), -8.0, 8.0)
    return x
