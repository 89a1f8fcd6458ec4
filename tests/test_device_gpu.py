"""The same sessions with CUDA under them: run with ``pytest -m gpu`` where there is a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from edgespec.bundle import Bundle, read_bundle
from edgespec.errors import EdgespecError, EngineError
from edgespec.flavour import Flavour
from edgespec_export.exporter import export_bundle
from edgespec_export.family import export_request, sample_image
from edgespec_runtime.engines import open_engine
from edgespec_runtime.engines.cuda import CudaMemory
from edgespec_runtime.engines.device_cache import DeviceCache
from edgespec_runtime.engines.device_step import DeviceStepGraph
from edgespec_runtime.engines.memory import Shelf
from edgespec_runtime.engines.ort_device import CUDA, OrtDeviceEngine, placement
from edgespec_runtime.kv import CacheShape, KVCache
from edgespec_runtime.model import Model
from edgespec_runtime.prefill import causal_mask, prefill

pytestmark = pytest.mark.gpu
PROMPT = "Describe this image in detail."
TREE = "eagle2:nodes=20,depth=4,top_k=3"


@pytest.fixture(scope="module")
def memory() -> CudaMemory:
    try:
        return CudaMemory()
    except EdgespecError as error:
        pytest.skip(str(error))


NATIVE = Flavour("native")
HALF = [Flavour(name, "fp16") for name in ("cuda", "native", "portable", "ort")]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("gpu") / "builtin.bundle"
    export_bundle(replace(export_request("draft", out), flavours=(NATIVE, *HALF)))
    return read_bundle(out)


@pytest.fixture(scope="module")
def native(bundle: Bundle) -> Bundle:
    return bundle.only(NATIVE)


@pytest.fixture(scope="module")
def model(native: Bundle, memory: CudaMemory) -> Iterator[Model]:
    yield Model(native, OrtDeviceEngine("ort-cuda", CUDA, lambda: memory, 1))


def test_copies_there_and_back(memory: CudaMemory) -> None:
    size = 1 << 20
    source, target = memory.pinned(size), memory.pinned(size)
    source[:] = np.random.default_rng(0).integers(0, 256, size)
    block = memory.allocate(size)
    memory.upload(block.pointer, source)
    memory.download(target, block.pointer)
    memory.synchronise()
    assert np.array_equal(source, target)
    memory.clear(block)
    memory.download(target, block.pointer)
    memory.synchronise()
    assert not target.any()


def test_a_recorded_launch_runs_again_with_what_lies_there_then(memory: CudaMemory) -> None:
    source, target = memory.pinned(64), memory.pinned(64)
    first, second = memory.allocate(64), memory.allocate(64)
    again = memory.capture(lambda: memory.copy_rows(second.pointer, 64, first.pointer, 64, 64, 1))
    for value in (3, 7):
        source[:] = value
        memory.upload(first.pointer, source)
        again()
        memory.download(target, second.pointer)
        memory.synchronise()
        assert (target == value).all()


def test_too_much_memory_is_refused_and_said(memory: CudaMemory) -> None:
    with pytest.raises(EngineError, match="GPU memory"):
        memory.allocate(1 << 50)


def test_commits_move_what_the_host_cache_moves(memory: CudaMemory) -> None:
    shape = CacheShape(layers=3, kv_heads=2, head_dim=64, dtype="float32")
    device = DeviceCache(memory, Shelf(memory), shape, 192)
    host = KVCache(CacheShape(3, 2, 64), 192)
    rng = np.random.default_rng(1)
    host.rows[:] = rng.standard_normal(host.rows.shape)
    staged = memory.pinned(host.rows.nbytes)
    staged[:] = host.rows.reshape(-1).view(np.uint8)
    memory.upload(device.block.pointer, staged)
    for kept in ([0, 3, 4, 5, 9], [1, 2, 3, 4, 5, 6, 7, 8], [0, 30], [5]):
        for cache in (device, host):
            cache.pending = 31
            cache.commit(kept)
    memory.download(staged, device.block.pointer)
    memory.synchronise()
    assert np.array_equal(staged.view(np.float32), host.rows.reshape(-1))


def test_the_graph_runs_on_the_gpu(model: Model) -> None:
    assert model.engine.provider.startswith(CUDA)
    for graph in model.steps.values():
        assert isinstance(graph, DeviceStepGraph)
        parts = placement(graph.executor.session)  # type: ignore[attr-defined]
        assert parts and {part.ep_name for part in parts} == {CUDA}


def test_rows_are_the_cpus(model: Model, native: Bundle) -> None:
    spec = model.steps["target"].spec
    host = open_engine("ort").load_step(spec, native.path).open(320)
    device = model.steps["target"].open(320)
    table, rng = model.tables["target"], np.random.default_rng(0)
    for session in (device, host):
        prefill(session, table[:70])
    for rows in (1, 2, 3, 5, 9, 17, 65, 129, 3, 3, 3, 1, 1, 1):
        embeds = table[rng.integers(0, len(table), rows)]
        mask = np.ones((rows, 70 + rows), dtype=np.bool_)
        mask[:, 70:] = np.tri(rows) * (rng.random((rows, rows)) < 0.5) + np.eye(rows) > 0
        positions = 70 + mask[:, 70:].sum(axis=1) - 1
        found, expected = (s.step(embeds, positions, mask)[0].copy() for s in (device, host))
        assert np.abs(found - expected).max() < 2e-2, rows
        for session in (device, host):
            session.cache.commit([0, *range(rows // 2, rows // 2 + rows // 4)] if rows > 4 else ())
            session.cache.length = 70


def test_text_is_the_cpus(model: Model, native: Bundle) -> None:
    host = Model(native, open_engine("ort"))
    picture = str(sample_image())
    expected = host.generate(picture, PROMPT, draft="none", max_new_tokens=48)
    for draft, policy in (("none", None), ("model", None), ("model", TREE)):
        for _ in range(3):  # as it is, recorded, replayed
            found = model.generate(picture, PROMPT, draft=draft, policy=policy, max_new_tokens=48)
            assert found.token_ids == expected.token_ids, (draft, policy)
        if draft == "model":
            assert found.stats.accepted_length > 1.5


def test_sampled_text_is_the_cpus(model: Model, native: Bundle) -> None:
    host = Model(native, open_engine("ort"))
    picture, settings = str(sample_image()), {"temperature": 0.8, "seed": 5, "max_new_tokens": 48}
    expected = host.generate(picture, PROMPT, draft="none", **settings)
    for draft in ("none", "model"):
        assert model.generate(picture, PROMPT, draft=draft, **settings).token_ids == (
            expected.token_ids
        )


@pytest.mark.parametrize("flavour", HALF, ids=str)
def test_half_precision_text_is_its_own_plain_text(
    bundle: Bundle, memory: CudaMemory, flavour: Flavour
) -> None:
    model = Model(bundle.only(flavour), OrtDeviceEngine("ort-cuda", CUDA, lambda: memory, 1))
    picture = str(sample_image())
    plain = model.generate(picture, PROMPT, draft="none", max_new_tokens=48)
    for policy in (None, TREE):
        found = model.generate(picture, PROMPT, policy=policy, max_new_tokens=48)
        assert found.token_ids == plain.token_ids, policy
        assert found.stats.accepted_length > 1.5


def test_a_full_cache_is_filled_to_its_last_row(model: Model) -> None:
    session = model.steps["target"].open(64)
    table, capacity = model.tables["target"], session.cache.capacity
    prefill(session, table[: capacity - 3])
    logits = session.step(table[10:13], range(capacity - 3, capacity), causal_mask(capacity - 3, 3))
    assert np.isfinite(logits[0]).all()
    assert session.cache.used == capacity
