"""Cells: the figures of one method, compressor, policy and temperature on one task of one set."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgespec_runtime.bench.measure import BASELINE, Run, Side, Turn


@dataclass(frozen=True)
class Cell:
    """One line of the report. None: there was nothing to measure it on.

    Times are milliseconds. Unless said otherwise a figure is the median over prompts of each
    prompt's median over repeats; a prompt is one turn of a conversation.
    """

    method: str
    compressor: str
    policy: str
    temperature: float
    task: str
    domain: str
    bundle: str
    n: int
    """Prompts measured."""
    skipped: int
    """Prompts that did not fit the context."""
    repeats: int
    tokens: float
    """Mean tokens of an answer."""
    accepted_length: float | None
    """Mean tokens per round over all rounds, the target's own (bonus) token counted."""
    speedup_decode: float | None
    """Median of per-prompt ratios of tokens per second after the first token."""
    speedup_e2e: float
    """Median of per-prompt ratios of the time from call to last token."""
    exact_match: float
    """Share of prompts whose every run gave the token ids of plain decoding, same seed."""
    plain_tokens_per_s: float
    tokens_per_s: float
    plain_ttft_ms: float
    """Plain decoding's time from call to first token: pictures, vision tower, prefill."""
    ttft_ms: float
    draft_prefill_ms: float | None
    """The draft's own prefill, which falls after the first token; 0 where nothing was drafted."""
    plain_round_ms: float | None
    """T(1): one plain step."""
    draft_ms_per_round: float | None
    verify_ms_per_round: float | None
    draft_overhead: float | None
    """Share of the time after the first token that went into drafting, its prefill included."""
    host_share: float | None
    """Share of the time after the first token that was spent outside engine calls."""
    accepted_length_includes_bonus: bool = True

    def as_json(self) -> dict[str, Any]:
        """Plain containers with the stable keys of ``bench --json``."""
        return asdict(self)


@dataclass(frozen=True)
class Difference:
    """Where a method first left plain decoding's tokens, on one prompt."""

    method: str
    domain: str
    id: str
    turn: int
    position: int
    """Index of the first token that differs."""


Pairs = Sequence[tuple[list[Run], list[Run]]]
"""Per prompt: plain runs, and the method's."""


def summarise(turns: Iterable[Turn]) -> list[Cell]:
    """Cells by set and task in their order, within a task by temperature and method."""
    groups: dict[tuple[Any, ...], dict[str, list[Turn]]] = {}
    for turn in turns:
        key = (turn.row.domain, turn.row.task, turn.temperature)
        groups.setdefault(key, {}).setdefault(turn.bundle, []).append(turn)
    tasks = list(dict.fromkeys(key[:2] for key in groups))
    cells = []
    for key in sorted(groups, key=lambda key: tasks.index(key[:2])):
        for of_bundle in groups[key].values():
            sides = dict.fromkeys(side for turn in of_bundle for side in turn.runs)
            cells += [_cell(side, of_bundle) for side in sides if side != BASELINE]
    return cells


def differences(turns: Iterable[Turn]) -> list[Difference]:
    """Every prompt and method that did not give plain decoding's tokens."""
    found = []
    for turn in turns:
        for side, runs in turn.runs.items():
            at = _first_difference(turn.runs[BASELINE], runs)
            if at is not None:
                row = turn.row
                found.append(Difference(side.method.name, row.domain, row.id, turn.number, at))
    return found


def _cell(side: Side, turns: Sequence[Turn]) -> Cell:
    pairs = [(turn.runs[BASELINE], turn.runs[side]) for turn in turns if not turn.skipped]
    row, mine = turns[0].row, [runs for _, runs in pairs]
    plain = [runs for runs, _ in pairs]
    rounds = sum(run.stats.rounds for runs in mine for run in runs)
    after_first = sum(len(run.tokens) - 1 for runs in mine for run in runs)
    return Cell(
        method=side.method.name,
        compressor=side.method.compressor,
        policy=side.policy,
        temperature=turns[0].temperature,
        task=row.task,
        domain=row.domain,
        bundle=turns[0].bundle,
        n=len(pairs),
        skipped=sum(bool(turn.skipped) for turn in turns),
        repeats=len(mine[0]),
        tokens=statistics.mean(len(runs[0].tokens) for runs in mine),
        accepted_length=after_first / rounds if rounds else None,
        speedup_decode=_ratio(pairs, lambda run: run.stats.tokens_per_s),
        speedup_e2e=_ratio(pairs, lambda run: 1 / run.total_ms) or 0.0,
        exact_match=statistics.mean(_first_difference(*pair) is None for pair in pairs),
        plain_tokens_per_s=_middle(plain, lambda run: run.stats.tokens_per_s) or 0.0,
        tokens_per_s=_middle(mine, lambda run: run.stats.tokens_per_s) or 0.0,
        plain_ttft_ms=_middle(plain, lambda run: run.first_ms) or 0.0,
        ttft_ms=_middle(mine, lambda run: run.first_ms) or 0.0,
        draft_prefill_ms=_middle(mine, lambda run: run.draft_prefill_ms, _has_rounds),
        plain_round_ms=_middle(plain, lambda run: _per_round(run, "verify_ms"), _has_rounds),
        draft_ms_per_round=_middle(mine, lambda run: _per_round(run, "draft_ms"), _has_rounds),
        verify_ms_per_round=_middle(mine, lambda run: _per_round(run, "verify_ms"), _has_rounds),
        draft_overhead=_middle(mine, _draft_share, _has_rounds),
        host_share=_middle(mine, lambda run: run.stats.host_ms / run.decode_ms, _has_rounds),
    )


def _has_rounds(run: Run) -> bool:
    """Whether the run went on after its first token."""
    return run.stats.rounds > 0


def _middle(
    prompts: Sequence[list[Run]],
    figure: Callable[[Run], float],
    counts: Callable[[Run], bool] = lambda run: True,
) -> float | None:
    """Median over prompts of medians over runs, of the runs that count."""
    values = [[figure(run) for run in runs if counts(run)] for runs in prompts]
    medians = [statistics.median(of_prompt) for of_prompt in values if of_prompt]
    return statistics.median(medians) if medians else None


def _ratio(pairs: Pairs, speed: Callable[[Run], float]) -> float | None:
    """Median over prompts of how much faster the method is; prompts without a speed are left
    out (answers of one token have no speed after the first)."""
    ratios = []
    for plain, mine in pairs:
        base, own = (statistics.median(speed(run) for run in runs) for runs in (plain, mine))
        if base > 0 and own > 0:
            ratios.append(own / base)
    return statistics.median(ratios) if ratios else None


def _per_round(run: Run, field: str) -> float:
    total: float = getattr(run.stats, field)
    return total / run.stats.rounds


def _draft_share(run: Run) -> float:
    return (run.stats.draft_ms + run.draft_prefill_ms) / run.decode_ms


def _first_difference(plain: Sequence[Run], mine: Sequence[Run]) -> int | None:
    """Index of the first token in which any run differs from plain decoding's first run."""
    expected = plain[0].tokens
    for run in mine:
        if run.tokens != expected:
            same = zip(run.tokens, expected, strict=False)
            unequal = (i for i, (a, b) in enumerate(same) if a != b)
            return next(unequal, min(len(run.tokens), len(expected)))
    return None
