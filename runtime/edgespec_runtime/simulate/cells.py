"""Cells: predicted figures of one policy on one task of one set."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.sizing.budgets import Budget
from edgespec_runtime.simulate.answers import Group
from edgespec_runtime.simulate.replay import Moment, Replay
from edgespec_runtime.simulate.simulation import Simulated, Way

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Cell:
    """One line of the report. None: there was nothing to tell it from.

    Times are predicted milliseconds. Speeds are medians over answers; percentiles are over all
    rounds, or all tokens after the first, of the cell.
    """

    method: str
    compressor: str
    policy: str
    """"plain" is decoding without a draft."""
    mode: str
    """Where the target is elsewhere: "hybrid" (every verification crosses the network), "remote"
    (the server goes on by itself), "local" (this device alone), "auto" (what is measured to be
    faster)."""
    temperature: float
    task: str
    domain: str
    bundle: str
    n: int
    """Answers replayed."""
    tokens: float
    """Mean tokens of an answer."""
    accepted_length: float | None
    """Mean tokens per round over all rounds, the target's own (bonus) token counted."""
    tokens_per_s: float
    """After the first token, the draft's prompt included."""
    speedup_decode: float | None
    """Median of per-answer ratios of tokens per second over plain decoding's."""
    speedup_e2e: float
    """Median of per-answer ratios of the time to the last token."""
    ttft_ms: float
    """Median time to the first token."""
    round_p50_ms: float | None
    round_p95_ms: float | None
    """Of a round, the draft's prompt left out."""
    itl_p50_ms: float | None
    itl_p95_ms: float | None
    """Between tokens as they are handed out: those of one round arrive together."""
    drafted: float | None
    """Share of rounds that asked the draft."""
    streamed: float | None
    """Share of tokens that the server sent by itself."""
    over_round_budget: float | None
    """Share of rounds over ``ms_per_round``; None without such a budget, here and below."""
    over_ttft_budget: float | None
    """Share of answers whose first token came later than ``ttft_ms``."""
    over_itl_budget: float | None
    """Share of answers whose 95th percentile between tokens is over ``p95_itl_ms``."""
    asked: int
    """Nodes on the answers' paths whose proposals were asked for,"""
    drawn: int
    """and those no run had seen there, which were drawn from the task's others."""
    accepted_length_includes_bonus: bool = True

    def as_json(self) -> dict[str, Any]:
        """Plain containers with the stable keys of ``simulate --json``."""
        return asdict(self)


def summarise(simulated: Iterable[Simulated], budget: Budget) -> list[Cell]:
    """Cells by set and task in their order, within a task plain decoding first."""
    groups: dict[Group, list[Simulated]] = {}
    for one in simulated:
        groups.setdefault(one.group, []).append(one)
    tasks = list(dict.fromkeys((group.domain, group.task) for group in groups))
    cells = []
    for group in sorted(groups, key=lambda group: tasks.index((group.domain, group.task))):
        answers = groups[group]
        for way in answers[0].replays:
            pairs = [(one.plain, one.replays[way]) for one in answers]
            cells.append(_cell(group, way, pairs, budget))
    return cells


def _cell(group: Group, way: Way, pairs: Sequence[tuple[Replay, Replay]], budget: Budget) -> Cell:
    mine = [replay for _, replay in pairs]
    rounds = [moment for replay in mine for moment in replay.rounds]
    after_first = sum(replay.tokens_after_first for replay in mine)
    round_ms = np.array([moment.round_ms for moment in rounds])
    gaps = np.concatenate([_gaps(replay) for replay in mine])
    return Cell(
        method=group.method,
        compressor=group.compressor,
        policy=way.policy,
        mode=way.mode,
        temperature=group.temperature,
        task=group.task,
        domain=group.domain,
        bundle=group.bundle,
        n=len(mine),
        tokens=statistics.mean(1 + replay.tokens_after_first for replay in mine),
        accepted_length=after_first / len(rounds) if rounds else None,
        tokens_per_s=statistics.median(replay.tokens_per_s for replay in mine),
        speedup_decode=_ratio(pairs),
        speedup_e2e=statistics.median(plain.total_ms / own.total_ms for plain, own in pairs),
        ttft_ms=statistics.median(replay.ttft_ms for replay in mine),
        round_p50_ms=_percentile(round_ms, 50),
        round_p95_ms=_percentile(round_ms, 95),
        itl_p50_ms=_percentile(gaps, 50),
        itl_p95_ms=_percentile(gaps, 95),
        drafted=sum(bool(moment.calls) for moment in rounds) / len(rounds) if rounds else None,
        streamed=_share(rounds),
        over_round_budget=_over(round_ms.tolist(), budget.ms_per_round),
        over_ttft_budget=_over([replay.ttft_ms for replay in mine], budget.ttft_ms),
        over_itl_budget=_over(_each(mine, lambda gaps: np.percentile(gaps, 95)), budget.p95_itl_ms),
        asked=sum(replay.asked for replay in mine),
        drawn=sum(replay.drawn for replay in mine),
    )


def _share(rounds: Sequence[Moment]) -> float | None:
    """Of the rounds' tokens, those that were streamed."""
    tokens = sum(moment.tokens for moment in rounds)
    streamed = sum(moment.tokens for moment in rounds if moment.streamed)
    return streamed / tokens if tokens else None


def _gaps(replay: Replay) -> Floats:
    """Times between the tokens of one answer."""
    counts = [moment.tokens for moment in replay.rounds]
    gaps = np.zeros(sum(counts))
    if counts:
        first = np.cumsum([0, *counts[:-1]])
        gaps[first] = [moment.gap_ms for moment in replay.rounds]
    return gaps


def _each(replays: Sequence[Replay], figure: Callable[[Floats], float]) -> list[float]:
    return [float(figure(_gaps(replay))) for replay in replays if replay.rounds]


def _percentile(values: Floats, q: float) -> float | None:
    return float(np.percentile(values, q)) if len(values) else None


def _over(values: Sequence[float], limit: float) -> float | None:
    """Share of ``values`` above ``limit``; None where there is no limit, or no value."""
    if limit == float("inf") or not values:
        return None
    return sum(value > limit for value in values) / len(values)


def _ratio(pairs: Sequence[tuple[Replay, Replay]]) -> float | None:
    ratios = [own.tokens_per_s / plain.tokens_per_s for plain, own in pairs if plain.rounds]
    return statistics.median(ratios) if ratios else None
