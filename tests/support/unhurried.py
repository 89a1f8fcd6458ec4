"""Clients of this process on a machine that may be slow or stall for seconds: to them, what only a
network does elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from unittest.mock import patch

from edgespec_runtime.remote import calls, channels, pace
from edgespec_runtime.remote.channels import Endpoint
from edgespec_runtime.remote.failover import Failover

LONG_MS = 240_000


@contextmanager
def unhurried() -> Iterator[None]:
    """Meanwhile no late answer is taken for a lost one before the longest wait of the settings, and
    no connection for a dead one."""
    alive = {"grpc.keepalive_timeout_ms": LONG_MS, "grpc.http2.ping_timeout_ms": LONG_MS}
    options = tuple((name, alive.get(name, value)) for name, value in channels.OPTIONS)
    with patch.object(pace, "FLOOR_S", LONG_MS / 1e3), patch.object(channels, "OPTIONS", options):
        yield


@contextmanager
def patience_of_pauses() -> Iterator[None]:
    """Meanwhile patience is used up by a client's own pauses alone, however long its tries take;
    nobody waits for them."""
    with patch.object(calls, "Failover", _on_its_own_clock):
        yield


def _on_its_own_clock(endpoints: Sequence[Endpoint], notice: Callable[[str], None]) -> Failover:
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    return Failover(endpoints, notice, lambda: now, sleep)
