"""How fast the machine could be at best: the roofline of Williams et al. 2009 (CACM 52(4))."""

from __future__ import annotations

from edgespec.latency import Card, DeviceProfile, GraphCard


def target_graph(card: Card) -> GraphCard | None:
    """The target's step graph, if the card has it."""
    return next((graph for graph in card.graphs if graph.role == "target"), None)


def floor_ms(card: Card, graph: GraphCard, rows: float, context: float) -> float | None:
    """The least milliseconds of one call: its weights and cache read once, or its rows' arithmetic,
    whichever takes longer. Attention's arithmetic over the cache is left out. None where the card
    knows neither rate."""
    times = []
    if card.bandwidth_gb_s > 0:
        moved = graph.weight_bytes + graph.kv_bytes_per_token * context
        times.append(moved / (card.bandwidth_gb_s * 1e6))
    if card.gflops > 0:
        times.append(rows * graph.flops_per_row / (card.gflops * 1e6))
    return max(times, default=None)


def plain_floor_ms(profile: DeviceProfile, context: float) -> float | None:
    """``floor_ms`` of one token by plain decoding; None where the card does not tell."""
    graph = target_graph(profile.card)
    return floor_ms(profile.card, graph, 1, context) if graph else None


def usual_context(profile: DeviceProfile) -> int:
    """The context that single figures are given for: the middle one of those measured."""
    contexts = profile.costs.verify.contexts
    return contexts[len(contexts) // 2]
