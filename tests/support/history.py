"""Judges what clients committed, against an oracle that never saw a network.

A client records every round that it commits. The oracle is plain local decoding of the same bundle,
prompt and seed. No I/O, no clock.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Commit:
    """One answer that a client took as the target's: of an open (round 0) or of a round."""

    answer: str
    """Which request it belongs to; every request is one answer, however often it is opened."""
    session: str
    epoch: int
    round: int
    committed_len: int
    """Tokens of the answer with this commit, as the protocol counts them."""
    tokens: Tokens
    began_s: float = 0.0
    """When the client asked, on a monotonic clock."""
    ended_s: float = 0.0


@dataclass(frozen=True)
class Told:
    """What a user saw of one answer."""

    question: str
    """Key of the oracle's answer."""
    tokens: Tokens
    ended: bool = True
    """False where the run stopped in the middle of it."""


@dataclass
class Findings:
    """Tokens counted by what is wrong with them, and a sentence for each answer concerned."""

    tokens: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    two_answers: int = 0
    """Rounds, and places in an answer, for which two different answers were accepted."""
    notes: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.lost or self.doubled or self.wrong or self.two_answers or self.notes)


def check(
    commits: Iterable[Commit], told: Mapping[str, Told], oracle: Mapping[str, Tokens]
) -> Findings:
    """Compares three accounts of every answer: what its rounds committed, what its user was told,
    and what the oracle says. ``told`` is by answer, ``oracle`` by question."""
    found = Findings()
    rounds: dict[str, list[Commit]] = defaultdict(list)
    for commit in commits:
        rounds[commit.answer].append(commit)
    for answer in sorted(told.keys() | rounds.keys()):
        own = rounds.get(answer, [])
        if answer not in told:
            found.notes.append(f"{answer}: rounds were committed, but nobody was told")
            continue
        _compare(answer, told[answer], oracle[told[answer].question], found)
        _agree(answer, own, told[answer], found)
        _one_answer(answer, own, found)
    return found


def _compare(answer: str, told: Told, right: Tokens, found: Findings) -> None:
    """The user's text against the oracle's."""
    found.tokens += len(told.tokens)
    if not told.ended:
        right = right[: len(told.tokens)]
    if told.tokens == right:
        return
    before = found.lost, found.doubled, found.wrong
    matcher = SequenceMatcher(None, right, told.tokens, autojunk=False)
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind == "delete":
            found.lost += b - a
        elif kind == "insert":
            found.doubled += d - c
        elif kind == "replace":
            found.wrong += max(b - a, d - c)
    counts = (found.lost - before[0], found.doubled - before[1], found.wrong - before[2])
    found.notes.append(
        f"{answer}: {counts[0]} lost, {counts[1]} doubled, {counts[2]} wrong from token "
        f"{_first_difference(told.tokens, right)} on"
    )


def _agree(answer: str, commits: Sequence[Commit], told: Told, found: Findings) -> None:
    """Every round's own arithmetic, and the rounds in order against the user's text. A stop rule
    may cut the last round."""
    if not commits:
        return
    held: list[int] = []
    for commit in commits:
        gap = commit.committed_len - len(commit.tokens) - len(held)
        if gap:
            found.lost += max(gap, 0)
            found.doubled += max(-gap, 0)
            found.notes.append(
                f"{answer}: round {commit.round} of epoch {commit.epoch} begins at token "
                f"{commit.committed_len - len(commit.tokens)}, the client held {len(held)}"
            )
        held += commit.tokens
    if tuple(held[: len(told.tokens)]) != told.tokens:
        found.notes.append(f"{answer}: the user was told other tokens than rounds committed")


def _one_answer(answer: str, commits: Sequence[Commit], found: Findings) -> None:
    """A round is answered once, and so is a place in the text, whatever the epoch."""
    rounds: dict[tuple[str, int, int], Tokens] = {}
    places: dict[int, int] = {}
    for commit in commits:
        key = (commit.session, commit.epoch, commit.round)
        if rounds.setdefault(key, commit.tokens) != commit.tokens:
            found.two_answers += 1
            found.notes.append(
                f"{answer}: round {commit.round} of epoch {commit.epoch} has two answers"
            )
        start = commit.committed_len - len(commit.tokens)
        for place, token in enumerate(commit.tokens, start):
            if places.setdefault(place, token) != token:
                found.two_answers += 1
                found.notes.append(f"{answer}: token {place} was committed twice, differently")


def _first_difference(told: Sequence[int], right: Sequence[int]) -> int:
    pairs = zip(told, right, strict=False)
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    return min(len(told), len(right)) if same is None else same


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` of ``values`` do not exceed; 0 without values."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0
