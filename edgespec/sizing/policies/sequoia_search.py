"""Sequoia's search: the best static tree of every size and depth, by dynamic programming."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgespec.latency import DeviceProfile
from edgespec.sizing.contract import Setting
from edgespec.sizing.policies.shape import Shape

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

NEVER = 1e-300
"""Stands for an acceptance of zero: a tree of every size has a value, idle nodes add nothing."""


class Search:
    """The trees of most expected tokens, given how often a k-th child is accepted.

    Source: Chen et al. 2024 (Sequoia), section 3 and ``tree_search.py``. With T(m, l, b) the best
    value of a tree of m nodes, its root included, at most l levels below the root, whose root has b
    children: T(m, l, b) = max over y of T(y, l, b - 1) + p[b] * max over c of T(m - y, l - 1, c).
    All of it is O(nodes**2 * depth * len(p)); 64 nodes and 12 levels take about a millisecond per
    child.
    """

    def __init__(self, acceptance: Floats, nodes: int, depth: int) -> None:
        """``acceptance`` [K]: of the first, second, ... child, given that its parent is."""
        size, most = nodes + 2, len(acceptance)
        self._best = np.full((depth + 1, size), -np.inf)  # [levels, nodes with the root]
        self._best[:, 1] = 1.0
        self._count: Ints = np.zeros((depth + 1, size), dtype=np.intp)
        self._split: Ints = np.zeros((depth + 1, most + 1, size), dtype=np.intp)
        totals = np.arange(size)
        rest = totals[:, None] - totals[None, :]  # [m, y] -> m - y; 0 has no tree
        for levels in range(1, depth + 1):
            below = self._best[levels - 1][np.maximum(rest, 0)]
            row = self._best[0].copy()  # b = 0: the root alone
            for b, p in enumerate(np.maximum(acceptance, NEVER), start=1):
                values = row[None, :] + p * below
                split = values.argmax(axis=1)
                row = values[totals, split]
                self._split[levels, b] = split
                better = row > self._best[levels]
                self._best[levels][better] = row[better]
                self._count[levels][better] = b

    @property
    def tokens(self) -> Floats:
        """Expected tokens of a round, the bonus included, [depth + 1, nodes + 1] by the levels
        allowed and the nodes below the root; minus infinity where no tree is that large."""
        return self._best[:, 1:]

    def shape(self, nodes: int, depth: int) -> Shape:
        """The best tree of exactly ``nodes`` nodes with at most ``depth`` levels."""
        children: list[tuple[int, ...]] = []
        planned = [(nodes + 1, depth)]  # grows while it is walked: level by level
        for size, levels in planned:
            sizes = []
            for b in range(self._count[levels, size], 0, -1):
                left = int(self._split[levels, b, size])
                sizes.append(size - left)
                size = left
            first = len(planned)
            planned += [(part, levels - 1) for part in reversed(sizes)]
            children.append(tuple(range(first, len(planned))))
        return Shape(tuple(children))


@dataclass(frozen=True)
class Prices:
    """What a round costs; any unit."""

    verify: Floats
    """[nodes + 1]: of verifying so many nodes below the root."""
    draft: Floats
    """[depth + 1, nodes + 1]: of drafting so many levels with so many nodes."""
    chain: Floats | None
    """[depth + 1]: the same for a chain in segments, where the draft has a chain graph."""

    @staticmethod
    def by_ratio(ratio: float, nodes: int, depth: int) -> Prices:
        """A draft step costs ``ratio`` verifications, and those the same at every size."""
        draft = ratio * np.arange(depth + 1.0)[:, None] * np.ones(nodes + 1)
        return Prices(np.ones(nodes + 1), draft, None)

    @staticmethod
    def measured(
        profile: DeviceProfile, setting: Setting, emitted: int, nodes: int, depth: int
    ) -> Prices:
        """Of a device, ``emitted`` tokens into an answer. A draft that the profile has no curve of
        (n-grams) costs nothing."""
        costs = profile.costs
        context = setting.prompt_tokens + emitted
        verify = costs.verify.row(context, nodes + 1)[1:]
        context = setting.draft_prompt_tokens + emitted
        draft, chain = np.zeros((depth + 1, nodes + 1)), None
        if costs.draft_first is not None and costs.draft_step is not None:
            first = costs.draft_first.at(1, context)
            step = costs.draft_step.row(context, nodes)
            for levels in range(1, depth + 1):
                # The paper's one t_draft: here that of a level of average width.
                width = np.ceil(np.arange(nodes + 1) / levels).astype(np.intp)
                draft[levels] = first + (levels - 1) * step[width]
        if setting.chain_steps and costs.chain_first is not None and costs.chain_next is not None:
            calls = np.ceil(np.arange(depth + 1) / setting.chain_steps)
            further = costs.chain_next.at(1, context)
            chain = costs.chain_first.at(1, context) + np.maximum(calls - 1, 0) * further
        return Prices(verify, draft, chain)


def best_shape(acceptance: Floats, prices: Prices) -> Shape:
    """The tree of at least one node with the most expected tokens per time (the paper's
    hardware-aware choice of size and depth); of equals the shallowest, then the smallest."""
    depth, nodes = prices.draft.shape[0] - 1, prices.draft.shape[1] - 1
    search = Search(acceptance, nodes, depth)
    speed = search.tokens[1:, 1:] / (prices.draft + prices.verify)[1:, 1:]
    levels, count = np.unravel_index(int(speed.argmax()), speed.shape)
    if prices.chain is not None:
        longest = min(depth, nodes)
        tokens = np.cumsum(acceptance[0] ** np.arange(longest + 1))
        chains = (tokens / (prices.chain[: longest + 1] + prices.verify[: longest + 1]))[1:]
        if chains.max() >= speed.max():
            return Shape.of_widths([1] * (int(chains.argmax()) + 1))
    return search.shape(int(count) + 1, int(levels) + 1)
