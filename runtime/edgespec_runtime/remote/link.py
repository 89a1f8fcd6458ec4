"""What is measured of the network and of the server behind it, over all requests of a model.

Everything is a duration on the client's monotonic clock or one that the server measured itself: the
two clocks are never compared. Of a call's time the network is what the server did not spend:

    network = total - queue - compute = round trip + request bytes / uplink
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from time import monotonic

import numpy as np

from edgespec.latency import Curve
from edgespec.latency.curve import Floats
from edgespec.sizing.drift import Factor
from edgespec_runtime.remote.recent import Recent

BULK = 1024
"""Bytes of a request from which what it took longer than a small one tells the uplink: a picture of
5 kB takes 40 ms at 1 Mbit/s."""


class Mode(Enum):
    """Where the next tokens come from."""

    HYBRID = "hybrid"
    """The device drafts, the server verifies."""
    REMOTE = "remote"
    """The server continues by itself and streams."""
    LOCAL = "local"
    """This device alone."""


class Link:
    """One model's way to its servers. Mutable; all times are milliseconds."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        """``clock`` tells seconds and never goes back."""
        self._clock = clock
        self.mode: Mode | None = None
        """What the last request ended in: a good start for the next one."""
        self.round_trip = Recent()
        """Of a small message, the server's work left out."""
        self.queue = Recent()
        self.reopen = Recent()
        """Queue and compute of opens that found their rows in the cache."""
        self.up_bytes = self.down_bytes = 0
        self._bound = 0.0  # the smallest of what a round trip cannot exceed
        self._bulk = Recent(3)  # milliseconds per byte of large requests
        self._known_at: float | None = None
        self._curve: Curve | None = None
        self._factor = Factor()
        self._computed: dict[int, Recent] = {}

    # --- what is told

    def informed(self, sizes: Sequence[int], median_ms: Sequence[float]) -> None:
        """Takes the server's own verify curve, by rows; empty where it has none. Fewer rows never
        take longer: where they did, something else ran when they were measured."""
        if sizes:
            row = tuple(min(map(float, median_ms[i:])) for i in range(len(sizes)))
            self._curve = Curve(tuple(sizes), (0,), (row,), (row,))

    def pinged(self, total: float, *, connecting: bool = False) -> None:
        """Takes a call without work; one that set up its connection is only an upper bound."""
        if connecting:
            self._limit(total)
        else:
            self._arrived(total)

    def opened(
        self, total: float, queue: float, compute: float, up: int, down: int, *, cached: bool
    ) -> None:
        """Takes an Open; ``cached``: whether the server still had the session's rows."""
        self._count(up, down)
        network = total - queue - compute
        if up >= BULK:
            self._limit(network)
            self._bulk.add((network - self.round_trip.median) / up if self.round_trip else 0.0)
        else:
            self._arrived(network - up * self._byte_ms)
        if cached:
            self.reopen.add(queue + compute)

    def verified(
        self, rows: int, total: float, queue: float, compute: float, up: int, down: int
    ) -> None:
        """Takes a verification of ``rows`` rows, the root's included."""
        self._count(up, down)
        self._arrived(total - queue - compute - up * self._byte_ms)
        self._worked(rows, queue, compute)

    def streamed(self, queue: float, compute: float, down: int) -> None:
        """Takes a token that the server sent by itself."""
        self._count(0, down)
        self._worked(1, queue, compute)

    def forget(self) -> None:
        """Another server from here on: what was measured of the last one says little."""
        self.round_trip, self.queue, self.reopen = Recent(), Recent(), Recent()
        self._bound, self._known_at = 0.0, None
        self._curve, self._factor, self._computed = None, Factor(), {}

    def _limit(self, ms: float) -> None:
        self._bound = min(self._bound, ms) if self._bound else ms

    def _arrived(self, ms: float) -> None:
        self.round_trip.add(ms)
        self._known_at = self._clock()

    def _worked(self, rows: int, queue: float, compute: float) -> None:
        self.queue.add(queue)
        self._computed.setdefault(rows, Recent()).add(compute)
        if self._curve is not None:
            self._factor.learn(compute, self._curve.at(rows), rows)

    def _count(self, up: int, down: int) -> None:
        self.up_bytes += up
        self.down_bytes += down

    # --- what is known

    @property
    def _byte_ms(self) -> float:
        return self._bulk.median

    @property
    def age(self) -> float:
        """Seconds since a round trip was measured; infinite before the first."""
        return float("inf") if self._known_at is None else self._clock() - self._known_at

    def network(self, up: int = 0) -> float:
        """What a request of ``up`` bytes will take beyond the server's time, on average."""
        return (self.round_trip.mean if self.round_trip else self._bound) + up * self._byte_ms

    @property
    def curve(self) -> Curve | None:
        """The server's own verify curve, as it told it."""
        return self._curve

    def compute(self, rows: int) -> float:
        """What the server will need for ``rows`` rows: its own curve, corrected; without one, what
        was measured, between the sizes that were seen; 0 where nothing was."""
        if self._curve is not None:
            return self._curve.at(rows) * self._factor.of(rows)
        curve = self._seen()
        return curve.at(rows) if curve is not None else 0.0

    def computes(self, most: int) -> Floats:
        """The same for 0..most rows, [most + 1]."""
        if self._curve is not None:
            return self._curve.row(0, most) * self._factor.table(most)
        curve = self._seen()
        return curve.row(0, most) if curve is not None else np.zeros(most + 1)

    def _seen(self) -> Curve | None:
        """What was measured, as a curve."""
        computed = dict(self._computed)  # other requests add to it
        if not computed:
            return None
        sizes = sorted(computed)
        row = tuple(max(computed[size].median, 1e-3) for size in sizes)
        return Curve(tuple(sizes), (0,), (row,), (row,))
