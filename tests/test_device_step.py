"""A decoder's steps on an accelerator, run on the host: the same session, executor and buffers;
CUDA's copies alone are replaced (tests/support/host_memory.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edgespec.bundle import Bundle, read_bundle
from edgespec.errors import EngineError
from edgespec.flavour import LOWERINGS, Flavour
from edgespec_export.exporter import export_bundle
from edgespec_export.family import export_request, sample_image
from edgespec_runtime.engines import StepSession, open_engine
from edgespec_runtime.engines.device_step import DeviceStepSession, padded_rows
from edgespec_runtime.engines.ort_device import OrtDeviceEngine
from edgespec_runtime.model import Model
from edgespec_runtime.prefill import causal_mask, prefill
from tests.support.host_memory import HostMemory

CPU = "CPUExecutionProvider"
PROMPT = "Describe this image in detail."
TREE = "eagle2:nodes=20,depth=4,top_k=3"
SAMPLED = {"temperature": 0.9, "seed": 3}
Floats = npt.NDArray[np.float32]


FLAVOURS = tuple(
    Flavour(lowering, "fp16" if lowering == "cuda" else "fp32") for lowering in LOWERINGS
)
TOLERANCE = {"fp32": 1e-3, "fp16": 5e-2}


def by_lowering(role: str, out: Path) -> dict[str, Bundle]:
    """The built-in family with one of its drafts, as each lowering's bundle."""
    export_bundle(replace(export_request(role, out), flavours=FLAVOURS))
    bundle = read_bundle(out)
    return {flavour.lowering: bundle.only(flavour) for flavour in FLAVOURS}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    return by_lowering("draft", tmp_path_factory.mktemp("device") / "builtin.bundle")


def host_model(bundle: Bundle) -> Model:
    return Model(bundle, open_engine("ort", threads=1))


def device_model(bundle: Bundle) -> tuple[Model, HostMemory]:
    memory = HostMemory()
    return Model(bundle, OrtDeviceEngine("ort-host", CPU, lambda: memory, 1)), memory


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("settings", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_text_is_the_host_engines(
    bundles: dict[str, Bundle], lowering: str, settings: dict[str, float]
) -> None:
    model, _ = device_model(bundles[lowering])
    picture = str(sample_image())
    expected = host_model(bundles[lowering]).generate(
        picture, PROMPT, draft="none", max_new_tokens=48, **settings
    )
    for draft, policy in (("none", None), ("model", None), ("model", TREE), ("ngram", None)):
        found = model.generate(
            picture, PROMPT, draft=draft, policy=policy, max_new_tokens=48, **settings
        )
        assert found.token_ids == expected.token_ids, (draft, policy)
        if draft == "model":
            assert found.stats.accepted_length > 1.5


@pytest.fixture(scope="module")
def vispec(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    return by_lowering("vispec", tmp_path_factory.mktemp("vispec") / "builtin.bundle")


@pytest.mark.parametrize("lowering", ["cuda", "native", "portable"])
def test_text_with_a_feature_draft(vispec: dict[str, Bundle], lowering: str) -> None:
    model, _ = device_model(vispec[lowering])
    host = host_model(vispec[lowering])
    picture = str(sample_image())
    for settings in ({}, SAMPLED):
        expected = host.generate(picture, PROMPT, draft="none", max_new_tokens=32, **settings)
        for policy in (None, TREE):
            found = model.generate(picture, PROMPT, policy=policy, max_new_tokens=32, **settings)
            assert found.token_ids == expected.token_ids, (settings, policy)
            assert found.stats.accepted_length > 1.5


def open_sessions(
    bundle: Bundle, capacity: int, outputs: Sequence[str] = ("logits",)
) -> tuple[DeviceStepSession, StepSession, Floats, HostMemory]:
    """The target on the device and on the host, and its token table."""
    memory = HostMemory()
    spec = bundle.manifest.graph("target")
    assert spec is not None
    engine = OrtDeviceEngine("ort-host", CPU, lambda: memory, 1)
    device = engine.load_step(spec, bundle.path).open(capacity, tuple(outputs))
    host = open_engine("ort", threads=1).load_step(spec, bundle.path).open(512, tuple(outputs))
    table = np.load(bundle.file("target.embed.npy"))
    return device, host, table, memory


def test_rows_pad_to_few_sizes() -> None:
    assert [padded_rows(n) for n in (1, 2, 3, 5, 9, 17, 65, 97, 128)] == [
        1, 2, 4, 8, 12, 24, 96, 128, 128,
    ]  # fmt: skip
    assert [padded_rows(n) for n in (129, 192, 193, 512)] == [192, 192, 256, 512]


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_every_row_count_gives_the_host_engines_rows(
    bundles: dict[str, Bundle], lowering: str
) -> None:
    device, host, table, _ = open_sessions(bundles[lowering], 320)
    rng = np.random.default_rng(0)
    for session in (device, host):
        prefill(session, table[:70])
    for rows in (1, 2, 3, 4, 5, 8, 9, 16, 17, 33, 64, 65, 127, 129, 3, 1):
        embeds = table[rng.integers(0, len(table), rows)]
        mask = np.ones((rows, 70 + rows), dtype=np.bool_)
        mask[:, 70:] = np.tri(rows) * (rng.random((rows, rows)) < 0.5) + np.eye(rows) > 0
        positions = 70 + mask[:, 70:].sum(axis=1) - 1
        last = bool(rows % 2)
        found = device.step(embeds, positions, mask, last)[0].copy()
        expected = host.step(embeds, positions, mask, last)[0]
        assert found.shape == expected.shape
        assert (
            np.abs(found - expected).max()
            < TOLERANCE[bundles[lowering].manifest.flavours[0].precision]
        )
        for session in (device, host):
            assert session.cache.pending == rows
            session.cache.commit(())


def test_kept_rows_of_a_tree_are_seen_by_the_next_step(bundles: dict[str, Bundle]) -> None:
    device, host, table, _ = open_sessions(bundles["native"], 256)
    for session in (device, host):
        prefill(session, table[:40])
        mask = np.ones((9, 49), dtype=np.bool_)
        mask[:, 40:] = np.eye(9)
        session.step(table[50:59], [40] * 9, mask)
        session.cache.commit([1, 4, 5, 8])
    for _ in range(2):
        found, expected = (
            session.step(table[60:61], [44], causal_mask(44, 1))[0].copy()
            for session in (device, host)
        )
        assert np.abs(found - expected).max() < 1e-3
        for session in (device, host):
            session.cache.commit(())


def test_up_to_the_last_row_of_the_cache(bundles: dict[str, Bundle]) -> None:
    device, host, table, _ = open_sessions(bundles["native"], 64)
    capacity = device.cache.capacity
    for session in (device, host):
        prefill(session, table[: capacity - 3])
    embeds, positions = table[10:13], range(capacity - 3, capacity)
    mask = causal_mask(capacity - 3, 3)
    found = device.step(embeds, positions, mask)[0]
    assert np.abs(found - host.step(embeds, positions, mask)[0]).max() < 1e-3
    assert device.cache.used == capacity, "padding must not need room of its own"
    with pytest.raises(EngineError, match="exceed the cache"):
        device.step(table[:1], [capacity], causal_mask(capacity, 1))


def test_what_lies_in_unused_rows_changes_nothing(bundles: dict[str, Bundle]) -> None:
    first, _, table, memory = open_sessions(bundles["native"], 128)
    second = open_sessions(bundles["native"], 128)[0]
    for session in (first, second):
        prefill(session, table[:20])
    cache = first.cache
    shape = cache.shape
    sizes = (shape.layers, 2, 1, shape.kv_heads, cache.capacity, shape.head_dim)
    memory.floats(cache.block, sizes)[..., 20:, :] = 1e4
    rows = [
        session.step(table[30:33], [20, 21, 22], causal_mask(20, 3))[0].copy()
        for session in (first, second)
    ]
    assert np.array_equal(*rows)


def test_a_step_is_one_upload_one_wait_and_the_outputs_asked_for(
    bundles: dict[str, Bundle],
) -> None:
    device, _, table, memory = open_sessions(bundles["native"], 128)
    prefill(device, table[:20])
    copies, waits = memory.copies, memory.waits
    device.step(table[30:33], [20, 21, 22], causal_mask(20, 3))
    assert (memory.copies - copies, memory.waits - waits) == (2, 1)


def test_sizes_seen_before_allocate_nothing(bundles: dict[str, Bundle]) -> None:
    memory = HostMemory()
    spec = bundles["native"].manifest.graph("target")
    assert spec is not None
    engine = OrtDeviceEngine("ort-host", CPU, lambda: memory, 1)
    graph = engine.load_step(spec, bundles["native"].path)
    table = np.load(bundles["native"].file("target.embed.npy"))

    def request() -> int:
        session = graph.open(100)
        prefill(session, table[:20])
        session.step(table[30:33], [20, 21, 22], causal_mask(20, 3))
        session.step(table[30:34], [23] * 4, causal_mask(23, 4))
        return len(memory.allocated)

    first = request()
    assert request() == first, "the second request has the first one's cache and buffers"


def test_a_step_that_cannot_be_is_refused(bundles: dict[str, Bundle]) -> None:
    device, host, table, _ = open_sessions(bundles["native"], 64)
    with pytest.raises(EngineError, match=r"take a mask \[1, 1\]"):
        device.step(table[:1], [0], causal_mask(3, 1))
    with pytest.raises(EngineError, match="takes no noise"):
        device.step(table[:1], [0], causal_mask(0, 1), noise=np.zeros((1, 4), np.float32))
    with pytest.raises(EngineError, match="takes no noise"):
        device.set_temperature(1.0)
    graph = open_engine("ort", threads=1).load_step(device._spec, bundles["native"].path)
    with pytest.raises(EngineError, match="not in host memory"):
        graph.open(1, cache=device.cache)
    with pytest.raises(EngineError, match="not in the accelerator's memory"):
        device._graph.open(1, cache=host.cache)
