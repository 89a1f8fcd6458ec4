"""What generation hands out: one record per token while streaming, and the joined result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any


@dataclass(frozen=True)
class Record:
    """One token of the stream."""

    token: int
    text: str
    """Text that became final with this token; may be empty (half a character, a held-back stop
    string) or carry what earlier tokens held back."""
    from_draft: bool
    """True where the draft had proposed the token; it is the target's own choice all the same."""
    accepted: int
    """Tokens its round brought, bonus included (0 for the prefill's token)."""
    tree_nodes: int
    """Nodes of its round's tree, root excluded."""
    draft_ms: float
    """Drafting time of its round, on the round's first token; 0 on the others."""
    verify_ms: float
    """Verification time of its round, likewise; the prefill's for the very first token."""
    prepare_ms: float
    """Time that the draft took for its prompt, on the first token of the first drafted round."""
    source: str
    """Whose text it is: "target", or "draft" where no server answered and the draft went on alone,
    as was asked for; what comes behind is the draft's as well, whoever names it."""
    finish_reason: str | None
    """On the last record: "eos", "stop" (a stop string) or "length"."""


@dataclass(frozen=True)
class Stats:
    """Figures of one request. Times are the generator's own: a slow consumer is not counted."""

    tokens_per_s: float
    """Decoding speed: tokens after the first, per second after the first."""
    ttft_ms: float
    """Time to the first token: images, vision tower and prefill."""
    rounds: int
    """Verifications after the prefill."""
    accepted_length: float
    """Mean tokens per round, bonus included."""
    draft_ms: float
    verify_ms: float
    prepare_ms: float
    """The draft's prompt, taken in when drafting begins; 0 where it never does."""
    host_ms: float
    """Time after the first token that was spent outside engine calls."""
    total_ms: float


@dataclass(frozen=True)
class Generation:
    """A finished generation."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    prompt_tokens: int
    stats: Stats
    sizing: dict[str, Any] | None = None
    """What sizing has learnt so far: calibration, forecast, drift; None for other policies."""
    text_source: str = "target"
    """"target", or "draft" where a part of the text is the draft's own."""
    sources: tuple[tuple[str, int], ...] = ()
    """Runs of tokens by their source, in order."""
    remote: dict[str, Any] | None = None
    """What talking to servers took: endpoint, rounds, streamed rounds, reopens, retries, bytes_up,
    bytes_down, mode_rounds, round_trip_ms; None where the target ran here."""

    def as_json(self) -> dict[str, Any]:
        """Plain containers with the stable keys of ``generate --json``."""
        runs = [{"source": source, "tokens": count} for source, count in self.sources]
        return {**asdict(self), "token_ids": list(self.token_ids), "sources": runs}


def runs(records: Sequence[Record]) -> tuple[tuple[str, int], ...]:
    """Tokens by their source, in order."""
    return tuple(
        (source, len(list(same))) for source, same in groupby(record.source for record in records)
    )
