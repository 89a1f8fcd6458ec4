"""Engines of `edgespec build` at run time. TensorRT itself needs a GPU even to load a plan, so its
runtime API stands over ONNX Runtime here (tests/support/fake_tensorrt.py): profiles, shapes,
addresses and recorded launches are the real code's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgespec.bundle import Bundle, read_bundle
from edgespec.engines import BuiltEngines, Plan
from edgespec.errors import EngineError
from edgespec.flavour import Flavour
from edgespec.nvidia import TensorRT
from edgespec_export.exporter import export_bundle
from edgespec_export.family import export_request, sample_image
from edgespec_export.tensorrt.shapes import profiles_of, sizes_of
from edgespec_runtime.engines import open_engine
from edgespec_runtime.engines.trt import TensorRTEngine
from edgespec_runtime.model import Model
from edgespec_runtime.prefill import causal_mask, prefill
from tests.support.fake_tensorrt import FakeTensorRT
from tests.support.host_memory import HostMemory

PROMPT = "Describe this image in detail."
FLAVOURS = (Flavour("native"), Flavour("portable"))
TREE = "eagle2:nodes=20,depth=4,top_k=3"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("tensorrt") / "builtin.bundle"
    export_bundle(replace(export_request("draft", out), flavours=FLAVOURS))
    return read_bundle(out)


class Rig:
    """Engines "built" of one flavour, and what runs them."""

    def __init__(self, bundle: Bundle, folder: Path, flavour: Flavour, **sizes: Any) -> None:
        self.bundle = bundle.only(flavour)
        self.memory = HostMemory()
        given = {"context": 320, "prefill_rows": 64, "max_rows": 32, **sizes}
        taken = sizes_of(self.bundle.manifest, **given)
        plans = []
        for graph in self.bundle.manifest.graphs:
            file = f"{graph.role}.plan"
            (folder / file).write_text(f"{file}\n{self.bundle.path / graph.file}")
            plans.append(Plan(graph.role, file, 0, "", {}, profiles_of(graph, taken), False))
        self.built = BuiltEngines(
            folder, "tensorrt", "10.16.0", ("8.7",), "a GPU", None, str(flavour), taken.context,
            taken.capacity, taken.prefill_rows, taken.max_rows, taken.profiles, (), tuple(plans),
        )  # fmt: skip
        self.module = FakeTensorRT(self.memory, plans)
        tensorrt = TensorRT("tensorrt", "10.16.0", self.module)  # type: ignore[arg-type]
        self.engine = TensorRTEngine("tensorrt", tensorrt, self.built, self.bundle, self.memory)

    def step(self, role: str = "target") -> Any:
        spec = self.bundle.manifest.graph(role)
        assert spec is not None
        return self.engine.load_step(spec, self.bundle.path)


@pytest.fixture
def rig(bundle: Bundle, tmp_path: Path) -> Rig:
    return Rig(bundle, tmp_path, FLAVOURS[0])


@pytest.mark.parametrize("flavour", FLAVOURS, ids=str)
def test_text_is_the_host_engines(bundle: Bundle, tmp_path: Path, flavour: Flavour) -> None:
    rig = Rig(bundle, tmp_path, flavour)
    model = Model(rig.bundle, rig.engine)
    host = Model(rig.bundle, open_engine("ort", threads=1))
    picture = str(sample_image())
    for settings in ({}, {"temperature": 0.9, "seed": 3}):
        expected = host.generate(picture, PROMPT, draft="none", max_new_tokens=32, **settings)
        for draft, policy in (("none", None), ("model", None), ("model", TREE)):
            found = model.generate(
                picture, PROMPT, draft=draft, policy=policy, max_new_tokens=32, **settings
            )
            assert found.token_ids == expected.token_ids, (draft, policy)
    assert rig.memory.captures > 3, "launches are recorded"


def test_a_launch_is_recorded_at_its_second_run_and_replayed(rig: Rig) -> None:
    graph = rig.step()
    session, table = graph.open(100), np.load(rig.bundle.file("target.embed.npy"))
    prefill(session, table[:20])
    logits = []
    for _ in range(4):
        logits.append(session.step(table[30:33], [20, 21, 22], causal_mask(20, 3))[0].copy())
        session.step(table[30:31], [20], causal_mask(23, 1))  # another call, the same context
        session.cache.commit(())
    assert rig.memory.captures == 2
    assert all(np.array_equal(logits[0], again) for again in logits)


def test_prompts_and_trees_longer_than_a_call_go_in_parts(rig: Rig) -> None:
    spec = rig.bundle.manifest.graph("target")
    assert spec is not None
    device = rig.step().open(300, ("logits",))
    host = open_engine("ort", threads=1).load_step(spec, rig.bundle.path).open(300)
    table, rng = np.load(rig.bundle.file("target.embed.npy")), np.random.default_rng(0)
    first = [prefill(session, table[:150])[0][0].copy() for session in (device, host)]
    assert np.abs(first[0] - first[1]).max() < 1e-3
    mask = np.ones((70, 220), dtype=np.bool_)
    mask[:, 150:] = np.tri(70) * (rng.random((70, 70)) < 0.5) + np.eye(70) > 0
    positions = 150 + mask[:, 150:].sum(axis=1) - 1
    rows = [s.step(table[200:270], positions, mask)[0].copy() for s in (device, host)]
    assert np.abs(rows[0] - rows[1]).max() < 1e-3
    assert device.cache.pending == 70
    with pytest.raises(EngineError, match="cannot be parted; use a smaller tree"):
        device.step(table[:40], range(220, 260), np.ones((40, 260), dtype=np.bool_))
    assert device.cache.pending == 70


def test_more_than_was_built_for_is_refused_with_the_command(rig: Rig) -> None:
    with pytest.raises(EngineError, match=r"needs a cache of 9000 rows.*edgespec build --bundle"):
        rig.step().open(9000)


def test_pictures_beyond_the_profile_are_refused_with_the_command(rig: Rig) -> None:
    spec = rig.bundle.manifest.graph("vision")
    assert spec is not None
    graph = rig.engine.load(spec, rig.bundle.path)
    shape = [int(axis) for axis in spec.inputs[0].axes[1:]]
    pixels = np.random.default_rng(0).standard_normal((2, *shape), dtype=np.float32)
    host = open_engine("ort", threads=1).load(spec, rig.bundle.path)
    graph._bound({"pixel_values": pixels[:1]})
    for count in (2, 1, 2):  # binding one shape leaves the context with it
        graph._bound({"pixel_values": pixels[: 3 - count]})
        found = graph.run({"pixel_values": pixels[:count]})["features"]
        expected = host.run({"pixel_values": pixels[:count]})["features"]
        assert np.abs(found - expected).max() < 1e-4
    with pytest.raises(EngineError, match=r"no profile takes 'pixel_values' \[5, .*edgespec build"):
        graph.run({"pixel_values": np.zeros((5, *shape), np.float32)})
    with pytest.raises(EngineError, match="takes 'pixel_values'"):
        graph.run({"pixel_values": np.zeros((1, 3, 4, 4), np.float32)})


def test_a_plan_that_does_not_load_says_what_rebuilds_it(rig: Rig) -> None:
    rig.built.path("target").write_text("target.plan\ngone")
    with pytest.raises(
        EngineError, match=r"cannot load .*target.plan: the plan was made by another version; run: "
    ):
        rig.step()


def test_a_role_that_was_not_built_says_what_builds_it(rig: Rig) -> None:
    engine = rig.engine
    engine._built = replace(rig.built, plans=())
    with pytest.raises(EngineError, match="no engine of graph 'target'; run: edgespec build"):
        rig.step()


def test_a_failed_launch_is_an_error_with_what_tensorrt_said(rig: Rig) -> None:
    session = rig.step().open(100)
    table = np.load(rig.bundle.file("target.embed.npy"))
    prefill(session, table[:10])
    for rows, fails_at in ((1, 0), (40, 0), (40, 1)):  # forty rows go in two parts
        rig.module.fails_at = rig.module.launches + fails_at
        with pytest.raises(EngineError, match="target.plan failed: an illegal memory access"):
            session.step(table[:rows], range(10, 10 + rows), causal_mask(10, rows))
        assert (session.cache.length, session.cache.pending) == (10, 0)
