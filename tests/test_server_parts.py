"""Slots, reuse, the table of sessions, and the pictures a server keeps."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgespec.errors import ConfigError
from edgespec_runtime.kv import CacheShape
from edgespec_runtime.server.capacity import Capacity
from edgespec_runtime.server.pictures import Pictures
from edgespec_runtime.server.reuse import codes_of, common
from edgespec_runtime.server.slots import Slot, Slots
from edgespec_runtime.server.table import Session, Table
from edgespec_runtime.wire.refusal import Reason, Refusal

SHAPE = CacheShape(layers=2, kv_heads=1, head_dim=4)


def filled(slots: Slots, tenant: str, codes: list[int]) -> Slot:
    """A taken slot that holds these rows; each row's numbers are its code."""
    slot = slots.take()
    assert slot is not None
    slot.prepare(tenant, np.array(codes), 0, slots.all)
    slot.cache.rows[..., : len(codes), :] = np.array(codes, dtype=np.float32)[:, None]
    slot.cache.length = len(codes)
    slot.note(codes)
    return slot


def holds(slot: Slot) -> list[float]:
    rows = slot.cache.rows[:, :, 0, 0, : slot.cache.length, :]
    assert (rows == rows[0, 0, :, 0][:, None]).all()
    return [float(x) for x in rows[0, 0, :, 0]]


def test_a_slot_takes_the_longest_prefix_of_its_tenant() -> None:
    slots = Slots(SHAPE, 4, 64)
    filled(slots, "a", [1, 2, 3, 4, 5])
    filled(slots, "a", [1, 2, 9])
    filled(slots, "b", [1, 2, 3, 4, 5, 6])
    last = slots.take()
    assert last is not None and slots.take() is None
    wanted = np.array([1, 2, 3, 4, 5, 6])
    assert last.prepare("a", wanted, 6, slots.all) == 5
    assert holds(last) == [1, 2, 3, 4, 5]
    assert last.prepare("a", wanted, 3, slots.all) == 3  # no more than it may
    assert holds(last) == [1, 2, 3] == last.codes.tolist()
    assert last.prepare("c", wanted, 6, slots.all) == 0
    assert last.prepare("b", wanted, 6, slots.all) == 6
    assert holds(last) == [1, 2, 3, 4, 5, 6]


def test_own_rows_stay_where_they_are() -> None:
    slots = Slots(SHAPE, 2, 64)
    own, other = filled(slots, "a", [1, 2, 3, 4]), filled(slots, "a", [1, 2, 3, 4, 5])
    other.cache.rows[..., :4, :] = 77.0
    assert own.prepare("a", np.array([1, 2, 3, 4, 5, 6]), 6, slots.all) == 5
    assert holds(own) == [1, 2, 3, 4, 5]  # only what it lacked was copied


def test_broken_rows_are_nobodys_and_become_zeros() -> None:
    slots = Slots(SHAPE, 2, 64)
    broken = filled(slots, "a", [1, 2, 3])
    broken.cache.rows[...] = np.nan
    broken.spoil()
    fresh = slots.take()
    assert fresh is not None
    assert fresh.prepare("a", np.array([1, 2, 3]), 3, slots.all) == 0
    slots.give_back(broken)
    again = slots.take()
    assert again is broken
    assert again.prepare("a", np.array([1, 2, 3]), 3, slots.all) == 0
    assert (slots.rows == 0).all()


@pytest.mark.parametrize("width", [4, 16])  # 16: a slot's rows of a layer are whole pages
def test_free_slots_let_go_of_their_memory(width: int) -> None:
    slots = Slots(CacheShape(layers=2, kv_heads=1, head_dim=width), 3, 64)
    kept, freed = filled(slots, "a", [1, 2, 3]), filled(slots, "a", [1, 2, 4])
    slots.give_back(freed)
    for _ in slots.shrink():
        pass
    assert (freed.cache.rows == 0).all() and freed.codes.tolist() == []
    assert holds(kept) == [1, 2, 3]
    taken = [slots.take(), slots.take()]
    assert freed in taken
    assert freed.prepare("a", np.array([1, 2, 4]), 3, slots.all) == 2
    assert holds(freed) == [1, 2]


@pytest.mark.parametrize("dtype, size", [("float16", 2), ("bfloat16", 2), ("float32", 4)])
def test_slots_take_what_a_graphs_cache_takes(dtype: str, size: int) -> None:
    shape = CacheShape(layers=2, kv_heads=1, head_dim=4, dtype=dtype)
    slots = Slots(shape, 3, 64)
    assert shape.row_bytes == 2 * 2 * 4 * size
    assert slots.slot_bytes == 64 * shape.row_bytes
    cache = slots.all[1].cache
    assert cache.rows.dtype == shape.storage
    cache.rows[..., :2, :] = 1
    cache.pending = 2
    cache.commit([1])
    assert slots.rows[:, :, 1, :, :2].all() and not slots.rows[:, :, 2].any()


def test_unused_slots_go_first_then_those_given_back_longest_ago() -> None:
    slots = Slots(SHAPE, 3, 64)
    taken = [filled(slots, "a", [i]) for i in range(2)]
    assert slots.held == 2
    slots.give_back(taken[1])
    slots.give_back(taken[0])
    assert [slots.take() for _ in range(4)] == [slots.all[2], taken[1], taken[0], None]


@given(st.lists(st.integers(0, 2), max_size=8), st.lists(st.integers(0, 2), max_size=8))
def test_common_rows(one: list[int], two: list[int]) -> None:
    length = common(np.array(one, np.int64), np.array(two, np.int64))
    assert one[:length] == two[:length]
    assert length == min(len(one), len(two)) or one[length] != two[length]


def test_codes_tell_pictures_apart() -> None:
    ids = np.array([5, 3, 3, 6, 3, 3])
    spans = ((1, 3), (4, 6))
    one, two = codes_of(ids, spans, [b"a" * 32, b"b" * 32]), codes_of(ids, spans, [b"a" * 32] * 2)
    assert common(one, two) == 4
    assert (one[[1, 2, 4, 5]] < 0).all() and one[[0, 3]].tolist() == [5, 6]
    assert ids.tolist() == [5, 3, 3, 6, 3, 3]


def test_pictures_stay_within_their_budget() -> None:
    pictures, rows = Pictures(250), np.zeros((5, 5), np.float32)  # of 100 bytes each
    for name in "xy":
        pictures.put("a", name.encode(), rows)
    assert pictures.get("a", b"x") is rows
    pictures.put("a", b"z", rows)
    assert pictures.get("a", b"y") is None  # used longest ago
    assert pictures.get("a", b"x") is rows
    pictures.put("a", b"z", rows)
    assert pictures.bytes == 200
    assert pictures.get("b", b"x") is None
    pictures.put("a", b"big", np.zeros((8, 8), np.float32))
    assert pictures.get("a", b"big") is None and pictures.bytes == 200
    pictures.clear()
    assert pictures.get("a", b"x") is None and pictures.bytes == 0


def test_a_session_that_went_while_a_request_waited() -> None:
    gone: list[Any] = []
    table = Table(10.0, lambda: 0.0, gone.append)
    seen: list[Session] = []

    async def opener(answer: Any) -> None:
        async with table.turn(("a", b"1"), create=True) as session:
            seen.append(session)
            await asyncio.sleep(0)
            session.answer = answer

    async def run() -> None:
        # The first one brings nothing, so its session is forgotten; the second makes a new one.
        await asyncio.gather(opener(None), opener("answer"))
        assert len(seen) == 2 and seen[0] is not seen[1]
        assert len(table) == 1
        with pytest.raises(Refusal) as caught:
            async with table.turn(("b", b"1")):
                pass
        assert caught.value.reason is Reason.REOPEN
        assert table.evict() and not table.evict()
        assert gone == ["answer"]

    asyncio.run(run())


def table_of(*tenants: str, busy: Sequence[int] = ()) -> tuple[Table, list[Any]]:
    """A table with a session of each of ``tenants``, the first one idle longest, and what it
    drops: their numbers. Those in ``busy`` stream."""
    now = iter(range(100))
    gone: list[Any] = []
    table = Table(1e6, lambda: float(next(now)), gone.append)

    async def run() -> None:
        for number, tenant in enumerate(tenants):
            answer: Any = number
            async with table.turn((tenant, bytes([number])), create=True) as session:
                session.answer = answer
                session.streams = int(number in busy)

    asyncio.run(run())
    return table, gone


@pytest.mark.parametrize(
    ("held", "asker", "gone"),
    [
        ("aaa", "a", [0, 1, 2]),  # its own, the one that was idle longest first
        ("bbaa", "a", [2, 3]),  # as many as others hold: only its own
        ("baaab", "a", [1, 2, 3]),
        ("abbb", "a", [1, 0]),  # more than its share: others'
        ("abbbb", "a", [1, 2, 0]),
        ("bcc", "a", [1, 0, 2]),  # who has none finds room, at the expense of who has most
        ("bcbc", "a", [0, 1, 2, 3]),
        ("abab", "", [0, 1, 2, 3]),
        ("abb", "", [1, 0, 2]),
    ],
)
def test_a_flood_displaces_its_own_sessions(held: str, asker: str, gone: list[int]) -> None:
    table, dropped = table_of(*held)
    for _ in gone:
        assert table.evict(asker)
    assert dropped == gone


def test_nobody_is_evicted_at_work_or_within_a_fair_share() -> None:
    table, dropped = table_of(*"aabbb", busy=[0, 1, 2])
    assert [table.evict("a"), table.evict("a")] == [True, False]
    assert dropped == [3]  # b keeps as many as a has, and a's own are at work
    table, dropped = table_of(*"bbb", busy=[0, 1, 2])
    assert not table.evict("a") and not dropped


def test_tenants_that_open_without_end_share_the_slots() -> None:
    dropped: list[Any] = []
    table = Table(1e6, lambda: float(len(owners)), dropped.append)
    owners: list[str] = []

    async def opens(tenant: str, times: int) -> Counter[str]:
        for _ in range(times):
            if len(table) == 6:
                assert table.evict(tenant)
            async with table.turn((tenant, bytes([len(owners)])), create=True) as session:
                answer: Any = len(owners)
                session.answer = answer
            owners.append(tenant)
        return Counter(owners) - Counter(owners[number] for number in dropped)

    async def run() -> None:
        assert await opens("a", 9) == {"a": 6}
        assert await opens("b", 1) == {"a": 5, "b": 1}
        assert await opens("b", 9) == await opens("a", 9) == {"a": 3, "b": 3}
        assert await opens("c", 9) == {"a": 2, "b": 2, "c": 2}

    asyncio.run(run())


@pytest.mark.parametrize(
    "setting",
    [
        {"kv_mb": 0.0}, {"kv_mb": float("nan")}, {"lease_s": 0.0}, {"lease_s": 1e9},
        {"image_mb": -1.0}, {"batch": 0}, {"batching": "never"}, {"nodes": 0},
        {"context": -1}, {"images": -1},
    ],
)  # fmt: skip
def test_capacities_that_make_no_sense(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting)).replace("_", "[-_]")):
        Capacity(**setting)


def test_a_budget_below_one_session_is_refused() -> None:
    assert Capacity(kv_mb=1.0).slots_of(1024, 512) == 2
    with pytest.raises(ConfigError, match="--kv-mb is 1; .* takes 2 MB: give at least that"):
        Capacity(kv_mb=1.0).slots_of(4096, 512)
