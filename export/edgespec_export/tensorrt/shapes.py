"""How large the inputs of a graph may be in an engine: its optimisation profiles."""

from __future__ import annotations

from dataclasses import dataclass

from edgespec.bundle import GraphSpec, Manifest, TensorSpec
from edgespec.engines import STEPS, Profile, Span
from edgespec.errors import BundleError, ConfigError

BLOCK = 64
"""Caches are whole blocks of rows, as the runtime's are."""
IMAGES = 4
"""Most pictures of one call of a vision graph."""
FUSED_ROWS = 128
"""Least "most" rows of a native profile. TensorRT-RTX 1.7.1 does not build masked attention over a
cache for 2 to 64 rows at most (an error of its compiler, at any capacity), and does from 65."""
PREFILL_ROWS = 1024
MAX_ROWS = 128
NEEDED = ("prefill", "tree")
WHOLE = "whole"


@dataclass(frozen=True)
class Sizes:
    """Rows and tokens that the engines of one bundle are built for."""

    context: int
    capacity: int
    prefill_rows: int
    max_rows: int
    visual_tokens: int
    profiles: tuple[str, ...] = STEPS
    """Of the step graphs."""


def sizes_of(
    manifest: Manifest,
    context: int | None = None,
    prefill_rows: int | None = None,
    max_rows: int | None = None,
    profiles: tuple[str, ...] = STEPS,
) -> Sizes:
    """What was asked for, or else the whole context, prompts in calls of up to 1024 rows and trees
    of up to 128 rows. Raises ConfigError for more than the graphs can do."""
    if not set(NEEDED) <= set(profiles) <= set(STEPS):
        raise ConfigError(
            f"--profiles {','.join(profiles)}: there are {', '.join(STEPS)}, of which single may "
            "be left out"
        )
    steps = [graph.meta for graph in manifest.graphs if is_step(graph)]
    longest = min((int(meta["max_positions"]) for meta in steps), default=1)
    spare = min((int(meta["tree_rows"]) for meta in steps), default=0)
    context = context or longest
    max_rows = max_rows or min(MAX_ROWS, spare or MAX_ROWS)
    prefill_rows = prefill_rows or min(PREFILL_ROWS, context)
    if context > longest:
        raise ConfigError(f"--context {context} is more than the model's {longest} positions")
    if spare and 2 * max_rows > spare:
        raise ConfigError(
            f"--max-rows {max_rows} is too many: two trees have to fit into the {spare} spare rows "
            "of the graphs"
        )
    if prefill_rows > context:
        raise ConfigError(f"--prefill-rows {prefill_rows} is more than the context of {context}")
    # A tree being verified and the next one drafted ahead of it may lie behind the context.
    capacity = -(-(context + 2 * max_rows) // BLOCK) * BLOCK
    named = tuple(name for name in STEPS if name in profiles)
    visual = _visual_tokens(manifest)
    return Sizes(context, capacity, prefill_rows, max_rows, visual, named)


def is_step(graph: GraphSpec) -> bool:
    """Whether a graph steps over a KV cache."""
    return "layers" in graph.meta


def profiles_of(graph: GraphSpec, sizes: Sizes) -> tuple[Profile, ...]:
    """The profiles of a graph: those of ``sizes``, or one for a graph without steps."""
    if not is_step(graph):
        axes = {"N": (1, 1, IMAGES), "P": (1, sizes.visual_tokens, sizes.visual_tokens)}
        return (_profile(WHOLE, graph, axes),)
    tree = (1, max(1, sizes.max_rows // 2), _most(graph, sizes.max_rows))
    prefill = (1, sizes.prefill_rows, _most(graph, sizes.prefill_rows))
    rows = {
        "prefill": (prefill, (1, 1, tree[2])),
        "tree": (tree, tree),
        "single": ((1, 1, 1), (1, 1, 1)),
    }
    return tuple(
        _profile(name, graph, _step_axes(graph, sizes, *rows[name])) for name in sizes.profiles
    )


def static_axes(graph: GraphSpec, sizes: Sizes) -> dict[str, int]:
    """Named axes that must be sizes in the graph itself: TensorScatter takes a static cache alone,
    and the mask over a whole cache is as long as it."""
    if is_step(graph) and graph.meta["mask_span"] == "capacity":
        return {"C": sizes.capacity, "T": sizes.capacity}
    return {}


def _most(graph: GraphSpec, rows: int) -> int:
    return max(rows, FUSED_ROWS) if graph.meta["mask_span"] == "capacity" else rows


Extent = tuple[int, int, int]


def _step_axes(graph: GraphSpec, sizes: Sizes, new: Extent, picked: Extent) -> dict[str, Extent]:
    """Every named axis of a step graph; ``new`` rows come in, ``picked`` ones get logits."""
    capacity = sizes.capacity
    cache = (BLOCK, capacity, capacity)
    if static_axes(graph, sizes):
        cache = (capacity, capacity, capacity)
    behind = tuple(a + b for a, b in zip(cache, new, strict=True))
    mask = behind if graph.meta["mask_span"] == "behind" else cache
    return {
        "B": (1, 1, 1),
        "S": new,
        "R": picked,
        "C": cache,
        "T": (mask[0], mask[1], mask[2]),
        "N": (1, 1, picked[2]),
        "W": (1, 1, int(graph.meta.get("proposed", 1))),
    }


def _profile(name: str, graph: GraphSpec, axes: dict[str, Extent]) -> Profile:
    return Profile(name, {tensor.name: _span(graph, tensor, axes) for tensor in graph.inputs})


def _span(graph: GraphSpec, tensor: TensorSpec, axes: dict[str, Extent]) -> Span:
    sizes = []
    for axis in tensor.axes:
        if isinstance(axis, str) and axis not in axes:
            raise BundleError(
                f"{graph.file}: input '{tensor.name}' has an axis '{axis}' that `edgespec build` "
                "does not know; export the bundle again with this edgespec"
            )
        sizes.append((axis, axis, axis) if isinstance(axis, int) else axes[axis])
    least, best, most = zip(*sizes, strict=True)
    return Span(least, best, most)


def _visual_tokens(manifest: Manifest) -> int:
    """Most visual tokens of a picture, before any compressor."""
    towers = [graph for graph in manifest.graphs if graph.role in ("vision", "draft_vision")]
    counts = [int(graph.outputs[0].axes[1]) for graph in towers]
    return max([int(manifest.text["visual_tokens"]), *counts])
