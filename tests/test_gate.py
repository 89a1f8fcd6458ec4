"""The gate: every graph for TensorRT is parsed and built by TensorRT-RTX, without a GPU.

A proxy: TensorRT-RTX has no Jetson among its GPUs, and nothing built here is run. What the portable
lowering needs of TensorRT 10.3 is read from that release's operator table.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgespec.bundle import Bundle, read_bundle
from edgespec.errors import EngineError
from edgespec.flavour import Flavour
from edgespec.nvidia import TensorRT, find_tensorrt
from edgespec_export.tensorrt.build import chosen_graphs
from edgespec_export.tensorrt.graph import Source, read_source
from edgespec_export.tensorrt.network import Settings, build_plan, parse
from edgespec_export.tensorrt.operators import TABLE, check_operators
from edgespec_export.tensorrt.shapes import NEEDED, profiles_of, sizes_of, static_axes
from tests.support.gate import (
    CAPABILITIES,
    HEADS,
    build,
    family_bundle,
    geometry_bundle,
    run_on_cpu,
    source_of,
)

pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is installed on Linux x86-64")

GATED = ("native:fp16", "portable:fp16")
FAST = "8.6"


@pytest.fixture(scope="module")
def tensorrt() -> TensorRT:
    return find_tensorrt("tensorrt_rtx")


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("family") / "b"
    return read_bundle(family_bundle("draft", out, *GATED, "native:fp32"), check_hashes=False)


@pytest.fixture(scope="module")
def geometry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    folder = tmp_path_factory.mktemp("geometry")
    path = geometry_bundle(folder, *GATED)
    yield read_bundle(path, check_hashes=False)
    for file in path.iterdir():  # half a gigabyte that nobody wants to keep
        file.unlink()


def in_flavour(bundle: Bundle, name: str) -> Bundle:
    return bundle.only(Flavour.parse(name))


def serialized(bundle: Bundle, role: str) -> bytes:
    """The graph as TensorRT's parser gets it, sizes and all."""
    graph = bundle.manifest.graph(role)
    assert graph
    return source_of(bundle, graph).serialized


@pytest.mark.parametrize("flavour", GATED)
def test_every_graph_of_the_family_builds(tensorrt: TensorRT, family: Bundle, flavour: str) -> None:
    bundle = in_flavour(family, flavour)
    graphs = chosen_graphs(bundle, ())
    roles = ["vision", "projector", "target", "draft_projector", "compressor", "draft"]
    assert [g.role for g in graphs][:6] == roles
    assert [g.role for g in graphs][6:] == ["draft_chain"]
    for graph in [g for g in graphs if g.role != "draft_chain"]:
        assert not build(tensorrt, bundle, graph, FAST).decomposed, graph.file


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("heads")
    paths = {head: family_bundle(head, folder / head, "native:fp16") for head in HEADS}
    return {head: read_bundle(path, check_hashes=False) for head, path in paths.items()}


@pytest.mark.parametrize("head", HEADS)
def test_every_head_builds(tensorrt: TensorRT, heads: dict[str, Bundle], head: str) -> None:
    roles = {"draft", "draft_projector", "compressor"}
    own = [graph for graph in chosen_graphs(heads[head], ()) if graph.role in roles]
    assert own
    for graph in own:
        assert build(tensorrt, heads[head], graph, FAST), graph


def test_the_target_that_gives_heads_their_features_builds(
    tensorrt: TensorRT, heads: dict[str, Bundle]
) -> None:
    """One build for all: it is the same graph."""
    assert len({serialized(bundle, "target") for bundle in heads.values()}) == 1
    bundle = heads[HEADS[0]]
    graph = bundle.manifest.graph("target")
    assert graph and "hidden" in {tensor.name for tensor in graph.outputs}
    assert build(tensorrt, bundle, graph, FAST)


@pytest.mark.parametrize("flavour", GATED)
def test_every_graph_in_the_widths_of_llava_builds(
    tensorrt: TensorRT, geometry: Bundle, flavour: str
) -> None:
    """Heads of 128 (target) and 64 (tower, draft) have fused kernels: nothing is taken apart."""
    bundle = in_flavour(geometry, flavour)
    for graph in [g for g in chosen_graphs(bundle, ()) if g.role != "draft_chain"]:
        assert not build(tensorrt, bundle, graph, FAST).decomposed, graph.file


@pytest.mark.slow
@pytest.mark.parametrize("name", ["family", "geometry"])
def test_every_chain_builds(tensorrt: TensorRT, request: pytest.FixtureRequest, name: str) -> None:
    """One build for both lowerings: a chain is the same graph in either."""
    native, portable = (in_flavour(request.getfixturevalue(name), flavour) for flavour in GATED)
    assert serialized(native, "draft_chain") == serialized(portable, "draft_chain")
    graph = native.manifest.graph("draft_chain")
    assert graph and build(tensorrt, native, graph, FAST).size > 0


@pytest.mark.parametrize("name", ["family", "geometry"])
def test_portable_graphs_keep_to_the_operators_of_tensorrt_10_3(
    request: pytest.FixtureRequest, name: str
) -> None:
    bundle = in_flavour(request.getfixturevalue(name), "portable:fp16")
    for graph in chosen_graphs(bundle, ()):
        assert check_operators(source_of(bundle, graph).model) == [], graph.file


@pytest.mark.parametrize("flavour", GATED)
def test_what_is_built_runs_on_the_cpu_too(family: Bundle, flavour: str) -> None:
    bundle = in_flavour(family, flavour)
    for graph in chosen_graphs(bundle, ()):
        outputs = run_on_cpu(bundle, graph)
        assert set(outputs) == {tensor.name for tensor in graph.outputs}
        assert all(np.isfinite(value).all() for value in outputs.values()), graph.file


@pytest.mark.slow
@pytest.mark.parametrize("capability", [c for c in CAPABILITIES if c != FAST])
def test_step_graphs_build_for_every_gpu_that_can_be_named(
    tensorrt: TensorRT, geometry: Bundle, capability: str
) -> None:
    """The draft has all kinds of nodes that the target has, at a tenth of its size."""
    for flavour in GATED:
        bundle = in_flavour(geometry, flavour)
        graph = bundle.manifest.graph("draft")
        assert graph
        assert build(tensorrt, bundle, graph, capability).size > 0


@pytest.mark.parametrize("flavour", GATED)
def test_engines_for_small_trees_build(tensorrt: TensorRT, family: Bundle, flavour: str) -> None:
    """Where the profile itself ended at 8 rows, TensorRT-RTX's compiler would fail."""
    bundle = in_flavour(family, flavour)
    graph = bundle.manifest.graph("draft")
    assert graph
    sizes = sizes_of(bundle.manifest, context=512, prefill_rows=64, max_rows=8, profiles=NEEDED)
    source = read_source(bundle, graph, static_axes(graph, sizes))
    settings = Settings(compute_capabilities=(FAST,))
    assert build_plan(tensorrt, source, profiles_of(graph, sizes), settings)


def test_attention_in_float32_is_taken_apart_and_said_so(
    tensorrt: TensorRT, family: Bundle
) -> None:
    bundle = in_flavour(family, "native:fp32")
    graph = bundle.manifest.graph("draft")
    assert graph and build(tensorrt, bundle, graph, FAST).decomposed


# Graphs that are wrong in one place: the error names it.


def spoilt(bundle: Bundle, operator: str, **changes: object) -> tuple[Source, str]:
    """The draft graph with its first node of that operator changed; and the node's name."""
    graph = bundle.manifest.graph("draft")
    assert graph
    source = source_of(bundle, graph)
    node = next(node for node in source.model.graph.node if node.op_type == operator)
    for key, value in changes.items():
        setattr(node, key, value)
    return source, node.name


@pytest.mark.parametrize(
    ("operator", "changes"),
    [
        ("Attention", {"op_type": "GroupQueryAttention", "domain": "com.microsoft"}),
        ("MatMul", {"op_type": "BitShift"}),
        ("Sigmoid", {"op_type": "NoSuchOperator"}),
    ],
)
def test_an_operator_that_tensorrt_lacks_is_named_with_the_way_out(
    tensorrt: TensorRT, family: Bundle, operator: str, changes: dict[str, object]
) -> None:
    source, name = spoilt(in_flavour(family, "native:fp16"), operator, **changes)
    with pytest.raises(EngineError) as refused:
        parse(tensorrt, source)
    assert f"node '{name}' ({changes['op_type']})" in str(refused.value)
    assert source.spec.file in str(refused.value) and "lowering" in str(refused.value)


def test_a_graph_that_parses_but_does_not_build_is_refused_by_name(
    tensorrt: TensorRT, family: Bundle
) -> None:
    """A cache that is read into something else is no cache that TensorRT updates in place."""
    source, name = spoilt(in_flavour(family, "native:fp16"), "TensorScatter")
    graph = source.model.graph
    node = next(node for node in graph.node if node.name == name)
    doubled = helper.make_node("Add", [node.input[0]] * 2, ["doubled"], name="Doubled")
    node.input[0] = "doubled"
    graph.node.insert(0, doubled)
    with pytest.raises(EngineError, match=f"cannot build draft.onnx: nodes .*{name}"):
        build_plan(tensorrt, source, (), Settings(compute_capabilities=(FAST,)))


@pytest.mark.parametrize(
    ("operator", "changes", "reason"),
    [
        ("MatMul", {"op_type": "BitShift"}, "has no such operator"),
        ("Softmax", {"op_type": "Attention"}, "has no such operator"),
        ("Sigmoid", {"domain": "com.microsoft"}, "wants a plugin"),
        ("Where", {"op_type": "And"}, "element type"),
    ],
)
def test_the_table_finds_what_10_3_lacks(
    family: Bundle, operator: str, changes: dict[str, object], reason: str
) -> None:
    source, name = spoilt(in_flavour(family, "portable:fp16"), operator, **changes)
    problems = [p for p in check_operators(source.model) if p.node == name]
    if operator == "Where":  # its first input is bool, as And wants it
        assert problems == []
        return
    assert [reason in problem.reason for problem in problems] == [True]


def test_native_graphs_do_not_pass_the_table(family: Bundle) -> None:
    bundle = in_flavour(family, "native:fp16")
    graph = bundle.manifest.graph("target")
    assert graph
    found = {problem.operator for problem in check_operators(source_of(bundle, graph).model)}
    assert found == {"opset", "Attention", "RMSNormalization", "RotaryEmbedding", "TensorScatter"}


# Single limits of the table, each broken by the smallest graph that breaks it.


def problems_of(*nodes: onnx.NodeProto, opset: int = 20, **inputs: int) -> list[str]:
    given = [helper.make_tensor_value_info(n, kind, [4, 4]) for n, kind in inputs.items()]
    graph = helper.make_graph(nodes, "g", given, [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    return [problem.reason for problem in check_operators(model)]


FLOAT, DOUBLE, BOOL = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.BOOL
INT64, INT8 = TensorProto.INT64, TensorProto.INT8


@pytest.mark.parametrize(
    ("node", "inputs", "reason"),
    [
        (helper.make_node("Softmax", ["x"], ["y"], "n"), {"x": INT64}, "element type int64"),
        (helper.make_node("Where", ["c", "x", "x"], ["y"], "n"), {"c": BOOL, "x": INT8}, "int8"),
        (helper.make_node("Squeeze", ["x", "a"], ["y"], "n"), {"x": FLOAT, "a": INT64}, "axes"),
        (
            helper.make_node("Slice", ["x", "s", "e", "a"], ["y"], "n"),
            {"x": FLOAT, "s": INT64, "e": INT64, "a": INT64},
            "axes must be an initializer",
        ),
        (
            helper.make_node("TopK", ["x", "k"], ["v", "i"], "n", sorted=0),
            {"x": FLOAT, "k": INT64},
            "sorted must be 1",
        ),
        (
            helper.make_node("LayerNormalization", ["x", "x"], ["y", "m"], "n"),
            {"x": FLOAT},
            "first output",
        ),
        (
            helper.make_node("ScatterND", ["x", "i", "x"], ["y"], "n", reduction="add"),
            {"x": FLOAT, "i": INT64},
            "reduction",
        ),
        (
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], "n"),
            {"q": INT8, "s": FLOAT, "z": INT8},
            "zero point",
        ),
        (
            helper.make_node("Cast", ["x"], ["y"], "n", to=DOUBLE),
            {"x": FLOAT},
            "double",
        ),
    ],
)
def test_limits_of_the_table(node: onnx.NodeProto, inputs: dict[str, int], reason: str) -> None:
    found = problems_of(node, **inputs)
    assert len(found) == 1 and reason in found[0]


def test_the_opset_may_be_21_for_blocks_alone() -> None:
    plain = helper.make_node("Abs", ["x"], ["y"], "n")
    assert problems_of(plain, x=FLOAT) == []
    assert "opset 21" in problems_of(plain, opset=21, x=FLOAT)[0]
    blocks = helper.make_node("DequantizeLinear", ["q", "s"], ["y"], "n", block_size=2, axis=0)
    assert problems_of(blocks, opset=21, q=INT8, s=FLOAT) == []
    assert "opset 24" in problems_of(blocks, opset=24, q=INT8, s=FLOAT)[0]


def test_the_table_has_what_it_should() -> None:
    assert len(TABLE) == 147
    assert not {"Attention", "TensorScatter", "RotaryEmbedding", "RMSNormalization"} & set(TABLE)
