"""A profile without a device: every cost of a bundle by roofline from a datasheet.

A pass over a graph costs reading its weights and cache at the achieved bandwidth or doing its
arithmetic at the achieved rate, whichever is longer, or both in turn where a device does not
overlap them (the roofline model: Williams et al., 2009); on top come the overheads of a call and
of every layer. On GPUs rows are padded to the kernels' tile, which makes a staircase.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from edgespec.bundle import Bundle
from edgespec.errors import ConfigError
from edgespec.latency.card import card_of, stored_bytes
from edgespec.latency.curve import Curve
from edgespec.latency.datasheet import Datasheet, PowerMode
from edgespec.latency.fits import bundle_facts
from edgespec.latency.profile import (
    Card,
    Costs,
    Device,
    DeviceProfile,
    EngineFacts,
    GraphCard,
    Memory,
)

CHUNK = 256
"""Rows of one prefill call of the runtime."""
ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
FAR = 256
"""Last point of a curve over rows, so that its last slope is that of many tiles."""
PICTURES = (1, 2, 4)
MB = 2**20


@dataclass(frozen=True)
class Roofline:
    """One bundle on one device in one power mode."""

    sheet: Datasheet
    mode: PowerMode
    bundle: Bundle
    card: Card

    def call_ms(self, role: str, rows: int, context: int = 0, picked: int | None = None) -> float:
        """One engine call; 0 for a graph that the bundle does not have."""
        graph = self.card.graph(role)
        if graph is None:
            return 0.0
        first = self._pass_ms(graph, rows, context, picked)
        further = self._pass_ms(graph, 1, context, 1) if graph.steps > 1 else 0.0
        return self.sheet.overhead.call_ms + first + (graph.steps - 1) * further

    def _pass_ms(self, graph: GraphCard, rows: int, context: int, picked: int | None) -> float:
        hidden, layers = self._shape(graph)
        tile = self.sheet.tile[graph.precision]
        padded = math.ceil(rows / tile) * tile
        headed = padded if picked is None else math.ceil(picked / tile) * tile
        flops = graph.flops_per_row * padded - graph.head_flops * (padded - headed)
        if graph.kv_bytes_per_token:  # scores and weighted sums; heads x head size taken as hidden
            flops += 4.0 * hidden * layers * padded * (context + rows)
        loaded = graph.weight_bytes + context * graph.kv_bytes_per_token
        reading = loaded / (self.mode.bandwidth_gb_s * self.sheet.achieved.bandwidth) / 1e6
        working = flops / (self.mode.gflops[graph.precision] * self.sheet.achieved.rate) / 1e6
        longer = max(reading, working) if self.sheet.overlap else reading + working
        return longer + layers * self.sheet.overhead.layer_ms

    def _shape(self, graph: GraphCard) -> tuple[int, float]:
        """(hidden size, layers); a tower's layers from its weights, 12 hidden**2 each."""
        spec = self.bundle.manifest.graph(graph.role)
        assert spec is not None
        if "layers" in spec.meta:
            return int(spec.meta["hidden"]), float(spec.meta["layers"])
        if graph.role in ("vision", "draft_vision"):
            hidden = int(spec.outputs[0].axes[-1])
            return hidden, max(graph.flops_per_row / 2 / (12 * hidden**2), 1.0)
        return 0, 1.0 if graph.weight_bytes else 0.0

    def prompt_ms(self, role: str, tokens: int) -> float:
        """Feeding a prompt in chunks, the last row's logits asked for."""
        starts = range(0, tokens, CHUNK)
        return sum(self.call_ms(role, min(CHUNK, tokens - at), at, 1) for at in starts)

    def pictures_ms(self, roles: Sequence[str], pictures: int) -> float:
        """Graphs over the patches of pictures, one after another."""
        rows = pictures * int(self.bundle.manifest.text["visual_tokens"])
        return sum(self.call_ms(role, rows) for role in roles)


def estimate_profile(
    sheet: Datasheet, bundle: Bundle, power_mode: str = "", *, target_here: bool = True
) -> DeviceProfile:
    """What ``bundle`` would cost on ``sheet``'s device; nothing is measured, p95 is the median.
    ``target_here``: whether the device is to hold the target as well, and not the draft alone.

    Raises ConfigError where the device's documents give no rate for the bundle's precision, or the
    weights do not fit into its memory.
    """
    mode = sheet.mode(power_mode)
    _check_precisions(sheet, bundle)
    rate = mode.gflops[bundle.manifest.graphs[0].precision]
    card = card_of(bundle, mode.bandwidth_gb_s, rate, measured=False)
    roofline = Roofline(sheet, mode, bundle, card)
    return DeviceProfile(
        kind="estimate",
        created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        seconds=0.0,
        device=Device(
            name=sheet.name,
            processor=sheet.processor,
            cores=sheet.cores,
            accelerator=sheet.accelerator,
            memory_mb=sheet.memory_mb,
            power_mode=mode.name,
        ),
        engine=EngineFacts("ort", "", sheet.provider, sheet.cores),
        bundle=bundle_facts(bundle),
        card=card,
        costs=_costs(roofline),
        memory=_memory(sheet, bundle, card, target_here),
        noise=1.0,
        sources=(*sheet.sources, *(f"assumption: {text}" for text in sheet.assumptions)),
    )


def _check_precisions(sheet: Datasheet, bundle: Bundle) -> None:
    for graph in bundle.manifest.graphs:
        if graph.precision not in sheet.tile:
            raise ConfigError(
                f"device '{sheet.name}' has no arithmetic rate for precision '{graph.precision}' "
                f"(graph '{graph.role}'); there are: {', '.join(sheet.tile)}. Measure instead: "
                "edgespec profile"
            )


def _costs(roofline: Roofline) -> Costs:
    manifest, host = roofline.bundle.manifest, roofline.sheet.host
    target, draft, chain = (manifest.graph(r) for r in ("target", "draft", "draft_chain"))
    assert target is not None
    call, prompt, pictures = roofline.call_ms, roofline.prompt_ms, roofline.pictures_ms
    contexts = _contexts(int(target.meta["max_positions"]))
    tokens = _tokens(int(target.meta["max_positions"]))
    rows = _rows(roofline.sheet.tile[target.precision])
    seen = [r for r in ("draft_vision", "draft_projector", "compressor") if manifest.graph(r)]

    def draft_prompt_ms(tokens: int, _: int) -> float:
        return call("draft_features", tokens) + prompt("draft", tokens)

    def first_ms(role: str) -> Callable[[int, int], float]:
        return lambda size, at: call("draft_features", size) + call(role, size, at, 1)

    return Costs(
        vision=_curve(PICTURES, (0,), lambda n, _: pictures(("vision", "projector"), n)),
        prefill=_curve(tokens, (0,), lambda n, _: prompt("target", n)),
        verify=_curve(rows, contexts, lambda n, at: call("target", n, at)),
        draft_vision=_curve(PICTURES, (0,), lambda n, _: pictures(seen, n)) if seen else None,
        draft_prefill=_curve(tokens, (0,), draft_prompt_ms) if draft else None,
        draft_first=_curve(rows, contexts, first_ms("draft")) if draft else None,
        draft_step=_curve(rows, contexts, lambda n, at: call("draft", n, at)) if draft else None,
        chain_first=_curve(rows, contexts, first_ms("draft_chain")) if chain else None,
        chain_next=_curve((1,), contexts, lambda n, at: call("draft_chain", n, at, 1))
        if chain
        else None,
        chain_steps=int(chain.meta["steps"]) if chain else 0,
        commit_ms=host.commit_ms if draft else 0.0,
        pick_ms=host.pick_ms_per_1k * int(target.meta["vocab"]) / 1000,
        host_round_ms=host.round_ms,
        host_token_ms=host.token_ms,
    )


def _memory(sheet: Datasheet, bundle: Bundle, card: Card, target_here: bool) -> Memory:
    """Stored weights by side; embedding tables are memory-mapped and only looked up, so they are
    left out. Raises ConfigError where the device cannot hold the weights."""
    sides = {True: 0.0, False: 0.0}
    for spec in bundle.manifest.graphs:
        drafting = spec.role.startswith("draft") or spec.role == "compressor"
        if drafting or target_here:
            sides[drafting] += stored_bytes(bundle, spec) / MB
    needed = sheet.base_mb + sum(sides.values())
    if needed > sheet.usable_mb:
        raise ConfigError(
            f"the bundle needs {needed:,.0f} MB with its weights, device '{sheet.name}' has about "
            f"{sheet.usable_mb:,} MB to give; export a smaller precision or choose another device"
        )
    target, draft = card.graph("target"), card.graph("draft")
    return Memory(
        base_mb=sheet.base_mb,
        target_mb=sides[False],
        draft_mb=sides[True],
        target_kv_bytes=target.kv_bytes_per_token if target else 0,
        draft_kv_bytes=draft.kv_bytes_per_token if draft else 0,
    )


def _curve(sizes: Sequence[int], contexts: Sequence[int], ms: Callable[[int, int], float]) -> Curve:
    table = tuple(tuple(ms(size, context) for size in sizes) for context in contexts)
    return Curve(tuple(sizes), tuple(contexts), table, table)


def _rows(tile: int) -> tuple[int, ...]:
    """Sizes that show every step of a staircase: where a tile ends, and where the next begins."""
    if tile == 1:
        return (*ROWS, FAR)
    edges = (size for full in range(tile, ROWS[-1] + 1, tile) for size in (full - tile + 1, full))
    return tuple(sorted({*edges, FAR}))


def _contexts(most: int) -> tuple[int, ...]:
    return tuple(sorted({0, most // 4, most // 2, most}))


def _tokens(most: int) -> tuple[int, ...]:
    """Prompt lengths: up to a chunk, then what each chunk begins and ends with."""
    ends = (size for full in range(CHUNK, most + 1, CHUNK) for size in (full, full + 1))
    return tuple(sorted({1, 32, 128, *(size for size in ends if size <= most), most}))
