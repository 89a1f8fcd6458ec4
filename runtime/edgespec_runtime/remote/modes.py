"""Hybrid or remote-only, chosen by measurement and chosen again as the network changes.

A sizer around a policy's own. In remote mode it has nothing drafted: the verifier hands out what
the server streams, and the draft costs nothing. The decoder knows of none of this.

A mode is left where the rest of the answer is expected to be done sooner in the other one, what
changing over takes included: leaving a stream costs a round trip and an open, and a draft that has
fallen behind has to catch up. What cannot be measured in the mode at hand is predicted
(``outlook``) and, where it looks nearly as good, tried now and then, as far as an allowance goes
that all the time spent pays into: what trials lose is bounded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from edgespec.sizing import Feedback, Growth, Policy, Root, Setting, Sized, Sizer
from edgespec.tree import Candidates
from edgespec_runtime.remote.experience import RemoteExperience
from edgespec_runtime.remote.link import Mode
from edgespec_runtime.remote.outlook import Outlook

MARGIN = 1.03
"""The other mode must be expected to be done sooner by this: a tie is not worth changing over."""
EXPLORE = 0.01
"""Of all time: what trials may lose."""
PLAUSIBLE = 0.5
"""Of the mode at hand, what the other one must be expected to bring to be tried."""
TRIAL = {Mode.HYBRID: 6, Mode.REMOTE: 6}
"""Rounds for which a mode is kept once it was chosen."""
SETTLED = {Mode.HYBRID: 2, Mode.REMOTE: 4}
"""Rounds until the choice is looked at again."""
HOPELESS, ENOUGH = 2.0, 2
"""A draft's trial ends so many rounds early where the server by itself is faster by this."""
HORIZON = 256
"""Tokens ahead for which a network may be expected to stay as it is."""
STALE = 1.0
"""Seconds after which a round trip is measured anew while the server streams."""


class Switch(Protocol):
    """What modes are set on."""

    mode: Mode
    """Where the next verification is asked for."""

    @property
    def lost(self) -> bool:
        """Whether no server answers, so that there is nothing to choose."""

    def ping(self) -> None:
        """Has the round trip measured in the background; returns at once."""


class Modes:
    """The choice in one answer."""

    def __init__(
        self,
        inner: Sizer,
        setting: Setting,
        experience: RemoteExperience,
        switch: Switch,
        *,
        pinned: Mode | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """``pinned``: the one mode to run in; None chooses."""
        self.inner = inner
        policy = inner.policy
        self._experience = experience
        self._link = experience.link
        self._switch = switch
        self._pinned = pinned
        self._asked, self._drafted = experience.asked(setting), experience.drafted(setting)
        self._outlook = Outlook(
            experience, setting, levels=policy.levels, adapts=isinstance(policy, Sized)
        )
        self._drafts = policy.max_nodes > 0
        self._mode: Mode | None = None
        self._hold = 0  # rounds until the choice may change
        self._look = 0  # rounds until it is looked at again
        self._fresh = False  # whether the mode was just entered: its first round pays for that
        self._alone = False  # whether no server took part in the round at hand
        self._stake = 0.0  # what the trial that was just decided on may lose
        self._rest = 1.0  # how much more a trial must have been saved up for than it may lose

    @property
    def policy(self) -> Policy:
        return self.inner.policy

    @property
    def floor(self) -> float:
        return self.inner.floor

    # --- before a round

    def begin(self, root: Root) -> Growth:
        self._alone = self._switch.lost
        if self._alone:
            return self.inner.begin(root)
        mode, growth = self._pinned or self._choose(root), Growth.NONE
        if mode is not Mode.REMOTE:
            growth = self.inner.begin(root)
            if growth is Growth.NONE and not self._pinned and self._outlook.stream():
                mode = Mode.REMOTE  # without a draft the server is faster by itself
        if mode is not self._mode:
            self._experience.allowance_ms -= self._stake if mode is Mode.HYBRID else 0.0
            self._fresh = self._mode is not None or mode is Mode.REMOTE
            self._hold = TRIAL[mode]
            self._mode = mode
        self._switch.mode = self._link.mode = mode
        if mode is Mode.REMOTE:
            if not self._pinned and self._drafts and self._link.age > STALE:
                self._switch.ping()
        return growth

    def _choose(self, root: Root) -> Mode:
        """The mode that is expected to be done sooner."""
        self._stake = 0.0
        if not self._drafts:
            return Mode.REMOTE
        if self._mode is None:
            return self._first(root)
        self._hold -= 1
        self._look -= 1
        least = 0 if self._mode is Mode.REMOTE else ENOUGH
        if self._hold > least or self._look > 0:
            return self._mode
        self._look = SETTLED[self._mode]
        outlook, left = self._outlook, self._left(root)
        hybrid, stream = outlook.hybrid(), outlook.stream()
        if self._hold > 0 and hybrid * HOPELESS > stream:
            return self._mode
        if not stream:
            return Mode.HYBRID
        if self._mode is Mode.HYBRID:
            return Mode.REMOTE if hybrid * MARGIN < stream else Mode.HYBRID
        change = outlook.reopen() + outlook.take_up(root.unseen, root.prepared)
        if left / hybrid * MARGIN + change < left / stream:
            return Mode.HYBRID
        return Mode.HYBRID if self._tries(hybrid, stream, change) else Mode.REMOTE

    def _first(self, root: Root) -> Mode:
        """Where an answer starts: nothing is open yet that would have to be left."""
        outlook, left = self._outlook, self._left(root)
        hybrid, stream = outlook.hybrid(), outlook.stream()
        if not stream or not hybrid:
            return Mode.HYBRID
        taking_up = outlook.take_up(root.unseen, root.prepared)
        return Mode.HYBRID if left / hybrid + taking_up < left / stream else Mode.REMOTE

    def _tries(self, hybrid: float, stream: float, change: float) -> bool:
        """Whether enough was saved up for what a few hybrid rounds are expected to lose."""
        if hybrid < PLAUSIBLE * stream:
            return False
        tokens = TRIAL[Mode.HYBRID] * self._outlook.tokens
        loss = change + max(tokens / hybrid - tokens / stream, 0.0)
        if loss * self._rest > self._experience.allowance_ms:
            return False
        self._stake = loss
        self._rest = min(2.0 * self._rest, 8.0)
        return True

    def _left(self, root: Root) -> float:
        """Tokens that the answer is expected to have still."""
        return float(min(root.depth_left + 1, self._asked.left(root.emitted), HORIZON))

    # --- while drafting

    def beam(self, candidates: Candidates, level: int, root: Root) -> list[int]:
        return self.inner.beam(candidates, level, root)

    def choose(self, candidates: Candidates) -> list[int]:
        return self.inner.choose(candidates)

    # --- afterwards

    def learn(self, feedback: Feedback) -> None:
        fresh, self._fresh = self._fresh, False
        if self._alone or self._switch.lost:
            self.inner.learn(feedback)
            return
        self._drafted.went_by(feedback.emitted)
        self._experience.allowance_ms += EXPLORE * feedback.round_ms
        if self._mode is Mode.REMOTE:
            if not fresh:
                self._learn_interval(feedback)
            return
        if feedback.growth is not Growth.NONE:
            self._drafted.add(feedback, self._outlook.away)
        self.inner.learn(feedback)

    def _learn_interval(self, feedback: Feedback) -> None:
        """Takes a streamed token."""
        served = self._link.compute(1) + self._link.queue.mean
        if served > 0:
            self._experience.interval.add(served, feedback.round_ms)

    def finish(self, emitted: int, ended: bool) -> None:
        self._asked.ended(emitted)
        self.inner.finish(emitted, ended)
