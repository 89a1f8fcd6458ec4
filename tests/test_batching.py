"""Verifications of several sessions in one engine call: what each would give alone, and no more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import edgespec_runtime
from edgespec.bundle import Bundle, read_bundle
from edgespec.errors import ConfigError, EngineError
from edgespec.flavour import Flavour
from edgespec.latency.card import card_of
from edgespec.sampling import Sampler, SamplingParams
from edgespec_export.exporter import ExportRequest, export_bundle
from edgespec_export.graphs import packed
from edgespec_runtime.engines import Ask, Engine, StepPool, open_engine
from edgespec_runtime.engines.buffers import Buffers
from edgespec_runtime.kv import CacheShape, KVCache, blank_rows
from edgespec_runtime.prefill import prefill
from edgespec_runtime.server.slots import Slots
from edgespec_runtime.server.width import measured_width
from edgespec_runtime.verifiers import LocalVerifier
from tests.support.fakes import random_tree
from tests.support.mutants import plant
from tests.support.tiny import VOCAB, tiny_config, write_tiny
from tests.support.zoo import LOWERINGS, Zoo

Floats = npt.NDArray[np.float32]
SEATS, SLOTS = 4, 6
CAPACITY = 128
SHAPE = CacheShape(layers=2, kv_heads=2, head_dim=16)
Bundles = Callable[[str], Bundle]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """A tiny target with a packed graph, by lowering."""
    folder = tmp_path_factory.mktemp("batching")
    target = write_tiny(folder / "target", tiny_config())

    @cache
    def exported(lowering: str) -> Bundle:
        out = folder / f"{lowering}.bundle"
        export_bundle(
            ExportRequest(str(target), out, flavours=(Flavour(lowering),), sessions=SEATS)
        )
        return read_bundle(out)

    return exported


class Server:
    """Slots of one array on a target, as a server holds them."""

    def __init__(self, bundle: Bundle, *, packed: bool = True, slots: int = SLOTS) -> None:
        self.table: Floats = np.load(bundle.file("target.embed.npy"))
        self.rows = blank_rows(SHAPE, CAPACITY, slots)
        self.caches = [KVCache.over(self.rows[:, :, i : i + 1]) for i in range(slots)]
        self.pool = open_pool(open_engine(threads=1), bundle, packed)
        self.sessions = [self.pool.open(cache) for cache in self.caches]

    def fill(self, slot: int, length: int, rng: np.random.Generator) -> None:
        """A context of random tokens."""
        self.caches[slot].commit(())
        self.caches[slot].length = 0
        prefill(self.sessions[slot], self.table[rng.integers(4, VOCAB, length)])

    def ask(self, slot: int, nodes: int, rng: np.random.Generator) -> Ask:
        """A random tree below the slot's context."""
        held, tree = self.caches[slot].used, random_tree(rng, nodes, VOCAB)
        mask = np.ones((nodes + 1, held + nodes + 1), dtype=np.bool_)
        tree.write_mask(mask[:, held:])
        positions = [held, *(held + depth for depth in tree.depths)]
        return Ask(self.table[[int(rng.integers(4, VOCAB)), *tree.tokens]], positions, mask)

    def step(self, asks: Sequence[tuple[int, Ask]]) -> list[list[npt.NDArray[Any]]]:
        return self.pool.step([(self.sessions[slot], ask) for slot, ask in asks])

    def alone(self, slot: int, ask: Ask) -> list[npt.NDArray[Any]]:
        """The single-session step's answer; its rows are dropped again."""
        answer = self.sessions[slot].step(ask.embeds, ask.positions, ask.mask)
        copied = [array.copy() for array in answer]
        self.caches[slot].commit(())
        return copied


def open_pool(engine: Engine, bundle: Bundle, packed: bool = True) -> StepPool:
    target = bundle.manifest.graph("target")
    assert target is not None
    together = bundle.manifest.graph("target_packed") if packed else None
    return engine.load_step(target, bundle.path, together).open_pool()


def same(found: Sequence[npt.NDArray[Any]], wanted: Sequence[npt.NDArray[Any]]) -> None:
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
        np.testing.assert_array_equal(ours.argmax(-1), theirs.argmax(-1))


# One call gives what single steps give


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_sessions_together_get_what_each_gets_alone(bundles: Bundles, lowering: str) -> None:
    rng = np.random.default_rng(3)
    server = Server(bundles(lowering))
    for slot in range(SLOTS):
        server.fill(slot, int(rng.integers(1, 40)), rng)
    calls = 0
    for _ in range(12):  # any sessions, in any order, with trees of any size
        chosen = rng.permutation(SLOTS)[: rng.integers(2, SEATS + 1)].tolist()
        asks = [(slot, server.ask(slot, int(rng.integers(0, 9)), rng)) for slot in chosen]
        wanted = [server.alone(slot, ask) for slot, ask in asks]
        alone_s = server.sessions[chosen[0]].engine_s
        found = server.step(asks)
        assert server.sessions[chosen[0]].engine_s == alone_s, "it was stepped alone"
        calls += 1
        for (slot, ask), ours, theirs in zip(asks, found, wanted, strict=True):
            same(ours, theirs)
            cache = server.caches[slot]
            assert cache.pending == len(ask.embeds)
            kept = sorted(rng.permutation(len(ask.embeds))[:2].tolist())
            cache.commit(kept if cache.length < 60 else ())
    assert calls == 12 and server.pool.batch == SEATS and server.pool.engine_s > 0


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_the_rows_written_together_are_those_written_alone(bundles: Bundles, lowering: str) -> None:
    rng = np.random.default_rng(4)
    server, other = Server(bundles(lowering)), Server(bundles(lowering))
    asks = []
    for slot, length in enumerate((1, 30, 7)):
        server.fill(slot, length, np.random.default_rng(slot))
        other.fill(slot, length, np.random.default_rng(slot))
        asks.append((slot, server.ask(slot, 5, rng)))
    server.step(asks)
    for slot, ask in asks:
        other.sessions[slot].step(ask.embeds, ask.positions, ask.mask)
    np.testing.assert_allclose(server.rows, other.rows, atol=1e-5)


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_empty_slots_may_begin_together(bundles: Bundles, lowering: str) -> None:
    rng = np.random.default_rng(5)
    server = Server(bundles(lowering))
    server.fill(1, 20, rng)
    asks = [(0, server.ask(0, 0, rng)), (1, server.ask(1, 3, rng))]
    wanted = [server.alone(slot, ask) for slot, ask in asks]
    for ours, theirs in zip(server.step(asks), wanted, strict=True):
        same(ours, theirs)


def test_more_sessions_than_seats_are_several_calls_with_answers_of_their_own(
    bundles: Bundles,
) -> None:
    rng = np.random.default_rng(6)
    server = Server(bundles("ort"), slots=2 * SEATS + 1)
    asks = []
    for slot in range(2 * SEATS + 1):
        server.fill(slot, 5 + slot, rng)
        asks.append((slot, server.ask(slot, 3, rng)))
    wanted = [server.alone(slot, ask) for slot, ask in asks]
    for ours, theirs in zip(server.step(asks), wanted, strict=True):
        same(ours, theirs)
    assert all(cache.pending == 4 for cache in server.caches)


def test_a_bundle_without_the_graph_steps_one_session_after_another(bundles: Bundles) -> None:
    rng = np.random.default_rng(7)
    server = Server(bundles("ort"), packed=False)
    assert server.pool.batch == 1
    asks = []
    for slot in range(3):
        server.fill(slot, 4 + slot, rng)
        asks.append((slot, server.ask(slot, 2, rng)))
    wanted = [server.alone(slot, ask) for slot, ask in asks]
    for ours, theirs in zip(server.step(asks), wanted, strict=True):
        same(ours, theirs)
    assert server.step([]) == []


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_decoding_in_a_batch_is_decoding_alone(bundles: Bundles, temperature: float) -> None:
    def verifiers(server: Server) -> list[LocalVerifier]:
        made = []
        for slot in range(5):
            ids = np.random.default_rng(slot).integers(4, VOCAB, 3 + 4 * slot).tolist()
            sampler = Sampler(SamplingParams(temperature=temperature, seed=slot), VOCAB)
            session = server.sessions[slot]
            prompt = server.table[ids]
            made.append(
                LocalVerifier(session, server.table, lambda p=prompt: p, ids, sampler)  # type: ignore[misc]
            )
        return made

    trees = np.random.default_rng(8)
    server, other = Server(bundles("ort")), Server(bundles("ort"))
    batched, single = verifiers(server), verifiers(other)
    assert [v.begin() for v in batched] == [v.begin() for v in single]
    for _ in range(8):
        tried = [random_tree(trees, int(trees.integers(0, 12)), VOCAB) for _ in batched]
        asks = [verifier.ask(tree) for verifier, tree in zip(batched, tried, strict=True)]
        answers = server.step(list(enumerate(asks)))
        ours = [v.settle(t, a) for v, t, a in zip(batched, tried, answers, strict=True)]
        assert ours == [v.verify(t) for v, t in zip(single, tried, strict=True)]


# A session cannot touch another


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_a_call_writes_only_behind_the_contexts_it_is_for(bundles: Bundles, lowering: str) -> None:
    rng = np.random.default_rng(9)
    server = Server(bundles(lowering))
    server.rows[...] = 0.5  # of other sessions, or left over
    lengths = {0: CAPACITY - 6, 1: 3, 3: CAPACITY - 1}  # 2, 4 and 5 take no part
    for slot, length in lengths.items():
        server.caches[slot].length = length
    before = server.rows.copy()
    asks = [(0, server.ask(0, 5, rng)), (1, server.ask(1, 8, rng)), (3, server.ask(3, 0, rng))]
    server.step(asks)  # 0 and 3 end at the last row that there is
    changed = (server.rows != before).any(axis=(0, 1, 3, 5))  # [slots, capacity]
    wanted = np.zeros_like(changed)
    for slot, ask in asks:
        wanted[slot, lengths[slot] : lengths[slot] + len(ask.embeds)] = True
    np.testing.assert_array_equal(changed, wanted)


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_a_broken_session_breaks_no_other(bundles: Bundles, lowering: str) -> None:
    rng = np.random.default_rng(10)
    server = Server(bundles(lowering))
    asks = []
    for slot in range(3):
        server.fill(slot, 6 + slot, rng)
        asks.append((slot, server.ask(slot, 4, rng)))
    wanted = [server.alone(slot, ask) for slot, ask in asks]
    poisoned = replace(asks[1][1], embeds=np.full_like(asks[1][1].embeds, np.nan))
    found = server.step([asks[0], (1, poisoned), asks[2]])
    same(found[0], wanted[0])
    same(found[2], wanted[2])
    assert np.isnan(found[1][0]).all()


@pytest.mark.parametrize("culprits", ["room", "mask"])
@pytest.mark.parametrize("packed", [True, False])
def test_a_failing_call_leaves_every_cache_as_it_was(
    bundles: Bundles, packed: bool, culprits: str
) -> None:
    rng = np.random.default_rng(11)
    server = Server(bundles("ort"), packed=packed)
    for slot in range(SLOTS):
        server.fill(slot, 5, rng)
    if culprits == "room":
        server.caches[5].length = CAPACITY - 2
    asks = [(slot, server.ask(slot, 2, rng)) for slot in range(SLOTS)]
    if culprits == "mask":
        asks[5] = (5, replace(asks[5][1], mask=asks[5][1].mask[:, 1:]))
    wanted = [server.alone(slot, ask) for slot, ask in asks[:5]]
    with pytest.raises(EngineError, match="exceed the cache" if culprits == "room" else "a mask"):
        server.step(asks)
    assert [cache.pending for cache in server.caches] == [0] * SLOTS
    for (slot, ask), theirs in zip(asks[:5], wanted, strict=True):
        same(server.step([(slot, ask)])[0], theirs)


def test_a_slot_is_asked_once_in_a_call(bundles: Bundles) -> None:
    rng = np.random.default_rng(12)
    server = Server(bundles("ort"))
    server.fill(2, 5, rng)
    ask = server.ask(2, 1, rng)
    with pytest.raises(EngineError, match="once"):
        server.step([(2, ask), (2, ask)])
    assert server.caches[2].pending == 0


def test_positions_that_leave_a_gap_in_an_empty_slot_are_refused(bundles: Bundles) -> None:
    rng = np.random.default_rng(13)
    server = Server(bundles("ort"))
    server.fill(1, 5, rng)
    gap = replace(server.ask(0, 1, rng), positions=[0, 7])
    with pytest.raises(EngineError, match="run"):
        server.step([(0, gap), (1, server.ask(1, 1, rng))])


# Whether a server batches is measured


class Costs:
    """A pool on a clock of its own: a call takes ``call`` seconds, a session in it ``each``."""

    batch = 4
    engine_s = 0.0

    def __init__(self, call: float, each: float) -> None:
        self.now = 0.0
        self._call, self._each = call, each

    def open(self, cache: KVCache, outputs: tuple[str, ...] = ("logits",)) -> Any:
        return cache

    def step(self, asks: Sequence[tuple[Any, Ask]]) -> list[list[npt.NDArray[Any]]]:
        self.now += self._call * (1.0 if len(asks) == 1 else 2.5) + self._each * len(asks)
        for held, ask in asks:
            assert ask.mask.shape[1] == held.used + len(ask.embeds)
            held.pending += len(ask.embeds)
        return []


@pytest.mark.parametrize(
    "call, each, most, count, width",
    [
        (1.0, 0.1, 8, 6, 4),  # as many as the pool takes
        (1.0, 0.1, 3, 6, 3),  # as many as were asked for
        (1.0, 0.1, 8, 2, 1),  # a call of two costs more than two
        (1.0, 0.1, 8, 1, 1),
        (100.0, 0.1, 8, 6, 4),  # slow ones are clocked once
        (0.0, 0.125, 8, 6, 1),  # nothing to gain
    ],
)
def test_a_server_batches_where_that_is_faster(
    call: float, each: float, most: int, count: int, width: int
) -> None:
    pool = Costs(call, each)
    slots = Slots(SHAPE, count, CAPACITY)
    found = measured_width(pool, slots.all, 64, most, lambda: pool.now)
    assert found == width
    assert all(slot.cache.used == 0 for slot in slots.all)
    if call == 100.0:
        assert pool.now < 3 * 100.0 * 7, "repeated too often"


def test_measuring_leaves_real_slots_as_if_nothing_had_been(bundles: Bundles) -> None:
    pool = open_pool(open_engine(threads=1), bundles("ort"))
    slots = Slots(SHAPE, SLOTS, CAPACITY)
    assert measured_width(pool, slots.all, 64, 8) in (1, SEATS)
    assert all(slot.cache.used == 0 for slot in slots.all)
    assert np.isfinite(slots.rows).all()


# The graph in a bundle


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_the_packed_graph_brings_no_weights_of_its_own(bundles: Bundles, lowering: str) -> None:
    manifest = bundles(lowering).manifest
    assert [graph.role for graph in manifest.graphs][-1] == "target_packed"
    assert "target_packed.onnx" in manifest.files and "target_packed.bin" not in manifest.files
    card = card_of(bundles(lowering), 10.0, 10.0, measured=False)
    assert [graph.role for graph in card.graphs] == ["vision", "projector", "target"]


def test_a_device_leaves_the_packed_graph_alone(zoo: Zoo, tmp_path: Path) -> None:
    request = ExportRequest(str(zoo.checkpoint("mha")), tmp_path / "b", sessions=2)
    assert export_bundle(request).graph("target_packed")
    model = edgespec_runtime.load(tmp_path / "b", threads=1)
    assert "target_packed" not in {*model.graphs, *model.steps}


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_parity_compares_every_output_of_the_packed_graph(
    zoo: Zoo, tmp_path: Path, lowering: str
) -> None:
    target, head = zoo.checkpoint("mha"), zoo.head_checkpoint("mha", "eagle3")
    request = ExportRequest(
        str(target),
        tmp_path / "b",
        str(head),
        flavours=(Flavour(lowering),),
        sessions=3,
        parity=True,
    )
    report = export_bundle(request).parity["target_packed"]
    assert report["against"] == "the step graph"
    assert report["max_abs_diff"] <= 1e-5 * report["max_abs_value"]
    bundle = read_bundle(tmp_path / "b")
    spec = bundle.manifest.graph("target_packed")
    assert spec is not None and [output.name for output in spec.outputs[:2]] == [
        "logits", "hidden",
    ]  # fmt: skip


def test_parity_finds_sessions_of_each_others_lengths(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = "positions, pasts, strict", "positions, pasts[::-1], strict"
    plant(monkeypatch, packed, "_steps", old, new)
    request = ExportRequest(str(zoo.checkpoint("mha")), tmp_path / "b", sessions=2, parity=True)
    with pytest.raises(EngineError, match="parity: graph 'target_packed'"):
        export_bundle(request)


@pytest.mark.parametrize("sessions", [1, -2])
def test_a_packed_graph_of_one_session_is_refused(tmp_path: Path, sessions: int) -> None:
    with pytest.raises(ConfigError, match="at least 2"):
        export_bundle(ExportRequest("nowhere", tmp_path / "b", sessions=sessions))


# Buffers


def test_buffers_are_as_long_as_the_longest_call_and_no_longer() -> None:
    wrapped: list[npt.NDArray[Any]] = []

    def wrap(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        wrapped.append(array)
        return array

    buffers = Buffers(wrap)
    short, value = buffers.take("x", 3, 5, np.float32)
    assert short.shape == (3, 5) and value.shape == (1, 3, 5)
    longer, _ = buffers.take("x", 9, 5, np.float32)
    again, same_value = buffers.take("x", 3, 5, np.float32)
    assert np.shares_memory(longer, again) and not np.shares_memory(longer, short)
    assert buffers.take("x", 3, 5, np.float32)[1] is same_value and len(wrapped) == 3
    assert buffers.take("y", 4, 0, np.int64)[0].shape == (4,)
