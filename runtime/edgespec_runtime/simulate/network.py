"""A device whose target runs elsewhere: what its target costs there, and the way to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from edgespec.errors import ConfigError
from edgespec.latency import Curve, DeviceProfile

REQUEST_BYTES, NODE_BYTES = 40.0, 3.6
"""Of a verification request, without and per node: protobuf messages of 8 to 256 nodes of a
vocabulary of 32,000, measured for the project (68 to 970 bytes)."""


@dataclass(frozen=True)
class Network:
    """Between device and target. Raises ConfigError for what is no network."""

    rtt_ms: float
    """Round trip of a small message, the server's work left out."""
    uplink_kbps: float = 0.0
    """Kilobits per second from the device; 0: sending takes no time beside the round trip."""

    def __post_init__(self) -> None:
        for flag, value in (("--rtt-ms", self.rtt_ms), ("--uplink-kbps", self.uplink_kbps)):
            if not 0.0 <= value < float("inf"):
                raise ConfigError(f"{flag} is {value!r}; it must be a finite number, 0 or more")

    def request_ms(self, rows: int) -> float:
        """Of one verification of ``rows`` rows, the root's included, beyond the server's time."""
        return self.rtt_ms + self._sending_ms(REQUEST_BYTES + NODE_BYTES * (rows - 1))

    def nodes_ms(self, rows: int) -> float:
        """Of it, what depends on the tree."""
        return self._sending_ms(NODE_BYTES * (rows - 1))

    def _sending_ms(self, size: float) -> float:
        return 8 * size / self.uplink_kbps if self.uplink_kbps else 0.0


def moved(
    profile: DeviceProfile, network: Network | None, server: DeviceProfile | None = None
) -> DeviceProfile:
    """``profile`` where the target runs on ``server`` behind ``network``, the way there left out.

    The target's part of the costs is the server's; without one it is the profile's own remote
    target, or the device's own. What it takes to send a tree's nodes, which is known beforehand,
    counts as verifying them.
    """
    costs = profile.costs
    if server is not None:
        costs = replace(
            costs,
            vision=server.costs.vision,
            prefill=server.costs.prefill,
            verify=server.costs.verify,
            pick_ms=server.costs.pick_ms,
        )
    elif network is not None and profile.remote is not None:
        costs = replace(costs, verify=profile.remote.verify)
    if network is not None and network.uplink_kbps:
        costs = replace(costs, verify=_plus(costs.verify, network.nodes_ms))
    return replace(profile, costs=costs)


def with_way(profile: DeviceProfile, network: Network | None) -> DeviceProfile:
    """A ``moved`` profile, every verification and the prompt paying for the way; what sending the
    pictures takes is not counted."""
    if network is None:
        return profile
    costs, way = profile.costs, network.request_ms(1)
    costs = replace(
        costs,
        verify=_plus(costs.verify, lambda rows: way),
        prefill=_plus(costs.prefill, lambda tokens: network.rtt_ms),
    )
    return replace(profile, costs=costs)


def _plus(curve: Curve, extra: Callable[[int], float]) -> Curve:
    """The curve with ``extra`` of its sizes on top."""
    more = [extra(size) for size in curve.sizes]

    def lifted(table: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(a + b for a, b in zip(row, more, strict=True)) for row in table)

    return replace(curve, median_ms=lifted(curve.median_ms), p95_ms=lifted(curve.p95_ms))
