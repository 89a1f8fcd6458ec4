"""Tokens per millisecond that each way of answering brings here and now: measured, or predicted.

    hybrid  tau / (own + network + queue)     own: drafting not hidden, verification, bookkeeping
    remote  1 / interval                      interval: queue and compute of one row, as it comes

Of hybrid rounds a record is kept by draft; under another network it is scaled by a model of the
best depth there, so that it holds where the record was made and follows where it was not.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from edgespec.latency.curve import Floats
from edgespec.sizing import Feedback, Setting
from edgespec.sizing.rates import Rate
from edgespec_runtime.remote.link import Link

HALF_LIFE = 64.0
"""Rounds after which one counts half."""
FADE = 0.5 ** (1.0 / HALF_LIFE)
PRIOR, PRIOR_ROUNDS = 0.9, 3.0
"""Of what reaches a level, how much reaches the next, before anything is known, and its weight: as
a good draft has it, so that one is tried wherever a good one would pay."""
DOUBT, PACE = 0.3, 50.0
"""Of hybrid's rate: what it may be better than it was seen to be, over the root of the rounds and
growing with the logarithm of the tokens that have gone by (the upper confidence bound of bandits:
Auer et al., 2002); and the tokens at which that begins."""
LENGTH, LENGTHS = 64, 64
"""Tokens of an answer before any ended; answers whose lengths are remembered."""
LATELY, OTHER = 5, 1.7
"""Rounds that tell that a draft is better by now, and by how much more they must bring: three
deviations of so many rounds."""
SERVED = 16.0
"""Streamed tokens that the server's own figures are worth."""
NEAR = 0.15
"""Networks so near to each other call for the same trees."""
LEVELS = 24
"""That are told apart."""
REQUEST, NODE = 60, 4
"""Bytes of a verification request, without and per node."""


@dataclass
class Reach:
    """How deep the target follows a draft: chances from level to level, of the rounds whose trees
    went further than that (the product-limit estimate: Kaplan and Meier, 1958)."""

    tried: list[float] = field(default_factory=lambda: [0.0] * LEVELS)
    kept: list[float] = field(default_factory=lambda: [0.0] * LEVELS)

    def add(self, levels: int, accepted: int) -> None:
        """Takes a round: ``levels`` that could have been accepted on the way it took."""
        for level in range(LEVELS):
            self.tried[level] *= FADE
            self.kept[level] *= FADE
        for level in range(min(levels, accepted + 1, LEVELS)):
            self.tried[level] += 1.0
            self.kept[level] += level < accepted

    def tokens(self, most: int) -> list[float]:
        """Expected tokens of a round, the bonus included, by depth 0..most of its tree."""
        overall = (sum(self.kept) + PRIOR * PRIOR_ROUNDS) / (sum(self.tried) + PRIOR_ROUNDS)
        expected, reached = [1.0], 1.0
        for level in range(min(most, LEVELS)):
            kept, tried = self.kept[level], self.tried[level]
            reached *= (kept + overall * PRIOR_ROUNDS) / (tried + PRIOR_ROUNDS)
            expected.append(expected[-1] + reached)
        return expected


@dataclass
class Drafted:
    """What hybrid rounds with one draft were like: fading sums, and how deep it is followed."""

    reach: Reach = field(default_factory=Reach)
    rounds: float = 0.0
    tokens: float = 0.0
    own_ms: float = 0.0
    """Of whole rounds, network and queue left out."""
    away_ms: float = 0.0
    """Network and queue."""
    draft_ms: float = 0.0
    levels: float = 0.0
    nodes: float = 0.0
    prepare_ms: float = 0.0
    """Of the draft's prompt, the last time."""
    count: int = 0
    """Rounds ever,"""
    passed: int = 0
    """and tokens of all modes."""
    _lately: deque[int] = field(default_factory=lambda: deque(maxlen=LATELY))

    def add(self, feedback: Feedback, expected: float) -> None:
        """Takes a drafted round of hybrid operation, of which ``expected`` milliseconds were
        network and queue. What it was away beyond them was drafting ahead that took longer, and
        its own, up to as much as was its own anyway: more than that is a lost answer."""
        here = max(feedback.round_ms - feedback.away_ms, 0.0)
        beyond = min(max(feedback.away_ms - expected, 0.0), here)
        self.count += 1
        depth, could = _levels(feedback)
        new = {
            "rounds": 1.0,
            "tokens": len(feedback.tokens),
            "own_ms": here + beyond,
            "away_ms": min(feedback.away_ms, expected),
            "draft_ms": feedback.draft_ms,
            "levels": depth,
            "nodes": len(feedback.chosen),
        }
        for name, value in new.items():
            setattr(self, name, getattr(self, name) * FADE + value)
        if depth:
            self.reach.add(could, len(feedback.rows))
        if feedback.prepare_ms > 0:
            self.prepare_ms = feedback.prepare_ms
        self._lately.append(len(feedback.tokens))
        self._follow()

    def _follow(self) -> None:
        """Forgets most of the past where the last rounds brought far more tokens: another kind of
        text, or another draft. Where they brought fewer, the past just fades: bad luck must not
        end drafting, after which nothing would be seen of it."""
        lately = sum(self._lately) / len(self._lately)
        usual = self.tokens / self.rounds
        if len(self._lately) < LATELY or lately < usual * OTHER:
            return
        share = LATELY / self.rounds
        for name in ("rounds", "own_ms", "away_ms", "draft_ms", "levels", "nodes"):
            setattr(self, name, getattr(self, name) * share)
        self.tokens, self.reach = lately * self.rounds, Reach()


def _levels(feedback: Feedback) -> tuple[int, int]:
    """(depth of the round's tree, levels that could have been accepted along the way it took: one
    more than were, unless that way ended in a leaf)."""
    candidates, chosen = feedback.candidates, feedback.chosen
    if not chosen:
        return 0, 0
    depth = max(candidates.depths[index] for index in chosen)
    accepted = len(feedback.rows)
    end = chosen[feedback.rows[-1] - 1] if accepted else -1
    further = any(candidates.parents[index] == end for index in chosen)
    return depth, accepted + further


class RemoteExperience:
    """What the requests of one loaded model taught about its way to the target. Mutable."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.interval = Rate(HALF_LIFE)
        """Of streamed tokens: the server's work (as ``tokens``) over the time they took."""
        self._lengths: deque[int] = deque(maxlen=LENGTHS)
        self.local = Drafted()
        """Rounds of this device's own target."""
        self.allowance_ms = 0.0
        """Time that may still be lost on trying what looks worse."""
        self._drafted: dict[object, Drafted] = {}

    def ended(self, tokens: int) -> None:
        """An answer was so long."""
        self._lengths.append(tokens)

    def left(self, emitted: int) -> float:
        """Tokens that an answer is expected to have still: as those before that were longer had;
        one longer than all of them has lasted, and is likely to last."""
        longer = [length - emitted for length in self._lengths if length > emitted]
        if longer:
            return sum(longer) / len(longer)
        return float(max(emitted, 1)) if self._lengths else float(max(LENGTH - emitted, LENGTH / 2))

    def drafted(self, setting: Setting) -> Drafted:
        """Hybrid rounds with the setting's drafter and temperature, with pictures or without."""
        key = (setting.draft, round(setting.temperature, 1), setting.coupled, setting.images > 0)
        return self._drafted.setdefault(key, Drafted())


class Outlook:
    """One request's view. ``levels`` is the most that its policy drafts; ``adapts``: whether the
    policy sizes trees by the time a round takes."""

    def __init__(
        self,
        experience: RemoteExperience,
        setting: Setting,
        *,
        levels: int,
        adapts: bool,
    ) -> None:
        self._link = experience.link
        self._drafted = experience.drafted(setting)
        self._interval = experience.interval
        self._levels = max(min(levels, LEVELS), 1)
        self._adapts = adapts
        self._costs = setting.profile.costs if setting.profile else None
        self._prompt = (setting.draft_prompt_tokens, setting.images)

    def stream(self) -> float:
        """Of the server by itself; 0 where nothing is known of it."""
        served = self._link.compute(1) + self._link.queue.mean
        if served > 0:  # tokens that had come before they were asked for took no time
            known, expected = self._interval, SERVED * served
            served *= max((known.ms + expected) / (known.tokens + expected), 1.0)
        return 1.0 / served if served > 0 else 0.0

    def hybrid(self) -> float:
        """Of drafting here and verifying there; more than it looks like, the fewer rounds it is
        known from: a draft that had no luck at first must not be given up for that."""
        seen = self._drafted
        doubt = math.sqrt((1.0 + math.log1p(seen.passed / PACE)) / (seen.count + 2.0))
        return self._hybrid() * (1.0 + DOUBT * doubt)

    def _hybrid(self) -> float:
        seen, away = self._drafted, self.away
        if not seen.rounds:
            return self._model(away)
        tokens, own = seen.tokens / seen.rounds, seen.own_ms / seen.rounds
        as_it_was = tokens / max(own + away, 1e-6)
        then = seen.away_ms / seen.rounds
        if not self._adapts or abs(away - then) <= NEAR * then:
            return as_it_was
        measured = tokens / max(own + then, 1e-6)
        scaled = measured * self._model(away) / max(self._model(then), 1e-9)
        return max(as_it_was, scaled)

    @property
    def away(self) -> float:
        """Network and queue of a round, milliseconds."""
        return self._away(self._nodes)

    @property
    def tokens(self) -> float:
        """Of a hybrid round."""
        seen = self._drafted
        return seen.tokens / seen.rounds if seen.rounds else max(seen.reach.tokens(self._levels))

    @property
    def _nodes(self) -> float:
        """Of a tree, as they are here."""
        seen = self._drafted
        return seen.nodes / seen.rounds if seen.rounds else float(self._levels)

    def _away(self, nodes: float) -> float:
        return self._link.network(int(REQUEST + NODE * nodes)) + self._link.queue.mean

    def _model(self, away: float) -> float:
        """Tokens per millisecond with the best depth of tree, ``away`` being network and queue."""
        tokens = np.array(self._drafted.reach.tokens(self._levels))
        return float((tokens / np.maximum(self._own() + away, 1e-6)).max())

    def _own(self) -> Floats:
        """A round's own time by the depth of its tree, [levels + 1]."""
        seen, depths = self._drafted, np.arange(self._levels + 1)
        if not seen.rounds or not seen.levels:
            drafting = np.array([self._draft(depth) for depth in depths.tolist()])
            return drafting + self._link.computes(self._levels + 1)[1:]
        levels, nodes = seen.levels / seen.rounds, seen.nodes / seen.rounds
        rows = np.rint(depths * nodes / levels).astype(int) + 1
        work = self._link.computes(max(int(rows[-1]), round(nodes) + 1))
        own = seen.own_ms / seen.rounds + (depths - levels) * seen.draft_ms / seen.levels
        ms: Floats = np.maximum(own + work[rows] - work[round(nodes) + 1], 0.0)
        return ms

    def _draft(self, depth: int) -> float:
        """Drafting so deep, by this device's profile; unknown counts as nothing, so that it is
        tried."""
        costs = self._costs
        if costs is None or not depth:
            return 0.0
        total = costs.commit_ms + costs.host_round_ms
        context = self._prompt[0]
        if costs.chain_first is not None and costs.chain_next is not None:
            calls = -(-depth // costs.chain_steps)
            first, further = costs.chain_first.at(1, context), costs.chain_next.at(1, context)
        elif costs.draft_first is not None and costs.draft_step is not None:
            calls = depth
            first, further = costs.draft_first.at(1, context), costs.draft_step.at(1, context)
        else:
            return total
        return total + first + (calls - 1) * further

    def take_up(self, unseen: int, prepared: bool) -> float:
        """Milliseconds until the draft is where the text is: its prompt, where it was not taken in
        yet, and ``unseen`` tokens."""
        costs, total = self._costs, 0.0
        first = (costs.draft_first or costs.chain_first) if costs else None
        if first is not None:
            total += first.at(max(unseen, 1)) - first.at(1)
        if prepared:
            return total
        if self._drafted.prepare_ms:
            return total + self._drafted.prepare_ms
        tokens, pictures = self._prompt
        if costs and costs.draft_prefill and tokens:
            total += costs.draft_prefill.at(tokens)
        if costs and costs.draft_vision and pictures:
            total += costs.draft_vision.at(pictures)
        return total

    def reopen(self) -> float:
        """Milliseconds to leave a stream: the session is opened anew behind the last token that was
        taken, which the server has in its cache."""
        return self._link.network(REQUEST) + (self._link.reopen.mean or self._link.compute(1))
