"""How much memory a model takes while it runs: exact where sizes decide it (weights as exported, KV
caches), an estimate where an engine does (buffers, what a session costs), and said which.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from edgespec.planning.inventory import CACHED, Encoder, Held, Inventory, Step
from edgespec.planning.weights import ON_GPU, float_bytes

CHUNK = 256
"""Rows of one prefill call of the runtime."""
BLOCK = 64
"""Rows that the capacity of a KV cache is rounded up to."""
FLOAT32 = 4
TOWER_HEAD = 64
"""Width of a head in the CLIP and SigLIP towers that are published; manifests do not tell."""
PAGE_AROUND = 65536
"""Bytes of a mapped file that one look-up brings in at most (Linux maps 16 pages at once)."""
SESSION_BYTES = 2**20
"""Of a loaded graph beyond its weights (measured with ONNX Runtime on the CPU: up to 1 MB);"""
PROGRAM_BYTES = 22 * 2**20
"""and of everything else: tokenizer, template and reading pictures (12 MB), what an engine sets up
with its first graph (10 MB)."""


@dataclass(frozen=True)
class Setting:
    """What is asked of the device."""

    precision: str
    context: int
    """Tokens of prompt, pictures and answer together."""
    nodes: int = 64
    """Of the largest tree: spare rows in both caches."""
    sessions: int = 1
    """Answers at the same time, each with caches of its own."""
    lowering: str = ON_GPU
    """What is not exported yet is counted as this one has it: ON_GPU or ON_CPU."""


@dataclass(frozen=True)
class Item:
    """One line of the bill. ``exact``: by sizes that are known; else an estimate."""

    what: str
    """weights, tables, cache, workspace or program"""
    role: str
    nbytes: int
    exact: bool


def demand(inventory: Inventory, setting: Setting) -> tuple[Item, ...]:
    """All that is held beyond the interpreter and the engine themselves."""
    return (
        *_weights(inventory, setting),
        *_tables(inventory, setting),
        *_caches(inventory, setting),
        *_workspaces(inventory, setting),
        Item("program", "", PROGRAM_BYTES, False),
    )


def total(items: tuple[Item, ...]) -> int:
    """Bytes."""
    return sum(item.nbytes for item in items)


def capacity(tokens: int, nodes: int) -> int:
    """Rows of a KV cache: every token, a tree and its root, in whole blocks."""
    return -(-(tokens + nodes + 1) // BLOCK) * BLOCK


def tokens_in(inventory: Inventory, role: str, context: int) -> int:
    """Tokens in that decoder's cache of a context with one picture, of which a draft sees less."""
    if role == "target":
        return context
    saved = inventory.visual_tokens - inventory.draft_visual_tokens
    return max(context - saved, 1)


def _weights(inventory: Inventory, setting: Setting) -> Iterator[Item]:
    for graph in inventory.graphs:
        nbytes = graph.loaded_bytes(setting.precision, setting.lowering)
        yield Item("weights", graph.role, nbytes, setting.precision in graph.loaded)


def _tables(inventory: Inventory, setting: Setting) -> Iterator[Item]:
    """Mapped from their files: only what was looked up is in memory, at most the whole."""
    for side, (tokens, row) in inventory.tables.items():
        looked_up = setting.context * max(PAGE_AROUND, row)
        yield Item("tables", side, min(tokens * row, looked_up), False)


def _caches(inventory: Inventory, setting: Setting) -> Iterator[Item]:
    size = inventory.cached_number(setting.precision, setting.lowering)
    for role, step in _steps(inventory):
        rows = capacity(tokens_in(inventory, role, setting.context), setting.nodes)
        yield Item("cache", role, setting.sessions * rows * step.cache_row(size), True)


def _workspaces(inventory: Inventory, setting: Setting) -> Iterator[Item]:
    size = float_bytes(setting.precision, setting.lowering)
    for graph in inventory.graphs:
        buffers = 0
        if isinstance(graph.shape, Encoder):
            buffers = _encoding(graph.shape, size)
        elif isinstance(graph.shape, Step):
            tokens = tokens_in(inventory, graph.role, setting.context)
            buffers = _stepping(graph, graph.shape, tokens, setting.nodes, size)
            buffers += graph.largest_bytes(setting.precision, setting.lowering)
        yield Item("workspace", graph.role, buffers + SESSION_BYTES, False)


def _stepping(graph: Held, step: Step, tokens: int, nodes: int, size: int) -> int:
    """The larger of a prefill chunk, of whose rows one is asked for logits, and a tree's
    verification, where all are."""
    columns = capacity(tokens, nodes)
    chunk = _pass(graph, step, min(CHUNK, tokens), columns, 1, size)
    return max(chunk, _pass(graph, step, nodes + 1, columns, nodes + 1, size))


def _pass(graph: Held, step: Step, rows: int, columns: int, picked: int, size: int) -> int:
    """Buffers of one call: the residual stream and its norm, the widest matrix' outputs and what is
    made of them, scores in float32, the mask, logits (with a draft's log-softmax)."""
    stream = rows * (2 * step.hidden + step.widest + step.widest // 2) * size
    scores = step.heads * rows * columns * FLOAT32 * (2 if graph.copies_scores else 1)
    logits = picked * step.logits * FLOAT32 * (2 if graph.drafts else 1)
    return stream + scores + rows * columns + logits


def _encoding(tower: Encoder, size: int) -> int:
    """One picture through a tower: as in ``_pass``, every row seeing every other, and pixels."""
    heads = max(tower.hidden // TOWER_HEAD, 1)
    stream = tower.rows * (2 * tower.hidden + tower.widest + tower.widest // 2) * size
    return stream + heads * tower.rows**2 * FLOAT32


def _steps(inventory: Inventory) -> Iterator[tuple[str, Step]]:
    for role in CACHED:
        graph = inventory.graph(role)
        if graph is not None and isinstance(graph.shape, Step):
            yield role, graph.shape
