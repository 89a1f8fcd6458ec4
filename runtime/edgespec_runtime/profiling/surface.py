"""What speculation would gain: speedup over tree size and accepted length, from a profile's costs.

    speedup(n, tau) = tau * t(1) / (t_draft(n) + t_verify(n + 1) + t_host)

with tau counting the bonus token. t(1) is a round of plain decoding, its bookkeeping included;
t_host is the draft's commit, the round's bookkeeping and that of tau tokens. The formula is the one
of Leviathan et al. 2023 (arXiv 2211.17192), with measured costs in the place of cost ratios.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from edgespec.latency import Costs

Floats = npt.NDArray[np.float64]

LEVELS = 6
"""Depth of a tree that is drafted level by level: EAGLE-2's."""


class Drafting(Enum):
    """How the nodes come to be."""

    STEPS = "level by level"
    """``LEVELS`` steps whose beams together have n nodes, equally wide; fewer for fewer nodes."""
    CHAIN = "as a chain"
    """n levels of one node, several per call of the chain graph."""
    FREE = "at no cost"
    """Looked up in the text so far, as n-grams are."""

    def depth(self, nodes: int) -> int:
        """Levels of a tree of so many nodes: no more than these, and the bonus, can be accepted."""
        return min(nodes, LEVELS) if self is Drafting.STEPS else nodes


@dataclass(frozen=True)
class Surface:
    """Speedups of one way of drafting."""

    drafting: Drafting
    context: int
    """Rows in the cache that all costs are for."""
    nodes: tuple[int, ...]
    lengths: tuple[float, ...]
    """Accepted lengths tau."""
    speedup: Floats
    """[lengths][nodes]; nan where a tree is too shallow for the length."""
    break_even: Floats
    """[nodes]: the accepted length at which speculation costs what it brings; nan where there is
    none that the tree could reach."""


def ways(costs: Costs) -> tuple[Drafting, ...]:
    """The ways of drafting that there are costs for."""
    found = []
    if costs.draft_first is not None:
        found.append(Drafting.STEPS)
    if costs.chain_first is not None:
        found.append(Drafting.CHAIN)
    return tuple(found) or (Drafting.FREE,)


def plain_ms(costs: Costs, context: float) -> float:
    """One token by plain decoding: a verification of one row and its bookkeeping."""
    return costs.verify.at(1, context) + costs.host_round_ms + costs.host_token_ms


def draft_ms(costs: Costs, drafting: Drafting, nodes: int, taken: float, context: float) -> float:
    """Drafting ``nodes`` nodes, ``taken`` committed rows being new to the draft. Its cache is
    taken to be as long as the target's, which a compressor makes too much of."""
    if drafting is Drafting.STEPS and costs.draft_first and costs.draft_step:
        levels = drafting.depth(nodes)
        further = costs.draft_step.at(nodes / levels, context)
        return costs.draft_first.at(taken, context) + (levels - 1) * further
    if drafting is Drafting.CHAIN and costs.chain_first and costs.chain_next:
        calls = math.ceil(nodes / costs.chain_steps)
        return costs.chain_first.at(taken, context) + (calls - 1) * costs.chain_next.at(1, context)
    return 0.0


def round_ms(costs: Costs, drafting: Drafting, nodes: int, tau: float, context: float) -> float:
    """A round with a tree of ``nodes`` nodes, of which, with the bonus, tau tokens come."""
    host = costs.commit_ms + costs.host_round_ms + tau * costs.host_token_ms
    draft = draft_ms(costs, drafting, nodes, tau, context)
    return draft + costs.verify.at(nodes + 1, context) + host


def speedup(costs: Costs, drafting: Drafting, nodes: int, tau: float, context: float) -> float:
    """The formula at the head of this module; nan where ``nodes`` nodes cannot bring tau tokens."""
    if tau > drafting.depth(nodes) + 1:
        return math.nan
    return tau * plain_ms(costs, context) / round_ms(costs, drafting, nodes, tau, context)


def break_even(costs: Costs, drafting: Drafting, nodes: int, context: float) -> float:
    """The accepted length at which the speedup is 1, to a thousandth; nan beyond the tree's reach.

    By bisection: a longer acceptance never makes the speedup smaller, as its own costs (rows to
    take in, bookkeeping) are below a round's.
    """
    low, high = 0.0, float(drafting.depth(nodes) + 1)
    if speedup(costs, drafting, nodes, high, context) < 1:
        return math.nan
    while high - low > 1e-3:
        middle = (low + high) / 2
        if speedup(costs, drafting, nodes, middle, context) < 1:
            low = middle
        else:
            high = middle
    return high


def surface(
    costs: Costs,
    drafting: Drafting,
    context: int,
    nodes: Sequence[int],
    lengths: Sequence[float],
) -> Surface:
    """Speedups for all ``nodes`` and ``lengths`` at one context."""
    table = [[speedup(costs, drafting, n, tau, context) for n in nodes] for tau in lengths]
    return Surface(
        drafting,
        context,
        tuple(nodes),
        tuple(lengths),
        np.asarray(table, dtype=np.float64),
        np.asarray([break_even(costs, drafting, n, context) for n in nodes], dtype=np.float64),
    )
