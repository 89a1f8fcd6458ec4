"""What requests taught about hybrid rounds and answers, kept over all requests of a loaded model.

By draft and temperature, and by question: to a draft a long description is another thing than a yes
or no.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field, replace

from edgespec.sizing import Feedback, Setting
from edgespec.sizing.rates import Rate
from edgespec_runtime.remote.link import Link

HALF_LIFE = 64.0
"""Rounds after which one counts half."""
FADE = 0.5 ** (1.0 / HALF_LIFE)
PRIOR, PRIOR_ROUNDS = 0.9, 3.0
"""Of what reaches a level, how much reaches the next, before anything is known, and its weight: as
a good draft has it, so that one is tried wherever a good one would pay."""
LENGTH, LENGTHS = 64, 64
"""Tokens of an answer before any ended; answers whose lengths are remembered."""
QUESTIONS = 64
"""That are remembered; those asked longest ago are forgotten first."""
BORROWED = 4.0
"""Rounds that what is known of all answers counts for in those to one question."""
LATELY, OTHER = 5, 1.7
"""Rounds that tell that a draft is better by now, and by how much more they must bring: three
deviations of so many rounds."""
LEVELS = 24
"""That are told apart."""


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
    general: Drafted | None = None
    """The same of answers to all questions, where this is of one."""
    _lately: deque[int] = field(default_factory=lambda: deque(maxlen=LATELY))

    def of_one(self) -> Drafted:
        """A record of answers to one question, which begins with what is known of all."""
        share = min(BORROWED / self.rounds, 1.0) if self.rounds else 1.0
        reach = Reach([n * share for n in self.reach.tried], [n * share for n in self.reach.kept])
        sums = {name: getattr(self, name) * share for name in SUMS}
        return replace(self, **sums, reach=reach, general=self, _lately=deque(maxlen=LATELY))

    def went_by(self, tokens: int) -> None:
        """So many tokens came, in whatever mode."""
        self.passed += tokens
        if self.general is not None:
            self.general.went_by(tokens)

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
        for name in SUMS:
            setattr(self, name, getattr(self, name) * share)
        self.tokens, self.reach = lately * self.rounds, Reach()


SUMS = ("rounds", "tokens", "own_ms", "away_ms", "draft_ms", "levels", "nodes")
"""Those of ``Drafted`` that fade."""


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
        self.local = Drafted()
        """Rounds of this device's own target."""
        self.allowance_ms = 0.0
        """Time that may still be lost on trying what looks worse."""
        self._drafted: dict[object, Drafted] = {}
        self._lengths: deque[int] = deque(maxlen=LENGTHS)
        self._asked: OrderedDict[tuple[int, ...], Asked] = OrderedDict()

    def asked(self, setting: Setting) -> Asked:
        """What is known of answers to the setting's question: robots ask the same few things again
        and again, and what is a long description to a draft is another thing than yes or no."""
        found = self._asked.get(setting.question)
        if found is None:
            found = self._asked[setting.question] = Asked(self._lengths)
            if len(self._asked) > QUESTIONS:
                self._asked.popitem(last=False)
        self._asked.move_to_end(setting.question)
        return found

    def drafted(self, setting: Setting) -> Drafted:
        """Hybrid rounds with the setting's drafter and temperature, with pictures or without, in
        answers to its question."""
        key = (setting.draft, round(setting.temperature, 1), setting.coupled, setting.images > 0)
        general = self._drafted.setdefault(key, Drafted())
        if not setting.question:
            return general
        records = self.asked(setting).drafted
        if key not in records:
            records[key] = general.of_one()
        return records[key]


class Asked:
    """Answers to one question."""

    def __init__(self, general: deque[int]) -> None:
        """``general``: lengths of all answers."""
        self.drafted: dict[object, Drafted] = {}
        self._general = general
        self._lengths: deque[int] = deque(maxlen=LENGTHS)

    def ended(self, tokens: int) -> None:
        """An answer was so long."""
        self._lengths.append(tokens)
        self._general.append(tokens)

    def left(self, emitted: int) -> float:
        """Tokens that an answer is expected to have still: as those before that were longer had;
        one longer than all of them has lasted, and is likely to last."""
        lengths = self._lengths if len(self._lengths) > 1 else self._general
        longer = [length - emitted for length in lengths if length > emitted]
        if longer:
            return sum(longer) / len(longer)
        return float(max(emitted, 1)) if lengths else float(max(LENGTH - emitted, LENGTH / 2))
