"""What a server counts, for Prometheus."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from edgespec.errors import InputError
from edgespec_runtime.server.backend import Gauges, VerifierBackend
from edgespec_runtime.server.settings import Address
from edgespec_runtime.wire.refusal import Reason

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
LENGTHS = tuple(range(1, 17))
ASKED_S = 2.0


class Meter:
    """The front's own counts, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self._seconds = Histogram(
            "edgespec_request_seconds",
            "From a request's headers to its answer.",
            ["method"],
            buckets=SECONDS,
            registry=registry,
        )
        self._accepted = Histogram(
            "edgespec_accepted_length",
            "Tokens per round, bonus counted.",
            buckets=LENGTHS,
            registry=registry,
        )
        self._queue = Histogram(
            "edgespec_queue_seconds", "Waited for the target.", buckets=SECONDS, registry=registry
        )
        self._compute = Histogram(
            "edgespec_compute_seconds", "In the target.", buckets=SECONDS, registry=registry
        )
        self._refusals = Counter(
            "edgespec_refusals", "By reason.", ["method", "reason"], registry=registry
        )
        for reason in Reason:  # all are there from the start: a rate needs a zero
            self._refusals.labels("Verify", reason.value)

    def took(self, method: str, seconds: float) -> None:
        """One request was answered, or refused."""
        self._seconds.labels(method).observe(seconds)

    def refused(self, method: str, reason: str) -> None:
        """One request was refused."""
        self._refusals.labels(method, reason).inc()

    def round(self, accepted: int, queue_us: int, compute_us: int) -> None:
        """One verified round."""
        self._accepted.observe(accepted)
        self._queue.observe(queue_us / 1e6)
        self._compute.observe(compute_us / 1e6)

    def watch(self, backend: VerifierBackend, loop: asyncio.AbstractEventLoop) -> None:
        """Adds what the backend counts, asked for at every scrape."""
        self.registry.register(_Backend(backend, loop))


class _Backend(Collector):
    """Scrapes come on threads of their own; the backend lives in the loop."""

    def __init__(self, backend: VerifierBackend, loop: asyncio.AbstractEventLoop) -> None:
        self._backend = backend
        self._loop = loop

    def describe(self) -> list[Metric]:
        return []  # else registering would collect, from inside the loop

    def collect(self) -> Iterator[Metric]:
        asked = asyncio.run_coroutine_threadsafe(self._backend.gauges(), self._loop)
        try:
            yield from _families(asked.result(ASKED_S))
        except (concurrent.futures.TimeoutError, TimeoutError):
            asked.cancel()  # a busy backend: the front's own counts are told all the same


def _families(gauges: Gauges) -> Iterator[Metric]:
    now = (
        ("sessions", "Open sessions.", gauges.sessions),
        ("kv_bytes", "Of the sessions' cache.", gauges.kv_bytes),
        ("image_bytes", "Of cached pictures.", gauges.image_bytes),
        ("queued", "Requests that wait for the target.", gauges.queued),
        ("mean_batch", "Rounds per engine call.", gauges.rounds / max(gauges.batches, 1)),
    )
    so_far = (
        ("evictions", "Sessions dropped for room or age.", gauges.evictions),
        ("replays", "Answers given again.", gauges.replays),
        ("rounds", "Verified rounds.", gauges.rounds),
        ("tokens", "Committed tokens.", gauges.tokens),
        ("batches", "Engine calls that verified.", gauges.batches),
    )
    for name, what, value in now:
        yield GaugeMetricFamily(f"edgespec_{name}", what, value)
    for name, what, value in so_far:
        yield CounterMetricFamily(f"edgespec_{name}", what, value)


@contextmanager
def exposed(meter: Meter, address: Address | None) -> Iterator[Address | None]:
    """Answers scrapes at ``http://address/metrics`` inside; yields the bound address. Raises
    InputError where it cannot be bound."""
    if address is None:
        yield None
        return
    try:
        server, thread = start_http_server(address.port, address.host, meter.registry)
    except (OSError, OverflowError) as error:
        said = getattr(error, "strerror", None) or error
        raise InputError(
            f"--metrics {address} cannot be listened on: {said}; give another address"
        ) from None
    try:
        yield address.at(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
