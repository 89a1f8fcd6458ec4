"""A device whose target runs elsewhere: its profile, with every verification across a network."""

from __future__ import annotations

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
        bits = 8 * (REQUEST_BYTES + NODE_BYTES * (rows - 1))
        return self.rtt_ms + (bits / self.uplink_kbps if self.uplink_kbps else 0.0)


def across(
    profile: DeviceProfile, network: Network | None, server: DeviceProfile | None = None
) -> DeviceProfile:
    """``profile`` as it is where the target runs on ``server`` behind ``network``.

    The target's part of the costs is the server's; without one it is the profile's own remote
    target, or the device's own. Every verification and the prompt pay for a request; what sending
    the pictures takes is not counted.
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
    if network is not None:
        costs = replace(
            costs,
            verify=_plus(costs.verify, [network.request_ms(rows) for rows in costs.verify.sizes]),
            prefill=_plus(costs.prefill, [network.rtt_ms] * len(costs.prefill.sizes)),
        )
    return replace(profile, costs=costs)


def _plus(curve: Curve, extra: list[float]) -> Curve:
    """The curve with ``extra`` [sizes] on top."""

    def lifted(table: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(a + b for a, b in zip(row, extra, strict=True)) for row in table)

    return replace(curve, median_ms=lifted(curve.median_ms), p95_ms=lifted(curve.p95_ms))
