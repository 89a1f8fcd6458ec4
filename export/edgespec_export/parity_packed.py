"""The packed graph against the step graph, which is compared with torch itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgespec_export.comparing import Graphs, compared, random_tree, text_ids
from edgespec_export.geometry import ModelGeometry
from edgespec_runtime.engines import Ask, StepSession
from edgespec_runtime.kv import CacheShape, KVCache
from edgespec_runtime.prefill import prefill

AGAINST = "the step graph"


def check_packed(graphs: Graphs, geometry: ModelGeometry) -> dict[str, Any]:
    """A tree for every seat, below contexts of unequal lengths: together, and one by one."""
    rng, meta = np.random.default_rng(0), graphs.specs["target_packed"].meta
    table = graphs.table("target")
    shape = CacheShape.of(graphs.specs["target"])
    pool, outputs = graphs.pool(), ("logits", *graphs.wanted("target"))
    asks: list[tuple[StepSession, Ask]] = []
    for seat in range(int(meta["sessions"])):
        cache = KVCache(shape, geometry.text.max_positions)
        session = pool.open(cache, outputs)
        tree = random_tree(geometry, rng)
        room = max(1, geometry.text.max_positions - len(tree) - 1)
        ids = text_ids(geometry, min(2 + seat, room), rng)
        prefill(session, table[ids])
        mask = np.ones((len(tree) + 1, cache.length + len(tree) + 1), dtype=np.bool_)
        tree.write_mask(mask[:, cache.length :])
        positions = [cache.length, *(cache.length + depth for depth in tree.depths)]
        asks.append((session, Ask(table[[ids[-1], *tree.tokens]], positions, mask)))
    together = [[array.copy() for array in answer] for answer in pool.step(asks)]
    figures: dict[str, Any] = {}
    for (session, ask), answer in zip(asks, together, strict=True):
        session.cache.commit(())
        alone = session.step(ask.embeds, ask.positions, ask.mask)
        for found, wanted in zip(answer, alone, strict=True):
            now = compared("target_packed", found, wanted, graphs.against(AGAINST))
            if now["max_abs_diff"] >= figures.get("max_abs_diff", 0.0):
                figures = now
    return figures
