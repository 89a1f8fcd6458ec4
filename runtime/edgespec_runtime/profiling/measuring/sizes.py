"""Which sizes are clocked: every small one, edges of kernels' tiles, and as far as asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from edgespec.errors import ConfigError
from edgespec_runtime.model import Model

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
    model: Model,
    *,
    quick: bool = False,
    max_nodes: int = DEFAULT_NODES,
    max_context: int | None = None,
) -> Sizes:
    """What to clock of ``model``: trees of up to ``max_nodes`` nodes over up to ``max_context``
    cached rows (default: all that it takes). Raises ConfigError for more than it takes."""
    positions = int(model.manifest.text["max_positions"])
    rows = _rows(model, max_nodes, QUICK_ROWS if quick else ROWS)
    if max_context is not None and not 1 <= max_context < positions:
        raise ConfigError(
            f"--max-context is {max_context}; this bundle's context holds {positions} tokens, so "
            f"it must be from 1 to {positions - 1}"
        )
    asked = max_context or positions - 1
    visual = int(model.manifest.text["visual_tokens"])
    target = Sizes(
        rows=rows,
        contexts=_contexts(asked, quick),
        prompts=_prompts(asked, quick),
        pictures=tuple(n for n in PICTURES[: 1 if quick else None] if n * visual < positions)
        or (1,),
    )
    return _with_draft(target, model, asked, quick) if model.draft else target


def smallest(model: Model, prompt: int) -> Sizes:
    """One point of everything, around a prompt of ``prompt`` tokens or what fits of it."""
    whole = sizes_of(model, quick=True, max_nodes=1)
    return replace(
        whole,
        contexts=(min(prompt, whole.contexts[-1]),),
        prompts=(min(prompt, whole.prompts[-1]),),
        pictures=(1,),
        unseen=whole.unseen[:1],
        widths=whole.widths[:1],
        draft_contexts=tuple(min(prompt, size) for size in whole.draft_contexts[-1:]),
        draft_prompts=tuple(min(prompt, size) for size in whole.draft_prompts[-1:]),
    )


def _with_draft(target: Sizes, model: Model, asked: int, quick: bool) -> Sizes:
    draft = model.draft
    assert draft is not None
    meta = draft.step.spec.meta
    unseen = _up_to(int(meta["tree_rows"]), QUICK_DRAFT_ROWS if quick else DRAFT_ROWS)
    widths = _up_to(int(meta["tree_rows"]), QUICK_WIDTHS if quick else WIDTHS)
    # A draft whose context is full proposes nothing, so what is clocked has to fit.
    levels = max(SEGMENTS * draft.chain_steps, len(widths)) + 1
    most = min(asked, int(meta["max_positions"]) - unseen[-1] - levels)
    if most < 1:
        raise ConfigError(
            f"the draft's context of {meta['max_positions']} tokens is too short to be measured"
        )
    return replace(
        target,
        unseen=unseen,
        widths=widths,
        draft_contexts=_contexts(most, quick),
        draft_prompts=_prompts(most, quick),
        top_k=min(TOP_K, int(meta["top_k"])),
    )


def _rows(model: Model, max_nodes: int, grid: Iterable[int]) -> tuple[int, ...]:
    most = min(int(step.spec.meta["tree_rows"]) for step in model.steps.values())
    if max_nodes < 1:
        raise ConfigError(f"--max-nodes is {max_nodes}; it must be at least 1")
    if max_nodes > DEFAULT_NODES and max_nodes > most:
        raise ConfigError(
            f"--max-nodes is {max_nodes}; this bundle's graphs take trees of up to {most} nodes"
        )
    last = min(max_nodes, most) + 1
    kept = [rows for rows in grid if rows <= last]
    step = max(grid)
    kept += range(step + 31, last, 32)
    return tuple(sorted({*kept, last}))


def _up_to(most: int, grid: Iterable[int]) -> tuple[int, ...]:
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
