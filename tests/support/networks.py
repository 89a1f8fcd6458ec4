"""A modelled network with a server behind it, and answers that modes are chosen for: no sockets, no
model, no waiting. Time is a number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from edgespec.sizing import Eagle2, Feedback, Growth, Policy, Root, Setting, Sized
from edgespec.sizing.contract import Steady
from edgespec.tree import ROOT, Candidates
from edgespec_runtime.remote.experience import RemoteExperience
from edgespec_runtime.remote.link import Link, Mode
from edgespec_runtime.remote.modes import Modes

HEADER, NODE, REPLY = 60, 4, 40


@dataclass(frozen=True)
class World:
    """Milliseconds, and the chance that a level is accepted once the one above it was."""

    keep: float = 0.75
    draft: float = 8.0
    """Of one level."""
    one: float = 30.0
    """The server's forward of one row,"""
    row: float = 0.3
    """and of every further one."""
    rtt: Callable[[float], float] = lambda ms: 20.0
    """By the time."""
    kbps: float = 0.0
    jitter: float = 0.0
    """Mean of an exponential delay on top of a round trip."""
    queue: float = 0.0
    host: float = 0.5
    prepare: float = 0.0
    catch_up: float = 0.0
    """Of the draft, per unseen token."""
    curve: bool = True
    """Whether the server tells its own."""
    cap: int = 24

    def away(self, ms: float, up: int, rng: np.random.Generator) -> float:
        sent = 8 * up / self.kbps if self.kbps else 0.0
        return self.rtt(ms) + sent + (rng.exponential(self.jitter) if self.jitter else 0.0)

    def compute(self, rows: int) -> float:
        return self.one + self.row * (rows - 1)

    def depth(self, away: float) -> int:
        """The best one of a chain."""
        depths = np.arange(1, self.cap + 1)
        tokens = np.cumsum(self.keep ** np.arange(self.cap + 1))[1:]
        spent = self.host + depths * self.draft + away + self.one + self.row * depths
        return int(depths[(tokens / spent).argmax()])


class Chains(Steady):
    """A policy's sizer that drafts chains of the best depth, or of a fixed one."""

    def __init__(self, policy: Policy, depth: Callable[[], int]) -> None:
        super().__init__(policy)
        self._depth = depth
        self.asked = 0

    def begin(self, root: Root) -> Growth:
        self.asked = min(self._depth(), root.depth_left)
        return Growth.STEPS

    def beam(self, candidates: Candidates, level: int, root: Root) -> list[int]:
        return [len(candidates) - 1] if level < self.asked else []

    def choose(self, candidates: Candidates) -> list[int]:
        return list(range(len(candidates)))


@dataclass
class Server:
    """What stands behind ``Switch``: a session, open or streaming."""

    world: World
    link: Link
    clock: Callable[[], float]
    rng: np.random.Generator
    mode: Mode = Mode.HYBRID
    lost: bool = False
    due: float | None = None
    """When the stream's next token would arrive without jitter, ms; None where none is open."""
    arrived: float = 0.0
    pings: int = 0
    changes: int = 0

    def ping(self) -> None:
        self.pings += 1
        self.link.pinged(self.world.away(self.clock(), HEADER, self.rng))

    def round(self, now: float, depth: int, matches: Sequence[bool]) -> tuple[float, float, int]:
        """(milliseconds waited, network and queue among them, accepted levels); ``matches`` tells
        whether the draft has each of the next tokens."""
        if self.mode is Mode.REMOTE:
            return self._next(now)
        waited = self._leave(now)
        up = HEADER + NODE * depth
        away = self.world.away(now + waited, up, self.rng) + self.world.queue
        compute = self.world.compute(depth + 1)
        self.link.verified(depth + 1, away + compute, self.world.queue, compute, up, REPLY)
        accepted = 0
        while accepted < depth and matches[accepted]:
            accepted += 1
        return waited + away + compute, waited + away, accepted

    def _next(self, now: float) -> tuple[float, float, int]:
        world, interval = self.world, self.world.one + self.world.queue
        if self.due is None:
            self.changes += 1
            self.due = now + world.away(now, HEADER, self.rng) + interval
            self.arrived = self.due
        else:
            self.due += interval
        late = self.rng.exponential(world.jitter) if world.jitter else 0.0
        self.arrived = max(self.arrived, self.due + late)  # tokens come in order
        self.link.streamed(world.queue, world.one, REPLY)
        waited = max(self.arrived - now, 0.0)
        return waited, max(waited - world.one, 0.0), 0

    def _leave(self, now: float) -> float:
        if self.due is None:
            return 0.0
        self.due = None
        self.changes += 1
        total = self.world.away(now, HEADER, self.rng) + self.world.one
        self.link.opened(total, 0.0, self.world.one, HEADER, REPLY, cached=True)
        return total


@dataclass
class Device:
    """Runs answers one after another, in one mode or in whichever is chosen."""

    world: World
    pinned: Mode | None = None
    fixed_depth: int | None = None
    seed: int = 0
    ms: float = 0.0
    link: Link = field(init=False)
    rounds: dict[Mode, int] = field(default_factory=dict)
    answers: int = 0

    def __post_init__(self) -> None:
        self.link = Link(lambda: self.ms / 1e3)
        self.experience = RemoteExperience(self.link)
        self.rng = np.random.default_rng(self.seed)
        sizes = (1, 8, 32)
        if self.world.curve:
            self.link.informed(sizes, [self.world.compute(size) for size in sizes])
        opened = self.world.away(0.0, 400, self.rng) + 80.0
        self.link.opened(opened, 0.0, 80.0, 400, REPLY, cached=False)

    def answer(self, tokens: int) -> float:
        """Milliseconds of an answer behind its first token."""
        world, started = self.world, self.ms
        server = Server(world, self.link, lambda: self.ms, self.rng)
        self.server = server
        policy = Sized() if self.fixed_depth is None else Eagle2(nodes=12, depth=12, top_k=1)
        depth = self.fixed_depth
        # The same tokens are easy for the draft whatever the mode.
        matches = np.random.default_rng([self.seed, self.answers]).random(tokens + 64) < world.keep
        self.answers += 1
        sizer = Chains(policy, lambda: depth or world.depth(world.rtt(self.ms) + world.queue))
        modes = Modes(sizer, Setting(draft="model"), self.experience, server, pinned=self.pinned)
        emitted, unseen, prepared = 1, 1, not world.prepare
        while emitted < tokens:
            root = Root(tokens - emitted - 1, 100 + emitted, unseen, prepared, emitted)
            now = self.ms
            growth = modes.begin(root) if root.depth_left > 0 else Growth.NONE
            candidates, prepare, draft = Candidates(), 0.0, 0.0
            if growth is not Growth.NONE:
                if not prepared:
                    prepare, prepared = world.prepare, True
                draft = (unseen - 1) * world.catch_up + sizer.asked * world.draft
                for level in range(sizer.asked):
                    candidates.extend(level - 1 if level else ROOT, [7], [-0.1])
            waited, away, accepted = server.round(
                now + prepare + draft, len(candidates), matches[emitted:].tolist()
            )
            taken = 1 + accepted
            unseen = unseen + 1 if growth is Growth.NONE else 1
            self.ms += prepare + draft + waited + world.host
            mode = server.mode
            self.rounds[mode] = self.rounds.get(mode, 0) + 1
            emitted += taken
            modes.learn(
                Feedback(
                    root=root,
                    growth=growth,
                    calls=(1,) * len(candidates),
                    candidates=candidates,
                    chosen=range(len(candidates)),
                    rows=range(1, accepted + 1),
                    named=None,
                    tokens=(7,) * taken,
                    emitted=taken,
                    prepare_ms=prepare,
                    draft_ms=draft,
                    verify_ms=waited,
                    round_ms=draft + waited + world.host,
                    away_ms=away,
                )
            )
        modes.finish(emitted, True)
        return self.ms - started


def regret(
    world: World, tokens: int, *, answers: int = 1, fixed_depth: int | None = None, seed: int = 0
) -> tuple[float, Device]:
    """How much longer all answers take than in the better fixed mode, as a share; and who ran."""

    def total(pinned: Mode | None) -> tuple[float, Device]:
        device = Device(replace(world), pinned, fixed_depth, seed)
        return sum(device.answer(tokens) for _ in range(answers)), device

    best = min(total(Mode.HYBRID)[0], total(Mode.REMOTE)[0])
    mine, device = total(None)
    return mine / best - 1.0, device
