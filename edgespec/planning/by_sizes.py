"""The inventory of models that are not at hand, by their sizes alone."""

from __future__ import annotations

from dataclasses import replace

from edgespec.latency.geometry import TREE_ROWS, Decoder, Geometry, Tower
from edgespec.planning.inventory import Encoder, Held, Inventory, Step
from edgespec.planning.weights import Weights

FLOAT32 = 4
"""Bytes of a number in a token table, as exports have it where nothing else is asked for."""


def of_geometry(geometry: Geometry) -> Inventory:
    """Models that are not at hand; norms, biases and the towers' embeddings are left out."""
    sides = {"target": geometry.target, "draft": geometry.draft}
    graphs = [
        _tower("vision", geometry.vision, geometry.visual_tokens),
        _projector("projector", geometry.vision, geometry.target),
        _decoder("target", geometry.target),
        _tower("draft_vision", geometry.draft_vision, geometry.visual_tokens),
        _projector("draft_projector", geometry.draft_vision, geometry.draft),
        _decoder("draft", geometry.draft),
    ]
    if geometry.chain_steps:
        graphs.append(_chain(geometry.draft, graphs[-1].weights))
    return Inventory(
        name=geometry.name,
        title=geometry.title,
        graphs=tuple(graphs),
        tables={side: (decoder.vocab, FLOAT32 * decoder.hidden) for side, decoder in sides.items()},
        visual_tokens=geometry.visual_tokens,
        draft_visual_tokens=geometry.draft_visual_tokens,
        max_positions=geometry.target.max_positions,
    )


def _tower(role: str, tower: Tower, patches: int) -> Held:
    shape = Encoder(patches + 1, tower.hidden, max(3 * tower.hidden, tower.intermediate))
    weights = Weights(floats=tower.parameters)
    return Held(role, weights, weights, shape=shape)


def _projector(role: str, tower: Tower, decoder: Decoder) -> Held:
    weights = Weights(floats=(tower.hidden + decoder.hidden) * decoder.hidden)
    return Held(role, weights, weights)


def _chain(draft: Decoder, weights: Weights) -> Held:
    """The draft's weights once more, and a token table of its own."""
    rows = draft.vocab * draft.hidden
    return Held("draft_chain", replace(weights, floats=weights.floats + rows), Weights(floats=rows))


def _decoder(role: str, decoder: Decoder) -> Held:
    width, packed = decoder.head_dim, decoder.heads + 2 * decoder.kv_heads
    layer = (
        (decoder.hidden, packed * width),
        (decoder.heads * width, decoder.hidden),
        (decoder.hidden, 2 * decoder.intermediate),
        (decoder.intermediate, decoder.hidden),
    )
    rotary = (decoder.max_positions + TREE_ROWS) * width
    shape = Step(
        layers=decoder.layers,
        hidden=decoder.hidden,
        heads=decoder.heads,
        kv_heads=decoder.kv_heads,
        head_dim=width,
        widest=max(columns for _, columns in layer),
        logits=decoder.vocab,
        max_positions=decoder.max_positions,
    )
    heads = ((decoder.hidden, decoder.vocab),)
    weights = Weights(layer * decoder.layers, heads, rotary)
    return Held(role, weights, weights, shape=shape)
