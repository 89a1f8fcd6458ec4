"""What every tree policy answers, and what it is told.

A *policy* is frozen settings. ``start`` gives the *sizer* of one request, which is asked three
times a round and told once what came of it:

    growth = sizer.begin(root)                     draft at all? a chain, or step by step?
    beam   = sizer.beam(candidates, level, root)   after every engine call: where to go on
    chosen = sizer.choose(candidates)              which nodes to verify
    sizer.learn(feedback)                          verdict and times

The decoder does not know which policy it runs. A tree decides how fast, never what: whatever a
sizer answers, the text is the target's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from edgespec.errors import ConfigError
from edgespec.tree import Candidates

if TYPE_CHECKING:
    from edgespec.latency import Curve, DeviceProfile
    from edgespec.sizing.budgets import Budget
    from edgespec.sizing.experience import Experience


class Growth(Enum):
    """How a round's candidates are grown."""

    NONE = "none"
    """Not at all: n = 0, the draft is not asked."""
    STEPS = "steps"
    """Level by level; ``beam`` names the nodes that the next step expands."""
    CHAIN = "chain"
    """Segments of the chain graph, several levels per engine call, each level fed with the best
    token of the one before; ``beam`` is asked after every segment and names its tip, or nothing.
    Where a draft has no chain graph the same is grown step by step."""


@dataclass(frozen=True)
class Root:
    """Where a round stands before it drafts."""

    depth_left: int
    """How many levels could still be accepted before the length limit."""
    context: int
    """Committed tokens, the prompt's included: the target's cache rows."""
    unseen: int
    """Committed rows that the draft has to take in first; its prompt's not counted."""
    prepared: bool
    """Whether the draft has taken in its prompt; if not, drafting now costs that as well."""
    emitted: int
    """Tokens of the answer so far."""
    ready: int = 0
    """Levels of candidates that are there already, grown while the last verification was under way:
    no call is needed to have them. Above 0, nothing is unseen."""


@dataclass(frozen=True)
class Feedback:
    """What a round brought."""

    root: Root
    growth: Growth
    calls: tuple[int, ...]
    """Rows (STEPS: width of the beam) of every draft call of the round, the root's first where
    nothing was ready."""
    candidates: Candidates
    chosen: Sequence[int]
    """Candidate of tree row r at ``chosen[r - 1]``."""
    rows: Sequence[int]
    """Accepted tree rows."""
    named: Sequence[int] | None
    """The target's token at every tree row, root first, where all are known (greedy decoding);
    None where only the visited rows' are."""
    tokens: Sequence[int]
    """The target's tokens: those of the accepted rows, then the bonus token."""
    emitted: int
    """How many of them were emitted: fewer where a stop rule fired among them."""
    prepare_ms: float
    draft_ms: float
    verify_ms: float
    round_ms: float
    """All of the round, this side's bookkeeping included; excludes ``prepare_ms``."""
    away_ms: float = 0.0
    """Of ``verify_ms``, what was no computing of the target's: network, queueing."""


@dataclass(frozen=True)
class Setting:
    """What a policy may know of a request when it starts."""

    prompt_tokens: int = 0
    draft_prompt_tokens: int = 0
    images: int = 0
    max_new_tokens: int = 512
    temperature: float = 0.0
    coupled: bool = False
    """Whether the draft ranks its candidates with the target's own noise (DESIGN, decision 1)."""
    eos: frozenset[int] = frozenset()
    """Tokens that end an answer: what is drafted below them is worth nothing."""
    chain_steps: int = 0
    """Levels of one chain call; 0 where the draft has no chain graph."""
    draft: str = "none"
    """Name of the drafter: what is learnt of one says nothing of another."""
    question: tuple[int, ...] = ()
    """The prompt's tokens, in any order: answers to similar questions tend to be alike."""
    profile: DeviceProfile | None = None
    remote: Curve | None = None
    """What a verification takes a target that runs elsewhere, by rows and context, the way there
    left out; None: as the profile says of this device."""
    away_ms: float = 0.0
    """What the way to it takes, as far as it was measured beforehand."""
    budget: Budget | None = None
    experience: Experience | None = None
    """What earlier requests taught; a sizer adds to it."""


class Sizer(Protocol):
    """A policy at work in one request."""

    @property
    def policy(self) -> Policy:
        """The settings it works by."""

    @property
    def floor(self) -> float:
        """Of a path's probability by the draft's own word: what is below it will hardly be verified
        in the round begun last, so drafters that find the likeliest paths first stop there."""

    def begin(self, root: Root) -> Growth:
        """Asked before drafting."""

    def beam(self, candidates: Candidates, level: int, root: Root) -> list[int]:
        """Candidate indices to expand next, ``level`` levels being grown; empty ends the growth."""

    def choose(self, candidates: Candidates) -> list[int]:
        """Candidate indices to verify, in tree order and closed under ancestors; may be empty."""

    def learn(self, feedback: Feedback) -> None:
        """Told at the end of every round."""

    def finish(self, emitted: int, ended: bool) -> None:
        """Told at the end of the answer: its tokens, and whether it ended by itself."""


class Policy(Protocol):
    """The contract of every tree policy."""

    @property
    def top_k(self) -> int:
        """Children proposed below every expanded node."""

    @property
    def levels(self) -> int:
        """The most levels of one tree."""

    @property
    def max_nodes(self) -> int:
        """The most nodes a tree may have: verification buffers and the KV cache are sized by it."""

    @property
    def max_drafted(self) -> int:
        """The most nodes expanded in one round: the draft's KV cache is sized by it."""

    def start(self, setting: Setting) -> Sizer:
        """The sizer of one request. Raises ConfigError where the policy needs what is not there
        (a profile, say)."""


class Steady:
    """A sizer without memory, from which simple policies derive: it neither learns nor finishes."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    @property
    def floor(self) -> float:
        """Any path may be verified."""
        return 0.0

    def learn(self, feedback: Feedback) -> None:
        """Nothing to remember."""

    def finish(self, emitted: int, ended: bool) -> None:
        """Nothing to remember."""


def newest(candidates: Candidates, level: int) -> list[int]:
    """Indices of the candidates at depth ``level``, the arena's tail, ascending."""
    # Walking back from the tail keeps this O(level size).
    index = len(candidates)
    while index and candidates.depths[index - 1] == level:
        index -= 1
    return list(range(index, len(candidates)))


def check_positive(policy: object, *names: str) -> None:
    """Raises ConfigError for a setting that is no integer >= 1."""
    for name in names:
        value = getattr(policy, name)
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} is {value!r}; it must be an integer >= 1")


def check_probability(policy: object, *names: str) -> None:
    """Raises ConfigError for a setting that is not in [0, 1)."""
    for name in names:
        value = getattr(policy, name)
        if not 0.0 <= value < 1.0:
            raise ConfigError(f"{name} is {value!r}; it must be in [0, 1)")
