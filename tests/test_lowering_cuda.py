"""Lowering ``cuda`` on the host: ONNX Runtime's CPU has the same operators, and a device's session
feeds them. What runs on a card is in tests/test_device_gpu.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgespec.bundle import Bundle, read_bundle
from edgespec.errors import ConfigError
from edgespec.flavour import Flavour
from edgespec_export.exporter import export_bundle, plan_export
from edgespec_export.family import export_request, sample_image
from edgespec_runtime.engines import open_engine
from edgespec_runtime.engines.ort_device import OrtDeviceEngine
from edgespec_runtime.model import Model
from edgespec_runtime.prefill import causal_mask, prefill
from tests.support.host_memory import HostMemory

PROMPT = "Describe this image in detail."
CUDA, ORT = Flavour("cuda", "fp16"), Flavour("ort", "fp16")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("cuda") / "builtin.bundle"
    export_bundle(replace(export_request("draft", out), flavours=(CUDA, ORT)))
    return read_bundle(out)


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.9, "seed": 3}], ids=["greedy", "drawn"])
@pytest.mark.parametrize("device", [False, True], ids=["host", "device"])
def test_text_is_that_of_the_same_numbers_in_lowering_ort(
    both: Bundle, device: bool, settings: dict[str, float]
) -> None:
    host = open_engine("ort", threads=1)
    engine = OrtDeviceEngine("host", "CPUExecutionProvider", HostMemory, 1) if device else host
    model, reference = Model(both.only(CUDA), engine), Model(both.only(ORT), host)
    picture = str(sample_image())
    expected = reference.generate(picture, PROMPT, draft="none", max_new_tokens=48, **settings)
    for draft in ("none", "model"):
        found = model.generate(picture, PROMPT, draft=draft, max_new_tokens=48, **settings)
        assert found.token_ids == expected.token_ids, draft
    assert found.stats.accepted_length > 1.5, "the chain in one call, and the tree behind it"


def test_a_nodes_row_is_that_of_its_path(both: Bundle) -> None:
    spec = both.only(CUDA).manifest.graph("target")
    assert spec is not None
    session = open_engine("ort", threads=1).load_step(spec, both.path).open(128)
    table = np.asarray(np.load(both.file("target.embed.npy")), dtype=np.float32)
    prefill(session, table[:20])
    parents = [-1, 0, 0, 1, 2, 3]
    mask = np.ones((6, 26), dtype=np.bool_)
    mask[:, 20:] = np.eye(6, dtype=np.bool_)
    for node, parent in enumerate(parents):
        if parent >= 0:
            mask[node, 20:] |= mask[parent, 20:]
    depths = mask[:, 20:].sum(axis=1) - 1
    tree = session.step(table[40:46], 20 + depths, mask)[0].copy()
    session.cache.commit(())
    for node in range(6):
        path = np.flatnonzero(mask[node, 20:])
        rows = session.step(
            table[40 + path], range(20, 20 + len(path)), causal_mask(20, len(path))
        )[0]
        session.cache.commit(())
        assert np.abs(rows[-1] - tree[node]).max() < 2e-2
        assert rows[-1].argmax() == tree[node].argmax()


def test_nothing_of_a_step_is_left_to_the_host(both: Bundle) -> None:
    """An input that no node reads counts as the host's, and so do sums of shapes."""
    graphs = both.only(CUDA).manifest.graphs
    steps = [graph for graph in graphs if graph.role in ("target", "draft", "draft_chain")]
    assert len(steps) == 3
    for step in steps:
        graph = onnx.load(both.path / step.file, load_external_data=False).graph
        read = {name for node in graph.node for name in node.input}
        assert {value.name for value in graph.input} <= read
        assert not {"Shape", "Size", "Range"} & {node.op_type for node in graph.node}


def test_what_it_is_not_built_for_is_said(tmp_path: Path) -> None:
    request = export_request("draft", tmp_path / "b")
    with pytest.raises(ConfigError, match="'cuda' has fp16, bf16, int8, int4; use native:fp32"):
        plan_export(replace(request, flavours=(Flavour("cuda", "fp32"),)))
    with pytest.raises(ConfigError, match="--sessions is not built for lowering 'cuda'"):
        plan_export(replace(request, flavours=(CUDA,), sessions=4))
