"""Measuring: plain decoding and every method in turn, on one engine, turn by turn.

Sides are interleaved so that a machine that slows down slows all of them, and their order moves
with every repeat so that none always runs behind the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter

from edgespec.errors import PromptError
from edgespec.sizing import Setting
from edgespec_runtime.bench.data import Row
from edgespec_runtime.bench.methods import PLAIN, Method
from edgespec_runtime.bench.proposals import Proposals, proposals
from edgespec_runtime.decoder import Round
from edgespec_runtime.model import Model
from edgespec_runtime.records import Record, Stats
from edgespec_runtime.template import Message

DEFAULT = "default"


@dataclass(frozen=True)
class Settings:
    """What all runs of a benchmark share."""

    policies: tuple[str, ...] = (DEFAULT,)
    """Tree policies as ``--policy`` spells them; "default" is the runtime's."""
    temperatures: tuple[float, ...] = (0.0,)
    repeats: int = 3
    """Counted runs of every side, after one that warms up."""
    max_new_tokens: int | None = None
    seed: int = 0
    coupled: bool = True


@dataclass(frozen=True)
class Side:
    """One way of decoding under one policy; plain decoding has none."""

    method: Method
    policy: str = ""


BASELINE = Side(PLAIN)


@dataclass(frozen=True)
class Run:
    """One generation. Times in milliseconds."""

    text: str
    tokens: tuple[int, ...]
    rounds: tuple[Record, ...]
    """The first record of every round after the prefill: it carries the round's figures."""
    finish_reason: str
    prompt_tokens: int
    stats: Stats
    first_ms: float
    """From the call to the first token: pictures, vision tower, prefill."""
    total_ms: float
    """From the call to the last token."""
    setting: Setting = field(default_factory=Setting)
    """What the policy knew of the request."""
    proposals: tuple[Proposals, ...] = ()
    """What the draft proposed, by round after the prefill."""
    named: bool = False
    """Whether verification told the target's token at every node, as greedy decoding does."""

    @property
    def decode_ms(self) -> float:
        """Time after the first token, the draft's prefill included."""
        return self.stats.total_ms - self.stats.ttft_ms

    @property
    def draft_prefill_ms(self) -> float:
        """The draft's own prefill, in the first round that drafts; 0 where none does."""
        return self.stats.prepare_ms


@dataclass(frozen=True)
class Identity:
    """What ran: a device's profile of other models tells nothing of it."""

    target: str = ""
    """Fingerprint of the target."""
    draft: str = ""
    """Of the draft; empty where the bundle has none."""
    draft_positions: int = 0
    """The draft's context length."""

    @staticmethod
    def of(model: Model) -> Identity:
        """That of a loaded bundle."""
        models, draft = model.manifest.models, model.manifest.graph("draft")
        return Identity(
            target=models["target"].fingerprint,
            draft=models["draft"].fingerprint if "draft" in models else "",
            draft_positions=int(draft.meta["max_positions"]) if draft else 0,
        )


@dataclass(frozen=True)
class Turn:
    """All counted runs of one turn of a conversation, or why it could not be run."""

    bundle: str
    row: Row
    temperature: float
    seed: int
    number: int = 1
    """Which turn of the conversation."""
    runs: dict[Side, list[Run]] = field(default_factory=dict)
    """By side, plain decoding first."""
    skipped: str = ""
    identity: Identity = field(default_factory=Identity)


Listener = Callable[[Turn, Side, int, Run], None]
"""Called with every counted run as soon as it is over, and the number of its repeat from 1."""


def sides_of(methods: Sequence[Method], settings: Settings) -> list[Side]:
    """Plain decoding and every method under every policy."""
    return [BASELINE, *(Side(m, policy) for m in methods for policy in settings.policies)]


def measure(
    model: Model,
    bundle: str,
    methods: Sequence[Method],
    rows: Sequence[Row],
    settings: Settings,
    listener: Listener = lambda turn, side, repeat, run: None,
) -> Iterator[Turn]:
    """Runs every row, turn by turn; yields each turn when all its runs are over.

    A turn whose prompt does not fit the context, and those after it, are yielded as skipped.
    """
    sides = sides_of(methods, settings)
    for temperature in settings.temperatures:
        for index, row in enumerate(rows):
            # One seed for all sides of a row, another one for the next: noise must not repeat.
            start = Turn(
                bundle, row, temperature, settings.seed + index, identity=Identity.of(model)
            )
            yield from _converse(model, start, sides, settings, listener)


def _converse(
    model: Model, start: Turn, sides: Sequence[Side], settings: Settings, listener: Listener
) -> Iterator[Turn]:
    """The turns of one row; all sides go on from the target's own earlier answers."""
    row, history = start.row, list[Message]()
    for number, said in enumerate(row.turns, start=1):
        history.append(_message("user", said, len(row.images) if number == 1 else 0))
        turn = replace(start, number=number, runs={side: [] for side in sides})
        try:
            answer = _run_turn(model, turn, history, settings, listener)
        except PromptError as error:
            for left in range(number, len(row.turns) + 1):
                yield replace(start, number=left, skipped=str(error))
            return
        yield turn
        history.append(_message("assistant", answer))


def _run_turn(
    model: Model, turn: Turn, history: list[Message], settings: Settings, listener: Listener
) -> str:
    """Fills the turn's runs; returns what plain decoding answered."""
    sides, answer = list(turn.runs), ""
    for repeat in range(settings.repeats + 1):
        shift = repeat % len(sides)
        for side in sides[shift:] + sides[:shift]:
            run = _run(model, turn, side, history, settings)
            if repeat:
                turn.runs[side].append(run)
                listener(turn, side, repeat, run)
            elif side is BASELINE:
                answer = run.text
    return answer


def _run(model: Model, turn: Turn, side: Side, history: list[Message], settings: Settings) -> Run:
    """One generation; its clock starts before the pictures are opened."""
    started = perf_counter()
    request = model.stream(
        list(turn.row.images),
        history,
        draft=side.method.draft,
        policy=side.policy if side.policy not in ("", DEFAULT) else None,
        max_new_tokens=settings.max_new_tokens,
        temperature=turn.temperature,
        coupled=settings.coupled,
        seed=turn.seed,
    )
    rounds: list[Round] = []
    request.listen(rounds.append)
    records, arrivals = [], list[float]()
    for record in request:
        records.append(record)
        arrivals.append(perf_counter())
    tokens = tuple(record.token for record in records)
    return Run(
        text="".join(record.text for record in records),
        tokens=tokens,
        rounds=_rounds(records),
        finish_reason=records[-1].finish_reason or "",
        prompt_tokens=request.prompt_tokens,
        stats=request.stats,
        first_ms=(arrivals[0] - started) * 1e3,
        total_ms=(arrivals[-1] - started) * 1e3,
        setting=request.setting,
        proposals=proposals(rounds, tokens),
        named=all(r.feedback.named is not None for r in rounds if r.feedback is not None),
    )


def _rounds(records: Sequence[Record]) -> tuple[Record, ...]:
    heads, index = [], 1  # the first record is the prefill's
    while index < len(records):
        heads.append(records[index])
        index += records[index].accepted
    return tuple(heads)


def _message(role: str, text: str, images: int = 0) -> Message:
    parts: list[dict[str, str]] = [{"type": "image"}] * images
    return {"role": role, "content": [*parts, {"type": "text", "text": text}]}
