"""A recorded answer's target on a server that can go on by itself, and the choice between modes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from edgespec.acceptance import Verdict
from edgespec.sizing.experience import Experience
from edgespec.tree import EMPTY, TokenTree
from edgespec_runtime.remote.experience import RemoteExperience
from edgespec_runtime.remote.link import Link, Mode
from edgespec_runtime.simulate.clock import Clock, Meter
from edgespec_runtime.simulate.lines import Line
from edgespec_runtime.simulate.network import NODE_BYTES, REQUEST_BYTES, Network
from edgespec_runtime.simulate.oracle import Oracle
from edgespec_runtime.simulate.verifier import ReplayVerifier
from edgespec_runtime.verifiers import Meanwhile

REPLY_BYTES = 39
"""Measured for the project, as the bytes of requests were."""


@dataclass
class Past:
    """What the answers before taught, and the time that they took."""

    experience: Experience = field(default_factory=Experience)
    before_ms: float = 0.0
    clock: Clock = field(default_factory=Clock)
    """Of the answer at hand."""
    remote: RemoteExperience = field(init=False)

    def __post_init__(self) -> None:
        self.remote = RemoteExperience(Link(lambda: (self.before_ms + self.clock.ms) / 1e3))

    def start(self, clock: Clock) -> None:
        """Another answer begins, on a clock of its own."""
        self.before_ms += self.clock.ms
        self.clock = clock


class StreamingVerifier(ReplayVerifier):
    """One replay's target behind a network, with modes to be set on it (``remote.modes.Switch``).

    A stream's tokens come a round trip and a forward after it was asked for, and then forward by
    forward; leaving it takes a round trip and a forward, for the open.
    """

    def __init__(
        self, line: Line, oracle: Oracle, meter: Meter, network: Network, link: Link, *, named: bool
    ) -> None:
        super().__init__(line, oracle, meter, network, named=named)
        self.mode = Mode.HYBRID
        self.lost = False
        self._way = network
        self._link = link
        self._due: float | None = None  # when the stream's next token is there
        verify = meter.costs.verify
        sizes = verify.sizes
        link.informed(sizes, [verify.at(size, line.prompt_tokens) for size in sizes])
        link.pinged(network.rtt_ms)

    def ping(self) -> None:
        self._link.pinged(self._way.rtt_ms)

    def verify(self, tree: TokenTree, meanwhile: Meanwhile | None = None) -> Verdict:
        if self.mode is Mode.REMOTE and not len(tree):
            return self._streamed()
        if self._due is not None:
            self._due = None
            self._meter.clock.ms += self._way.rtt_ms + self._meter.forward_ms(1, self.context)
        rows = len(tree) + 1
        verdict = super().verify(tree, meanwhile)
        compute = self._meter.costs.verify.at(rows, self.context)
        up = int(REQUEST_BYTES + NODE_BYTES * (rows - 1))
        way = self._way.request_ms(1)
        self._link.verified(rows, way + compute, 0.0, compute, up, REPLY_BYTES)
        return verdict

    def _streamed(self) -> Verdict:
        clock, meter = self._meter.clock, self._meter
        forward = meter.forward_ms(1, self.context)
        if self._due is None:
            self._due = clock.ms + self._way.request_ms(1)
        self._due += forward
        started = clock.ms
        verdict = self._walked(EMPTY)
        clock.ms = max(clock.ms, self._due)
        self._link.streamed(0.0, forward, REPLY_BYTES)
        return replace(verdict, away_ms=max(clock.ms - started - forward, 0.0))
