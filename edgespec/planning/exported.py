"""The inventory of a bundle: its manifest, and the tensors of its graphs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgespec.bundle import Bundle, GraphSpec, Manifest
from edgespec.planning.inventory import CACHED, Encoder, Held, Inventory, Step
from edgespec.planning.stored import Tensor, bytes_of, stored_tensors
from edgespec.planning.weights import Weights, product_shape, weights_of

TOWERS = ("vision", "draft_vision")
SERVERS = "target_packed"
"""The graph that a server alone loads."""
SCALE_BYTES = 4
"""float32, one for each row of a token table in int8."""


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
        role: _table(bundle, role) for role in CACHED if f"{role}.embed.npy" in manifest.files
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
    vocabularies = {spec.scored, proposed, int(manifest.text["vocab_size"])}
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
    shapes = (product_shape(tensor) for tensor in tensors if ".o.weight" in tensor.name)
    out = next((shape[0] for shape in shapes if shape), int(meta["hidden"]))
    return Step(
        layers=int(meta["layers"]),
        hidden=int(meta["hidden"]),
        heads=max(out // width, 1),
        kv_heads=int(meta["kv_heads"]),
        head_dim=width,
        widest=max((columns for _, columns in weights.matrices), default=int(meta["hidden"])),
        logits=spec.scored,
        max_positions=int(meta["max_positions"]),
    )


def _encoder(spec: GraphSpec, tensors: tuple[Tensor, ...]) -> Encoder:
    _, rows, hidden = (axis if isinstance(axis, int) else 1 for axis in spec.outputs[0].axes)
    widest = max((t.dims[1] for t in tensors if len(t.dims) == 2), default=hidden)
    return Encoder(rows + 1, hidden, widest)


def _cache_bytes(specs: tuple[GraphSpec, ...]) -> int:
    """Of a number, as the graphs take it."""
    sizes = {"float32": 4, "float16": 2, "bfloat16": 2}
    found = [t.dtype for s in specs for t in s.inputs if t.name.startswith("past_key.")]
    return max((sizes[dtype] for dtype in found), default=4)


def _table(bundle: Bundle, role: str) -> tuple[int, int]:
    """Tokens and bytes of a row of a token table, by its header; a row's scale is one of them."""
    rows = np.load(bundle.file(f"{role}.embed.npy"), mmap_mode="r")
    scaled = f"{role}.embed.scale.npy" in bundle.manifest.files
    return len(rows), rows.shape[1] * rows.itemsize + SCALE_BYTES * scaled
