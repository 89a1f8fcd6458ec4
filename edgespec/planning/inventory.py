"""What there is to hold: graphs with their weights, decoders, towers and token tables, of a bundle
or of models known by their sizes alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np

from edgespec.bundle import Bundle, GraphSpec, Manifest
from edgespec.latency.geometry import TREE_ROWS, Decoder, Geometry, Tower
from edgespec.planning.stored import Tensor, bytes_of, stored_tensors
from edgespec.planning.weights import FLOAT_BYTES, Weights, weights_of

TOWERS = ("vision", "draft_vision")
CACHED = ("target", "draft")
SERVERS = "target_packed"
"""The graph that a server alone loads."""
TABLE_BYTES = 4
"""Of a number in a token table: float32, whatever the graphs' precision."""


@dataclass(frozen=True)
class Step:
    """A decoder with a KV cache, as its calls see it."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    widest: int
    """Columns of its widest matrix but the head."""
    logits: int
    """Tokens that it gives logits of."""
    max_positions: int

    def cache_row(self, size: int) -> int:
        """Bytes of one token's keys and values, ``size`` bytes a number."""
        return 2 * self.layers * self.kv_heads * self.head_dim * size


@dataclass(frozen=True)
class Encoder:
    """A vision tower over one picture."""

    rows: int
    """Patches, and a class token."""
    hidden: int
    widest: int


@dataclass(frozen=True)
class Held:
    """One graph. Weights that two graphs share are one in the files, and two in an engine."""

    role: str
    weights: Weights
    """All that the graph computes with;"""
    own: Weights
    """and what no graph before it stores."""
    loaded: Mapping[str, int] = field(default_factory=dict)
    """Bytes of ``weights`` in the precisions that it was exported in;"""
    stored: Mapping[str, int] = field(default_factory=dict)
    """and of ``own``."""
    shape: Step | Encoder | None = None
    copies_scores: bool = False
    """Whether attention is decomposed, so that scores exist twice."""

    def loaded_bytes(self, precision: str) -> int:
        """Of its weights in memory: counted where it was exported so, else computed."""
        return self.loaded.get(precision, self.weights.nbytes(precision))

    def stored_bytes(self, precision: str) -> int:
        """What it adds to the files."""
        return self.stored.get(precision, self.own.nbytes(precision))

    @property
    def drafts(self) -> bool:
        """Whether it is the draft's side."""
        return self.role.startswith("draft") or self.role == "compressor"


@dataclass(frozen=True)
class Inventory:
    """Everything that a plan counts."""

    name: str
    title: str
    graphs: tuple[Held, ...]
    tables: Mapping[str, tuple[int, int]]
    """Token tables [V, H] by side, "target" and "draft"; mapped from files."""
    visual_tokens: int
    draft_visual_tokens: int
    max_positions: int
    cache_bytes: Mapping[str, int] = field(default_factory=dict)
    """Bytes of a number in the KV cache, per precision that was exported."""
    variant: str = "vlm"

    @property
    def exported(self) -> tuple[str, ...]:
        """Precisions whose weights lie in files and were not computed."""
        return tuple(self.cache_bytes)

    def graph(self, role: str) -> Held | None:
        return next((graph for graph in self.graphs if graph.role == role), None)

    def cached_number(self, precision: str) -> int:
        """Bytes of a number in the KV cache."""
        return self.cache_bytes.get(precision, FLOAT_BYTES[precision])

    def without_draft(self) -> Inventory:
        """The target alone."""
        kept = tuple(graph for graph in self.graphs if not graph.drafts)
        return replace(self, graphs=kept, tables=_only(self.tables, "target"))

    def device_part(self) -> Inventory:
        """What a device holds whose target is a server's (``edgespec export --part device``)."""
        wanted = set()
        if self.variant != "vlm":  # it starts from the target's visual tokens
            wanted = {"vision", "projector"}
        elif self.graph("draft_vision") is None:
            wanted = {"vision"}
        kept = tuple(graph for graph in self.graphs if graph.drafts or graph.role in wanted)
        return replace(self, graphs=kept, tables=_only(self.tables, "draft"))


def _only(tables: Mapping[str, tuple[int, int]], side: str) -> dict[str, tuple[int, int]]:
    return {name: shape for name, shape in tables.items() if name == side}


def of_bundle(bundle: Bundle) -> Inventory:
    """A bundle, by its manifest and the tensors of its graphs. Raises BundleError for a graph file
    that cannot be read."""
    manifest = bundle.manifest
    flavours = _flavours(manifest)
    found = {
        precision: {spec.role: stored_tensors(bundle.file(spec.file)) for spec in specs}
        for precision, specs in flavours.items()
    }
    base = next((p for p in flavours if p in ("fp32", "fp16", "bf16")), next(iter(flavours)))
    graphs = tuple(
        _held(spec, base, found, manifest) for spec in flavours[base] if spec.role != SERVERS
    )
    tables = {
        role: table_shape(bundle, role) for role in CACHED if f"{role}.embed.npy" in manifest.files
    }
    visual = int(manifest.text["visual_tokens"])
    seen = (manifest.compressor or {}).get("draft_visual_tokens", visual)
    return Inventory(
        name=bundle.path.resolve().name,
        title=f"bundle {bundle.path.resolve().name}",
        graphs=graphs,
        tables=tables,
        visual_tokens=visual,
        draft_visual_tokens=int(seen),
        max_positions=int(manifest.text["max_positions"]),
        cache_bytes={precision: _cache_bytes(specs) for precision, specs in flavours.items()},
        variant=manifest.variant or "vlm",
    )


def _flavours(manifest: Manifest) -> dict[str, tuple[GraphSpec, ...]]:
    """The graphs of the first lowering in every precision."""
    lowerings: dict[str, str] = {}
    for spec in manifest.graphs:
        lowerings.setdefault(spec.precision, spec.lowering)
    return {
        precision: tuple(
            s for s in manifest.graphs if (s.lowering, s.precision) == (lowering, precision)
        )
        for precision, lowering in lowerings.items()
    }


def _held(
    spec: GraphSpec,
    base: str,
    found: Mapping[str, Mapping[str, tuple[Tensor, ...]]],
    manifest: Manifest,
) -> Held:
    """``found``: the tensors of every graph, by precision and role."""
    tensors, step = found[base][spec.role], "layers" in spec.meta
    own = {p: _own(roles, spec.role) for p, roles in found.items() if spec.role in roles}
    proposed = int(spec.meta.get("proposed", 0))  # by a draft whose head was trimmed
    vocabularies = {_logits(spec), proposed, int(manifest.text["vocab_size"])}
    weights = weights_of(tensors, vocabularies, quantised=step)
    shape: Step | Encoder | None = None
    if spec.role in CACHED:
        shape = _step(spec, weights, tensors)
    elif spec.role in TOWERS:
        shape = _encoder(spec, tensors)
    return Held(
        role=spec.role,
        weights=weights,
        own=weights_of(own[base], vocabularies, quantised=step),
        loaded={p: bytes_of(roles[spec.role]) for p, roles in found.items() if spec.role in roles},
        stored={p: bytes_of(tensors) for p, tensors in own.items()},
        shape=shape,
        copies_scores=spec.lowering == "portable",
    )


def _own(roles: Mapping[str, tuple[Tensor, ...]], role: str) -> tuple[Tensor, ...]:
    """The tensors of a graph that none before it points at."""
    known: set[tuple[str, int]] = set()
    for name, tensors in roles.items():
        if name == role:
            return tuple(tensor for tensor in tensors if tensor.place not in known)
        known |= {tensor.place for tensor in tensors}
    return ()


def _step(spec: GraphSpec, weights: Weights, tensors: tuple[Tensor, ...]) -> Step:
    meta = spec.meta
    width = int(meta["head_dim"])
    out = next((t.dims[0] for t in tensors if ".o.weight" in t.name), int(meta["hidden"]))
    return Step(
        layers=int(meta["layers"]),
        hidden=int(meta["hidden"]),
        heads=max(out // width, 1),
        kv_heads=int(meta["kv_heads"]),
        head_dim=width,
        widest=max((columns for _, columns in weights.matrices), default=int(meta["hidden"])),
        logits=_logits(spec),
        max_positions=int(meta["max_positions"]),
    )


def _encoder(spec: GraphSpec, tensors: tuple[Tensor, ...]) -> Encoder:
    _, rows, hidden = (axis if isinstance(axis, int) else 1 for axis in spec.outputs[0].axes)
    widest = max((t.dims[1] for t in tensors if len(t.dims) == 2), default=hidden)
    return Encoder(rows + 1, hidden, widest)


def _logits(spec: GraphSpec) -> int:
    return next((int(t.axes[-1]) for t in spec.outputs if t.name == "logits"), 0)


def _cache_bytes(specs: tuple[GraphSpec, ...]) -> int:
    """Of a number, as the graphs take it."""
    sizes = {"float32": 4, "float16": 2, "bfloat16": 2}
    found = [t.dtype for s in specs for t in s.inputs if t.name.startswith("past_key.")]
    return max((sizes[dtype] for dtype in found), default=4)


def table_shape(bundle: Bundle, role: str) -> tuple[int, int]:
    """[V, H] of a token table, by its header."""
    rows, columns = np.load(bundle.file(f"{role}.embed.npy"), mmap_mode="r").shape
    return int(rows), int(columns)


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
        tables={side: (decoder.vocab, decoder.hidden) for side, decoder in sides.items()},
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
    head = prod((decoder.hidden, decoder.vocab))
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
    weights = Weights(layer * decoder.layers, head + rotary)
    return Held(role, weights, weights, shape=shape)
