"""The KV cache on an accelerator: what commits move, against the host's cache."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgespec_runtime.engines.device_cache import DeviceCache, moves
from edgespec_runtime.engines.memory import Shelf
from edgespec_runtime.kv import CacheShape, KVCache
from tests.support.host_memory import HostMemory

SHAPE = CacheShape(layers=2, kv_heads=3, head_dim=4, dtype="float32")
ROWS = st.sets(st.integers(0, 20), min_size=1).map(sorted)


def full_shape(cache: DeviceCache) -> tuple[int, ...]:
    return (SHAPE.layers, 2, 1, SHAPE.kv_heads, cache.capacity, SHAPE.head_dim)


@given(st.lists(ROWS, min_size=1, max_size=4), st.integers(0, 3))
def test_commits_move_what_the_host_cache_moves(rounds: list[list[int]], settled: int) -> None:
    memory = HostMemory()
    device = DeviceCache(memory, Shelf(memory), SHAPE, 64)
    host = KVCache(CacheShape(SHAPE.layers, SHAPE.kv_heads, SHAPE.head_dim), 64)
    rows = memory.floats(device.block, full_shape(device))
    assert not rows.any(), "a fresh cache must hold numbers, or a masked row turns all into NaN"
    rng = np.random.default_rng(len(rounds))
    rows[:] = host.rows[:] = rng.standard_normal(rows.shape)
    for kept in rounds[:2]:
        for cache in (device, host):
            cache.pending = 21 + settled
            cache.settle(settled)
            cache.commit(kept)
        assert (device.length, device.pending) == (host.length, 0)
        assert np.array_equal(rows, host.rows)


@given(ROWS)
def test_moves_are_ascending_and_never_overlap(kept: list[int]) -> None:
    line, model = np.arange(40), np.arange(40)
    for target, source, rows in moves(kept):
        assert target < source and target + rows <= source, "a copy must not overlap its target"
        line[target : target + rows] = line[source : source + rows].copy()
    model[: len(kept)] = kept
    assert line[: len(kept)].tolist() == model[: len(kept)].tolist()


def test_a_run_is_one_copy_over_all_layers_and_heads() -> None:
    memory = HostMemory()
    cache = DeviceCache(memory, Shelf(memory), SHAPE, 64)
    cache.pending = 12
    cache.commit([0, 1, 5, 6, 7, 11])
    assert memory.copies == 2, "rows 5-7 are one run, row 11 another, rows 0 and 1 stay"
    assert (cache.length, cache.pending) == (6, 0)
    cache.pending = 3
    cache.commit([0, 1, 2])
    assert memory.copies == 2, "rows that lie where they belong are not copied"


def test_memory_of_a_dropped_cache_serves_the_next_one_clean() -> None:
    memory = HostMemory()
    shelf = Shelf(memory)
    first = DeviceCache(memory, shelf, SHAPE, 64)
    block = first.block
    memory.floats(block, full_shape(first))[:] = np.nan
    del first
    second = DeviceCache(memory, shelf, SHAPE, 50)
    assert second.block is block, "recorded launches hold for these addresses"
    assert not memory.floats(block, full_shape(second)).any()
    assert DeviceCache(memory, shelf, SHAPE, 65).block is not block
