"""The card's roofline where the card knows one, and the context that single figures are for."""

from __future__ import annotations

from edgespec.latency import Card, DeviceProfile


def floor_ms(card: Card, role: str, rows: int, context: int) -> float | None:
    """``Card.floor_ms``; None without that graph or without the machine's rates."""
    if card.graph(role) is None or not (card.bandwidth_gb_s > 0 and card.gflops > 0):
        return None
    return card.floor_ms(role, rows, context)


def usual_context(profile: DeviceProfile) -> int:
    """The context that single figures are given for: the middle one of those measured."""
    contexts = profile.costs.verify.contexts
    return contexts[len(contexts) // 2]
