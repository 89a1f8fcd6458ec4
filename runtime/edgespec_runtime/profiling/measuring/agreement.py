"""Whether costs add up: rounds of whole requests against what the curves say of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgespec.latency import Costs
from edgespec.sizing import Growth
from edgespec_runtime.profiling.measuring.requests import ClockedRound


def agreement(costs: Costs, rounds: Sequence[ClockedRound]) -> float:
    """Median over ``rounds`` of predicted / measured time: 1 where costs add up."""
    return float(np.median([predicted_ms(costs, each) / each.total_ms for each in rounds]))


def predicted_ms(costs: Costs, outcome: ClockedRound) -> float:
    """What a round should take: draft calls, commit, verification, host."""
    return (
        _drafting_ms(costs, outcome)
        + costs.verify.at(outcome.nodes + 1, outcome.context)
        + costs.host_round_ms
        + costs.host_token_ms * outcome.tokens
    )


def _drafting_ms(costs: Costs, outcome: ClockedRound) -> float:
    grown = outcome.grown
    first, further = costs.draft_first, costs.draft_step
    if grown.growth is Growth.CHAIN and costs.chain_first:
        first, further = costs.chain_first, costs.chain_next
    if not grown.calls or first is None or further is None:
        return 0.0
    # These prompts hold no pictures, so the draft's context is the target's.
    calls = first.at(grown.calls[0], grown.context)
    calls += sum(further.at(width, grown.context) for width in grown.calls[1:])
    return costs.commit_ms + calls
