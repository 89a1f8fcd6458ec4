"""Which sizes are clocked: every small one, edges of kernels' tiles, and as far as asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgespec.bundle import Manifest
from edgespec.errors import ConfigError

ROWS = (*range(1, 17), 17, 20, 24, 28, 32, 33, 40, 48, 64, 65)
"""Every size where trees mostly are; beyond them a grid, with the first row of new tiles."""
QUICK_ROWS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 17, 24, 32, 33, 48, 65)
DRAFT_ROWS = (1, 2, 3, 4, 5, 6, 8, 12, 16)
QUICK_DRAFT_ROWS = (1, 2, 4, 8)
WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16)
QUICK_WIDTHS = (1, 2, 4, 8)
SHORT = 64
"""Tokens of a short prompt."""
PICTURES = (1, 2, 4)
TOP_K = 4
"""Children proposed below a node while clocking: as wide policies do."""
SEGMENTS = 2
"""Chain calls of one round: the root's, and one that goes on."""
DEFAULT_NODES = 64


@dataclass(frozen=True)
class Sizes:
    """The points of every curve; empty where the bundle has no such graph."""

    rows: tuple[int, ...]
    contexts: tuple[int, ...]
    prompts: tuple[int, ...]
    pictures: tuple[int, ...]
    unseen: tuple[int, ...] = ()
    widths: tuple[int, ...] = ()
    draft_contexts: tuple[int, ...] = ()
    draft_prompts: tuple[int, ...] = ()
    top_k: int = 1


def sizes_of(
    manifest: Manifest,
    *,
    quick: bool = False,
    max_nodes: int = DEFAULT_NODES,
    max_context: int | None = None,
) -> Sizes:
    """What to clock of a bundle: trees of up to ``max_nodes`` nodes over up to ``max_context``
    cached rows (default: all that it takes). Raises ConfigError for more than it takes."""
    positions = int(manifest.text["max_positions"])
    if max_context is not None and not 1 <= max_context < positions:
        raise ConfigError(
            f"--max-context is {max_context}; this bundle's context holds {positions} tokens, so "
            f"it must be from 1 to {positions - 1}"
        )
    longest = max_context or positions - 1
    visual = int(manifest.text["visual_tokens"])
    fitting = [count for count in PICTURES if count * visual < positions]
    pictures = tuple(fitting[: 1 if quick else None]) or PICTURES[:1]
    target = Sizes(
        rows=_rows(manifest, max_nodes, QUICK_ROWS if quick else ROWS),
        contexts=_contexts(longest, quick),
        prompts=_prompts(longest, quick),
        pictures=pictures if visual else (),
    )
    return _with_draft(target, manifest, longest, quick)


def smallest(manifest: Manifest, prompt: int) -> Sizes:
    """One point of everything, around a prompt of ``prompt`` tokens or what fits of it."""
    whole = sizes_of(manifest, quick=True, max_nodes=1)
    return replace(
        whole,
        contexts=(min(prompt, whole.contexts[-1]),),
        prompts=(min(prompt, whole.prompts[-1]),),
        pictures=whole.pictures[:1],
        unseen=whole.unseen[:1],
        widths=whole.widths[:1],
        draft_contexts=tuple(min(prompt, size) for size in whole.draft_contexts[-1:]),
        draft_prompts=tuple(min(prompt, size) for size in whole.draft_prompts[-1:]),
    )


def _with_draft(target: Sizes, manifest: Manifest, longest: int, quick: bool) -> Sizes:
    draft, chain = manifest.graph("draft"), manifest.graph("draft_chain")
    if draft is None:
        return target
    rows, top_k = int(draft.meta["tree_rows"]), min(TOP_K, int(draft.meta["top_k"]))
    unseen = _up_to(rows, QUICK_DRAFT_ROWS if quick else DRAFT_ROWS)
    widths = _up_to(rows, QUICK_WIDTHS if quick else WIDTHS)
    # A draft whose context is full proposes nothing, so what is clocked has to fit.
    levels = SEGMENTS * (int(chain.meta["steps"]) if chain else 0) + 1
    most = min(longest, int(draft.meta["max_positions"]) - unseen[-1] - levels)
    if most < 1:
        raise ConfigError(
            f"the draft's context of {draft.meta['max_positions']} tokens is too short to be "
            "measured"
        )
    return replace(
        target,
        unseen=unseen,
        widths=widths if top_k > 1 else (1,),  # one child each never makes a wider beam
        draft_contexts=_contexts(most, quick),
        draft_prompts=_prompts(most, quick),
        top_k=top_k,
    )


def _rows(manifest: Manifest, max_nodes: int, grid: Sequence[int]) -> tuple[int, ...]:
    """``grid`` as far as it goes, every 32nd row beyond it, and the largest tree's."""
    metas = [graph.meta for graph in manifest.graphs if "tree_rows" in graph.meta]
    most = min(int(meta["tree_rows"]) for meta in metas)
    if not 1 <= max_nodes <= most:
        raise ConfigError(
            f"--max-nodes is {max_nodes}; this bundle's graphs take trees of 1 to {most} nodes"
        )
    last = max_nodes + 1
    beyond = range(grid[-1] - 1 + 32, last, 32)
    return tuple(sorted({*(rows for rows in grid if rows <= last), *beyond, last}))


def _up_to(most: int, grid: Sequence[int]) -> tuple[int, ...]:
    return tuple(size for size in grid if size <= most)


def _contexts(most: int, quick: bool) -> tuple[int, ...]:
    """A short prompt, half of the context, and all of it."""
    short = min(SHORT, max(most // 4, 1))
    return tuple(sorted({short, most} if quick else {short, max(most // 2, 1), most}))


def _prompts(most: int, quick: bool) -> tuple[int, ...]:
    """Powers of two (quick: of eight) from a short prompt's, and the longest."""
    sizes, size = [], min(SHORT, max(most // 4, 1))
    while size < most:
        sizes.append(size)
        size *= 8 if quick else 2
    return (*sizes, most)
