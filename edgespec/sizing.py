"""How a tree is grown and cut: policies behind one contract.

A policy is asked twice a round: before every draft step, which candidates to expand next
(``beam``), and after growing, which of them to verify (``choose``). Policies are frozen settings;
what one must remember between rounds it keeps in the object ``start`` returns. Sizing by measured
cost will be one more policy here; the decoder does not know which one it runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Protocol

from edgespec.errors import ConfigError
from edgespec.tree import Candidates


class Policy(Protocol):
    """The contract of every tree policy."""

    @property
    def top_k(self) -> int:
        """Children proposed below every expanded node."""

    @property
    def chain(self) -> bool:
        """Whether every draft step expands just the best child of the one before: such a chain can
        be grown in one engine call, without asking ``beam``."""

    @property
    def levels(self) -> int:
        """The most draft steps of one round."""

    @property
    def max_nodes(self) -> int:
        """The most nodes a tree may have: verification buffers and the KV cache are sized by it."""

    @property
    def max_drafted(self) -> int:
        """The most nodes expanded in one round: the draft's KV cache is sized by it."""

    def beam(self, candidates: Candidates, level: int, depth_left: int) -> list[int]:
        """Candidate indices to expand in draft step ``level`` (1 = below the root's children).

        An empty list ends the growth. ``depth_left`` is how many more levels could be accepted
        before the length limit.
        """

    def choose(self, candidates: Candidates) -> list[int]:
        """Candidate indices to verify, in tree order and closed under ancestors; may be empty."""


@dataclass(frozen=True)
class Eagle2:
    """EAGLE-2's dynamic tree: a beam of ``top_k`` per level, ``depth`` levels, best ``nodes`` kept.

    Source: Li et al. 2024 (EAGLE-2); scores are cumulative float32 log-softmax and ties are
    ordered, so the cut is always closed under ancestors. ``min_prob`` is an optional confidence
    floor: nodes whose path probability is below it are neither expanded nor verified (0 = the
    paper's rule). ``beam_width`` expands fewer nodes per level than ``top_k`` (0 = the paper's
    rule); 1 is a chain with siblings, the cheapest shape where draft steps are dear.
    """

    nodes: int = 30
    depth: int = 6
    top_k: int = 4
    min_prob: float = 0.0
    beam_width: int = 0

    def __post_init__(self) -> None:
        _check_positive(self, "nodes", "depth", "top_k")
        _check_probability(self.min_prob)
        if not isinstance(self.beam_width, int) or self.beam_width < 0:
            raise ConfigError(f"beam_width is {self.beam_width!r}; it must be an integer >= 0")

    @property
    def width(self) -> int:
        """Nodes expanded per level."""
        return self.beam_width or self.top_k

    @property
    def chain(self) -> bool:
        return self.width == 1

    @property
    def levels(self) -> int:
        return self.depth

    @property
    def max_nodes(self) -> int:
        return self.nodes

    @property
    def max_drafted(self) -> int:
        return self.width * (self.depth - 1)

    def beam(self, candidates: Candidates, level: int, depth_left: int) -> list[int]:
        if level >= min(self.depth, depth_left):
            return []
        floor = _log(self.min_prob)
        newest: list[int] = []
        # The newest level is the arena's tail; walking back from it keeps this O(level size).
        for index in range(len(candidates) - 1, -1, -1):
            if candidates.depths[index] != level:
                break
            if candidates.scores[index] > floor:
                newest.append(index)
        return candidates.ranked(newest)[: self.width]

    def choose(self, candidates: Candidates) -> list[int]:
        return _best(candidates, self.nodes, _log(self.min_prob))


@dataclass(frozen=True)
class RollingBestN:
    """Spec-LLaVA's rolling tree: all proposals compete, the best ``nodes`` stay, those expand.

    Source: Spec-LLaVA (arXiv 2509.11961) as its authors' code does it, with two repairs: cumulative
    log-softmax in place of raw logits, and an ancestor-closed cut. ``width`` bounds how many kept
    nodes one draft step expands (best first; the authors expand all of them).
    """

    nodes: int = 30
    steps: int = 6
    top_k: int = 4
    width: int = 8
    min_prob: float = 0.0

    def __post_init__(self) -> None:
        _check_positive(self, "nodes", "steps", "top_k", "width")
        _check_probability(self.min_prob)

    @property
    def chain(self) -> bool:
        return False  # even one node a step may be taken from another branch

    @property
    def levels(self) -> int:
        return self.steps

    @property
    def max_nodes(self) -> int:
        return self.nodes

    @property
    def max_drafted(self) -> int:
        return self.width * (self.steps - 1)

    def beam(self, candidates: Candidates, level: int, depth_left: int) -> list[int]:
        if level >= self.steps:
            return []
        parents = set(candidates.parents)
        kept = _best(candidates, self.nodes, _log(self.min_prob))
        fresh = [i for i in kept if i not in parents and candidates.depths[i] < depth_left]
        return fresh[: self.width]

    def choose(self, candidates: Candidates) -> list[int]:
        return _best(candidates, self.nodes, _log(self.min_prob))


def _best(candidates: Candidates, nodes: int, floor: float) -> list[int]:
    ranked = candidates.ranked()[:nodes]
    return [i for i in ranked if candidates.scores[i] > floor] if floor > -math.inf else ranked


def _log(probability: float) -> float:
    return math.log(probability) if probability > 0 else -math.inf


def _check_positive(policy: object, *names: str) -> None:
    for name in names:
        value = getattr(policy, name)
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} is {value!r}; it must be an integer >= 1")


def _check_probability(value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise ConfigError(f"min_prob is {value!r}; it must be in [0, 1)")


POLICIES: Mapping[str, type[Eagle2] | type[RollingBestN]] = {
    "eagle2": Eagle2,
    "rolling": RollingBestN,
}


def parse_policy(text: str) -> Policy:
    """``"eagle2"`` or ``"eagle2:nodes=16,depth=8,top_k=2"`` -> a policy. Raises ConfigError."""
    name, _, settings = text.partition(":")
    kind = POLICIES.get(name)
    if kind is None:
        raise ConfigError(f"unknown policy '{name}'; there are: {', '.join(sorted(POLICIES))}")
    types: dict[str, Callable[[str], float]] = {
        f.name: (float if f.type == "float" else int) for f in fields(kind)
    }
    values: dict[str, float] = {}
    for item in filter(None, settings.split(",")):
        key, equals, value = item.partition("=")
        if key not in types or not equals:
            raise ConfigError(
                f"policy '{name}' has no setting '{item}'; "
                f"write KEY=VALUE with one of: {', '.join(types)}"
            )
        try:
            values[key] = types[key](value)
        except ValueError:
            raise ConfigError(f"policy setting {key}={value!r} is not a number") from None
    return kind(**values)  # type: ignore[arg-type]
