"""Sequoia's static tree, sized for a device."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgespec.errors import ConfigError
from edgespec.sizing.contract import Feedback, Growth, Setting, Sizer, check_positive
from edgespec.sizing.policies.sequoia_search import Prices, best_shape
from edgespec.sizing.policies.shape import Shape, Static
from edgespec.sizing.policies.siblings import siblings
from edgespec.tree import ROOT

Floats = npt.NDArray[np.float64]

PRIOR_FIRST, PRIOR_SECOND, PRIOR_FALL = 0.65, 0.12, 0.4
"""Acceptance taken for granted at first: of the best child, of the second, and the share of the
one before that every further child has. A guess, worth ``PRIOR_NODES`` observed nodes."""
PRIOR_NODES = 16
REPLAN = 16
"""Drafted rounds after which the tree is searched anew, where acceptance is learnt."""


@dataclass(frozen=True)
class Sequoia:
    """The static tree of most expected tokens per time, at most ``nodes`` large, ``depth`` deep.

    Source: Chen et al. 2024 (Sequoia): positional acceptance p[k], how often the target's token is
    the draft's k-th child, and verification times decide by dynamic programming over all trees
    (``sequoia_search``). ``accept`` gives p as ``0.65/0.12/0.05``; times are the profile's, and
    without one a draft step costs ``cost`` verifications of whatever size.

    Deviations: children are the draft's best tokens in order, not draws without replacement
    (DESIGN, decision 1); where ``accept`` is empty, p is learnt in the request, from every visited
    node whose children were drafted, verified or not, and the tree is searched anew every
    ``REPLAN`` rounds; a draft step of a profile costs what a level of the tree's average width
    does; a chain drafted in segments is priced by its segments. It always drafts: where nothing
    pays, at least one token.
    """

    nodes: int = 32
    depth: int = 10
    top_k: int = 4
    accept: str = ""
    cost: float = 0.1

    def __post_init__(self) -> None:
        check_positive(self, "nodes", "depth", "top_k")
        if not (math.isfinite(self.cost) and self.cost >= 0.0):
            raise ConfigError(f"cost is {self.cost!r}; it must be a number >= 0")
        if self.accept:
            self._given()

    def _given(self) -> Floats:
        """``accept``, [top_k]; children beyond it are never accepted."""
        try:
            given = [float(part) for part in self.accept.split("/")]
        except ValueError:
            given = []
        if not given or not all(0.0 <= p <= 1.0 for p in given) or sum(given) > 1.0 + 1e-9:
            raise ConfigError(
                f"accept is {self.accept!r}; write the shares of the first, second, ... child, "
                "numbers from 0 to 1 that sum to no more than 1, like 0.65/0.12/0.05"
            )
        if len(given) > self.top_k:
            raise ConfigError(
                f"accept has {len(given)} values, but top_k={self.top_k} children are drafted; "
                "give fewer, or a larger top_k"
            )
        return np.array([*given, *[0.0] * (self.top_k - len(given))])

    @property
    def levels(self) -> int:
        return self.depth

    @property
    def max_nodes(self) -> int:
        return self.nodes

    @property
    def max_drafted(self) -> int:
        return self.nodes - 1  # every expanded node has a child in the tree

    def start(self, setting: Setting) -> Sizer:
        return _Sequoia(self, setting)


class Acceptance:
    """How often the target's token is the k-th child of a node whose children were drafted."""

    def __init__(self, ranks: int) -> None:
        self._hits = PRIOR_NODES * np.array(
            [PRIOR_FIRST, *(PRIOR_SECOND * PRIOR_FALL**k for k in range(ranks - 1))]
        )
        self._seen = np.full(ranks, float(PRIOR_NODES))

    @property
    def estimate(self) -> Floats:
        """[ranks], each in [0, 1]."""
        return np.asarray(self._hits / self._seen)

    def learn(self, feedback: Feedback) -> None:
        """Takes the nodes on the accepted path, the root first: the target's token at each is
        known, whichever of its children were verified."""
        candidates = feedback.candidates
        families = siblings(candidates)
        visited = [ROOT, *(feedback.chosen[row - 1] for row in feedback.rows)]
        # Behind a stop rule nothing was asked of the target in earnest.
        for node, token in zip(visited, feedback.tokens[: feedback.emitted], strict=False):
            below = families.get(node, [])[: len(self._seen)]
            self._seen[: len(below)] += 1
            for rank, child in enumerate(below):
                self._hits[rank] += candidates.tokens[child] == token


class _Sequoia(Static):
    policy: Sequoia

    def __init__(self, policy: Sequoia, setting: Setting) -> None:
        self._setting = setting
        self._rounds = 0
        self._acceptance = None if policy.accept else Acceptance(policy.top_k)
        self.policy = policy
        super().__init__(policy, self._search(0))

    def learn(self, feedback: Feedback) -> None:
        if self._acceptance is None or feedback.growth is Growth.NONE:
            return
        self._acceptance.learn(feedback)
        self._rounds += 1
        if self._rounds % REPLAN == 0:
            self.shape = self._search(feedback.root.emitted)

    def _search(self, emitted: int) -> Shape:
        policy, profile = self.policy, self._setting.profile
        given = policy._given() if self._acceptance is None else self._acceptance.estimate
        if profile is None:
            prices = Prices.by_ratio(policy.cost, policy.nodes, policy.depth)
        else:
            prices = Prices.measured(profile, self._setting, emitted, policy.nodes, policy.depth)
        return best_shape(given, prices)
