"""Recorded runs as answers: the target's tokens, and what the draft proposed at every position.

The text depends on no tree, so all runs of one prompt tell of one answer, whatever policy they ran.
Position p is the index of the answer's token behind which a proposal was made; it was recorded at a
depth, 0 where the token was a round's root.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from edgespec.errors import InputError
from edgespec_runtime.bench.methods import NGRAM, PLAIN, SUFFIX
from edgespec_runtime.bench.proposals import Proposal
from edgespec_runtime.simulate.lines import RECORD, Line

ENOUGH = 50
"""Records from which an unknown proposal is drawn, where there are so many."""

ByDepth = dict[int, Proposal]


@dataclass(frozen=True)
class Group:
    """What answers must share to be summed up, or drawn from, together."""

    domain: str
    task: str
    bundle: str
    method: str
    compressor: str
    temperature: float


@dataclass(frozen=True)
class Answer:
    """One answer of the target, and what is known of the draft along it."""

    group: Group
    line: Line
    """The first of its runs: prompt, limits and tokens are those of all."""
    proposals: Mapping[int, ByDepth]
    """By position and depth."""

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.line.tokens


@dataclass
class Pool:
    """All proposals of one group, from which unknown ones are drawn."""

    by_depth: dict[int, list[Proposal]] = field(default_factory=dict)
    astray: int = 0
    """Expanded nodes off the path that the target answered,"""
    agreed: int = 0
    """and how often it named one of their children."""
    top_k: int = 0
    """Children known of every node; 0 where nothing was drafted."""
    _near: dict[int, list[Proposal]] = field(default_factory=dict)

    def near(self, depth: int) -> list[Proposal]:
        """Records of the nearest depths, whole depths at a time, until they are ``ENOUGH``."""
        found = self._near.get(depth)
        if found is None:
            found = self._near[depth] = []
            for other in sorted(self.by_depth, key=lambda known: (abs(known - depth), known)):
                found += self.by_depth[other]
                if len(found) >= ENOUGH:
                    break
        return found

    @property
    def loyalty(self) -> float:
        """How much rarer the target names a child of a node off the path than of one on it: the
        chance that a proposal drawn for such a node keeps its named child."""
        if not self.astray:
            return 1.0
        known = [one.rank >= 0 for records in self.by_depth.values() for one in records]
        on_path = sum(known) / len(known)
        return min(self.agreed / self.astray / on_path, 1.0) if on_path else 0.0


def gather(lines: Sequence[Line]) -> tuple[list[Answer], dict[Group, Pool]]:
    """Answers in the order of their first runs, and the pools of their groups.

    Plain runs and those with n-grams are left out (n-grams propose from the prompt's text, which
    traces do not hold). Raises InputError where nothing is left, and for a group of which nothing
    was drafted.
    """
    runs: dict[tuple[Group, str, int, int, tuple[int, ...]], list[Line]] = {}
    for line in lines:
        if replayable(line):
            key = (group_of(line), line.id, line.turn, line.seed, line.tokens)
            runs.setdefault(key, []).append(line)
    if not runs:
        raise InputError(
            "the traces hold no run of a model's draft: plain decoding and n-grams cannot be "
            f"replayed; {RECORD}"
        )
    answers, pools = [], dict[Group, Pool]()
    for key, same in runs.items():
        answer = Answer(key[0], same[0], _merged(same))
        answers.append(answer)
        _add(pools.setdefault(answer.group, Pool()), answer, same)
    _check(answers, pools)
    return answers, pools


def replayable(line: Line) -> bool:
    """Whether a model alone drafted in this run."""
    return line.method not in (PLAIN.name, NGRAM) and not line.method.endswith(SUFFIX)


def group_of(line: Line) -> Group:
    return Group(
        line.domain, line.task, line.bundle, line.method, line.compressor, line.temperature
    )


def _merged(lines: Iterable[Line]) -> dict[int, ByDepth]:
    """Where several runs saw a position at one depth, the first one's proposal counts."""
    found: dict[int, ByDepth] = {}
    for line in lines:
        root = 0
        for accepted, nodes in zip(line.accepted, line.path, strict=True):
            for depth, (rank, *logprobs) in enumerate(nodes):
                at = found.setdefault(root + depth, {})
                at.setdefault(depth, Proposal(rank, tuple(logprobs)))
            root += accepted
    return found


def _add(pool: Pool, answer: Answer, lines: Sequence[Line]) -> None:
    for by_depth in answer.proposals.values():
        for depth, proposal in by_depth.items():
            pool.by_depth.setdefault(depth, []).append(proposal)
            count = len(proposal.logprobs)
            pool.top_k = min(pool.top_k or count, count)
    for line in lines:
        pool.astray += sum(pair[0] for pair in line.astray)
        pool.agreed += sum(pair[1] for pair in line.astray)


def _check(answers: Sequence[Answer], pools: Mapping[Group, Pool]) -> None:
    for answer in answers:
        if len(answer.tokens) > 1 and not pools[answer.group].by_depth:
            group = answer.group
            raise InputError(
                f"nothing was drafted in the runs of {group.method} on '{group.task}' of "
                f"{group.domain}: policy '{answer.line.policy}' never asked the draft; {RECORD}"
            )
