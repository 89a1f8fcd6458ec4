"""Every lowering in every precision, run by ONNX Runtime on the CPU: the reference of them all.

float32 lowerings are compared with torch elsewhere (test_parity, test_parity_heads) and give the
same tokens here; half precision and rounded weights are compared with float32 within tolerances.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgespec.bundle import Bundle, GraphSpec, read_bundle
from edgespec.cli import main
from edgespec.errors import ConfigError
from edgespec.flavour import Flavour
from edgespec_export.exporter import ExportRequest, export_bundle, plan_export
from edgespec_export.family import export_request
from edgespec_runtime import Model
from edgespec_runtime.engines import StepSession, open_engine
from edgespec_runtime.kv import KVCache
from edgespec_runtime.loading import STEP_ROLES
from edgespec_runtime.prefill import causal_mask, prefill
from tests.support.compare import assert_same_tokens
from tests.support.fakes import random_tree
from tests.support.graphs import graph_of, misused, value_types, widened
from tests.support.tiny import VOCAB, tiny_config, write_tiny
from tests.support.zoo import HAS_NATIVE, NATIVE_REASON, Zoo
from tests.test_builtin import questions
from tests.test_lossless import check_kv, check_tree_forward, tree_logits

ORT = Flavour("ort")
FP32 = [Flavour(name) for name in ("ort", "native", "portable")]
RUN = [
    *(Flavour("ort", precision) for precision in ("fp16", "int8", "int4")),
    *(Flavour(name, p) for name in ("native", "portable") for p in ("fp16", "int8", "int4")),
]
"""What a CPU runs beside float32."""
GPU = [
    Flavour(name, precision)
    for name in ("native", "portable")
    for precision in ("fp32", "fp16", "bf16", "int8", "int4")
]
ALL = tuple(dict.fromkeys([*FP32, *RUN, *GPU]))
OFF = {"fp32": 1e-5, "fp16": 1e-2, "bf16": 5e-2, "int8": 1e-1, "int4": 6e-1}
"""Largest difference from float32, as a part of the largest value; of int4 the mean one, as a part
of the mean value: rounding takes much from random models, a wrong axis or block takes all."""
ALONE = {"fp32": 2e-4, "fp16": 5e-2, "int8": 5e-2, "int4": 2e-1}
"""Largest difference of a node's logits, of order ten, from those of its path alone."""
TIES = {"fp32": 1e-4, "fp16": 3e-2, "int8": 3e-2, "int4": 3e-2}
"""Scores of two tokens that may fall either way with the number of rows in a call."""
FLOATS = {"fp32": "float32", "bf16": "bfloat16"}
HEADS = ["vispec", "eagle3", "specvlm"]
Floats = npt.NDArray[np.float32]

pytestmark = pytest.mark.skipif(not HAS_NATIVE, reason=NATIVE_REASON)


@pytest.fixture(scope="module")
def exported(zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """A grouped-query target with a packed graph and a draft of a kind, in all flavours."""
    folder = tmp_path_factory.mktemp("exported")

    @cache
    def export(kind: str) -> Bundle:
        head = kind != "vlm"
        more: dict[str, Any] = {"draft_variant": kind} if head else {"compressor": "pool:3"}
        draft = zoo.head_checkpoint("gqa", kind) if head else zoo.checkpoint("gqa", "own")
        request = ExportRequest(
            str(zoo.checkpoint("gqa")), folder / kind, str(draft), flavours=ALL, sessions=2, **more
        )
        export_bundle(request)
        return read_bundle(request.out)

    return export


@pytest.fixture(scope="module", params=["vlm", *HEADS])
def bundle(request: pytest.FixtureRequest, exported: Callable[[str], Bundle]) -> Bundle:
    return exported(request.param)


@pytest.fixture(scope="module")
def alone(exported: Callable[[str], Bundle]) -> Bundle:
    """The one with a stand-alone draft."""
    return exported("vlm")


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[Flavour, Model]:
    """The built-in family in everything that a CPU runs."""
    out = tmp_path_factory.mktemp("family") / "family.bundle"
    export_bundle(replace(export_request("draft", out), flavours=(*FP32, *RUN)))
    whole = read_bundle(out)
    return {f: Model(whole.only(f), open_engine(threads=1)) for f in (*FP32, *RUN)}


# What is in a graph


def test_standard_operators_of_the_right_types(bundle: Bundle) -> None:
    for flavour in GPU:
        for spec in bundle.only(flavour).manifest.graphs:
            model = graph_of(bundle, spec)
            assert [o.domain for o in model.opset_import] == [""], "no operators of one engine's"
            opset = model.opset_import[0].version
            portable = flavour.lowering == "portable" or spec.role == "draft_chain"
            assert opset <= 21 if portable else opset == 24
            assert opset <= 20 or not portable or flavour.precision == "int4"
            assert list(misused(model)) == [], spec.file


def test_nothing_is_multiplied_in_more_than_the_precision(bundle: Bundle) -> None:
    for flavour in GPU:
        floats = FLOATS.get(flavour.precision, "float16").replace("float32", "float")
        for spec in bundle.only(flavour).manifest.graphs:
            model = graph_of(bundle, spec)
            types = value_types(model)
            for node in model.graph.node:
                if node.op_type in ("MatMul", "Attention"):
                    given = {types[name] for name in node.input[:3] if "bool" not in types[name]}
                    assert given == {f"tensor({floats})"}, f"{spec.file}: {node.name}"


def test_all_but_caches_is_float32_outside(bundle: Bundle) -> None:
    for spec in bundle.manifest.graphs:
        floats = FLOATS.get(spec.precision, "float16")
        if spec.lowering == "ort" and spec.precision in ("int8", "int4"):  # a CPU's arithmetic
            floats = "float32"
        for tensor in (*spec.inputs, *spec.outputs):
            cached = tensor.name.startswith(("past_k", "past_v", "present_", "new_"))
            if tensor.dtype not in ("int64", "bool"):
                assert tensor.dtype == (floats if cached else "float32"), (spec.file, tensor.name)


def test_rounded_weights_have_no_zero_points(bundle: Bundle) -> None:
    for lowering in ("native", "portable"):
        for precision, role in (("int8", "target"), ("int4", "target"), ("int4", "draft")):
            spec = bundle.only(Flavour(lowering, precision)).manifest.graph(role)
            assert spec is not None
            nodes = graph_of(bundle, spec).graph.node
            found = [node for node in nodes if node.op_type == "DequantizeLinear"]
            layers = int(spec.meta["layers"])
            assert 2 * layers <= len(found) <= 5 * layers
            assert all(len(node.input) == 2 for node in found)
            kind = ".int8" if role == "draft" else f".{precision}"
            assert all(node.input[0].endswith(kind) for node in found)
            assert not any(node.input[0].startswith(("head", "lm_head")) for node in found)


def test_a_precision_is_stored_once(bundle: Bundle) -> None:
    """The second lowering of a precision has no weights of its own; int8 and int4 share with fp16
    what they do not round."""
    files = bundle.manifest.files
    for precision in ("fp16", "bf16", "int8", "int4"):
        assert not any(n.endswith(f"portable-{precision}.bin") for n in files)
    assert not any(n.startswith(("vision.", "projector.")) and "-int" in n for n in files
                   if n.endswith(".bin"))  # fmt: skip
    whole, eighth = (
        bundle.only(Flavour("native", p)).manifest.graph("target") for p in ("fp16", "int8")
    )
    assert whole is not None and eighth is not None
    assert eighth.meta["weight_bytes"] < whole.meta["weight_bytes"]
    assert eighth.meta["multiplied"] == whole.meta["multiplied"]


# What graphs compute


def graph_outputs(bundle: Bundle, spec: GraphSpec, folder: Path) -> dict[str, Floats]:
    """Of a graph without memory, on random inputs that depend on their names alone."""
    feeds = {}
    for tensor in spec.inputs:
        sizes = [axis if isinstance(axis, int) else 3 for axis in tensor.axes]
        rng = np.random.default_rng([len(tensor.name), *sizes])
        feeds[tensor.name] = rng.standard_normal(sizes, dtype=np.float32)
    return open_engine(threads=1).load(spec, folder).run(feeds)


def step_outputs(bundle: Bundle, spec: GraphSpec, folder: Path) -> dict[str, Floats]:
    """Of a step graph, for a random tree below a random prefix."""
    rng = np.random.default_rng(7)
    names = [t.name for t in spec.outputs if not t.name.startswith(("present_", "new_", "topk_"))]
    session = open_engine(threads=1).load_step(spec, folder).open(40, tuple(names))
    table = np.load(bundle.file(f"{spec.role}.embed.npy"))
    hidden = rng.standard_normal((30, int(spec.meta["hidden"])), dtype=np.float32)
    fed = any(tensor.name == "hidden" for tensor in spec.inputs)
    prefix, tree = rng.integers(len(table), size=12), random_tree(rng, 9, len(table))
    prefill(session, table[prefix], range(12), hidden[:12] if fed else None)
    mask = np.concatenate([np.ones((10, 12), dtype=np.bool_), tree.mask()], axis=1)
    found = session.step(
        table[[5, *tree.tokens]],
        [12, *(12 + depth for depth in tree.depths)],
        mask,
        hidden=hidden[12:22] if fed else None,
    )
    outputs = dict(zip(names, (array.copy() for array in found), strict=True))
    return outputs | {"cache": rows_of(session)}


def rows_of(session: StepSession) -> Floats:
    """What its cache holds so far."""
    cache = session.cache
    assert isinstance(cache, KVCache)
    return np.asarray(cache.rows[..., : cache.used, :], dtype=np.float32)


def check_close(found: dict[str, Floats], wanted: dict[str, Floats], off: float) -> None:
    for name, theirs in wanted.items():
        size = np.mean if off >= OFF["int4"] else np.max
        assert size(np.abs(found[name] - theirs)) <= off * size(np.abs(theirs)), name


@pytest.mark.parametrize("flavour", [*FP32[1:], *RUN, *GPU[2::5]], ids=str)
def test_flavours_agree(bundle: Bundle, tmp_path: Path, flavour: Flavour) -> None:
    wide = {g.role: g for g in bundle.only(ORT).manifest.graphs}
    for spec in bundle.only(flavour).manifest.graphs:
        if spec.role in ("draft_chain", "target_packed"):
            continue
        outputs = step_outputs if spec.role in STEP_ROLES else graph_outputs
        wanted = outputs(bundle, wide[spec.role], bundle.path)
        folder = bundle.path
        if flavour.precision == "bf16":
            spec, folder = widened(bundle, spec, tmp_path), tmp_path
        found = outputs(bundle, spec, folder)
        if spec.role == "target" and flavour.lowering != "ort":
            best = found["logits"].argmax(-1)
            np.testing.assert_array_equal(found.pop("best_ids"), best)
            np.testing.assert_array_equal(found.pop("best_logits"), found["logits"].max(-1))
        assert found.keys() == wanted.keys()
        check_close(found, wanted, OFF[flavour.precision])


def chain_outputs(bundle: Bundle, flavour: Flavour) -> tuple[Any, ...]:
    manifest = bundle.only(flavour).manifest
    chain, step = manifest.graph("draft_chain"), manifest.graph("draft")
    assert chain is not None and step is not None
    engine, rng = open_engine(threads=1), np.random.default_rng(3)
    table = np.load(bundle.file("draft.embed.npy"))
    given = {t.name for t in chain.inputs}
    hidden = rng.standard_normal((11, int(chain.meta["hidden"])), dtype=np.float32)
    offset = 0.1 * rng.standard_normal(int(chain.meta["hidden"]), dtype=np.float32)
    first = engine.load_step(step, bundle.path).open(40)
    tokens = rng.integers(len(table), size=11)
    fed = "hidden" in given
    prefill(first, table[tokens[:8]], range(8), hidden[:8] if fed else None)
    session = engine.load_step(chain, bundle.path).open(
        0, ("topk_logprobs", "topk_ids"), first.cache
    )
    scores, ids = session.step(
        table[tokens[8:]], range(8, 11), causal_mask(8, 3),
        hidden=hidden[8:] if fed else None, offset=offset if "offset" in given else None,
    )  # fmt: skip
    assert session.cache.pending == 3 + int(chain.meta["steps"]) - 1
    return scores.copy(), ids.copy(), rows_of(session)


@pytest.mark.parametrize("flavour", [*FP32[1:], *RUN], ids=str)
def test_chains_agree(bundle: Bundle, flavour: Flavour) -> None:
    """On the cache that the step graph of the same flavour writes, rows of both kinds in it. Three
    steps: a random head feeds back ever larger features, and differences grow with them."""
    (scores, ids, rows), (ours, our_ids, our_rows) = (
        chain_outputs(bundle, f) for f in (ORT, flavour)
    )
    same = int((our_ids[:3, 0] == ids[:3, 0]).cumprod().sum())
    assert same == 3 or flavour.precision in ("int8", "int4")  # both int8 drafts
    steps, used = max(same, 1), 11 + max(same - 1, 0)
    check_close(
        {"scores": ours[:steps], "rows": our_rows[..., :used, :]},
        {"scores": scores[:steps], "rows": rows[..., :used, :]},
        max(2 * OFF["int8" if flavour.precision == "int4" else flavour.precision], 1e-4),
    )


@pytest.mark.parametrize("flavour", [*FP32[1:], *RUN], ids=str)
def test_tree_forward_oracle(alone: Bundle, flavour: Flavour) -> None:
    """A node's logits are those of a plain forward over its path."""
    spec = alone.only(flavour).manifest.graph("target")
    assert spec is not None
    step = open_engine(threads=1).load_step(spec, alone.path)
    table = np.load(alone.file("target.embed.npy"))
    tolerance = ALONE[flavour.precision]
    for seed, nodes in enumerate((0, 2, 9, 24)):
        rng = np.random.default_rng([seed, 4])
        check_tree_forward(lambda: step.open(80), table, rng, nodes, tolerance)


@pytest.mark.parametrize("flavour", [*FP32[1:], *RUN], ids=str)
def test_kv_cache_is_a_fresh_prefill(alone: Bundle, zoo: Zoo, flavour: Flavour) -> None:
    model = Model(alone.only(flavour), open_engine(threads=1))
    request = model.stream(
        [zoo.picture("gqa", 1)], "tell me", policy="eagle2:nodes=12,depth=4,top_k=3",
        max_new_tokens=20,
    )  # fmt: skip
    tolerance = 2e-4 if flavour.precision == "fp32" else 3e-2
    assert check_kv(model, request, tolerance) >= 1


@pytest.mark.parametrize("flavour", [Flavour("native", "fp16"), Flavour("portable", "fp16")])
def test_rows_that_see_nothing_are_no_nan(alone: Bundle, flavour: Flavour) -> None:
    """Rows that only fill a bucket may be masked whole; they must not spoil the others."""
    spec = alone.only(flavour).manifest.graph("target")
    assert spec is not None
    table = np.load(alone.file("target.embed.npy"))
    session: StepSession = open_engine(threads=1).load_step(spec, alone.path).open(40)
    mask = causal_mask(0, 6)
    wanted = session.step(table[:6], range(6), mask)[0].copy()
    session.cache.commit(())
    mask[4:] = False
    found = session.step(table[:6], range(6), mask)[0]
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[:4], wanted[:4], atol=2e-2)


# What comes out of it


def test_float32_lowerings_say_the_same(family: dict[Flavour, Model]) -> None:
    asked = [*questions("in_domain", "detailed", 2), *questions("out_of_domain", "detailed", 1)]
    for image, prompt in asked:
        said = [
            family[flavour].generate([image], prompt, draft=draft, max_new_tokens=48).token_ids
            for flavour in FP32
            for draft in ("none", "model")
        ]
        assert len(said[0]) > 5 and all(tokens == said[0] for tokens in said)


@pytest.fixture(scope="module")
def wide(family: dict[Flavour, Model]) -> Callable[..., tuple[int, ...]]:
    """Plain tokens in float32, computed once for all that are compared with them."""

    @cache
    def tokens(image: Path, prompt: str, **given: Any) -> tuple[int, ...]:
        return family[ORT].generate([image], prompt, draft="none", **given).token_ids

    return tokens


@pytest.mark.parametrize("flavour", RUN, ids=str)
def test_speculative_is_plain_in_every_flavour(
    family: dict[Flavour, Model], wide: Callable[..., tuple[int, ...]], flavour: Flavour
) -> None:
    """Where the number of rows in a call decides between two tokens, these are close: said with
    their gap. Half precision parts from float32 only at such places, too."""
    model, tie = family[flavour], TIES[flavour.precision]
    accepted, flips = 0.0, []
    for image, prompt in questions("in_domain", "detailed", 3):
        for settings in ({}, {"temperature": 0.8, "seed": 4}):
            given: dict[str, Any] = {**settings, "max_new_tokens": 40}
            plain = model.generate([image], prompt, draft="none", **given)
            spec = model.generate([image], prompt, draft="model", **given)
            ours = (plain.token_ids, spec.token_ids)
            flips.append(assert_same_tokens(model, [image], prompt, given, *ours, tie))
            accepted = max(accepted, spec.stats.accepted_length)
            if flavour.precision == "fp16":
                theirs = wide(image, prompt, **given)
                assert_same_tokens(
                    family[ORT], [image], prompt, given, theirs, plain.token_ids, tie
                )
    assert accepted > 2.0, "hardly anything was accepted: the test shows nothing"
    assert len([gap for gap in flips if gap is not None]) <= 1, flips


@pytest.mark.parametrize("tower", ["clip", "siglip_vision"])
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_the_geometry_of_llava_15(tmp_path: Path, tower: str, kv_heads: int) -> None:
    """576 visual tokens (729 of SigLIP), 4,096 positions, Vicuna's vocabulary; small widths."""
    clip = tower == "clip"
    config = tiny_config(
        tower="clip" if clip else "siglip",
        vision_extra={"image_size": 336 if clip else 384, "patch_size": 14},
        text_extra={
            "max_position_embeddings": 4096, "num_key_value_heads": kv_heads, "head_dim": 16,
        },
        image_token_index=3,
    )  # fmt: skip
    flavours = (*FP32, Flavour("native", "fp16"), Flavour("portable", "fp16"))
    target = write_tiny(tmp_path / "target", config)
    export_bundle(ExportRequest(str(target), tmp_path / "b", flavours=flavours))
    found = read_bundle(tmp_path / "b")
    table, engine = np.load(found.file("target.embed.npy")), open_engine(threads=1)
    rng = np.random.default_rng(2)
    side = 336 if clip else 384
    pixels = rng.standard_normal((1, 3, side, side), dtype=np.float32)
    tree = random_tree(rng, 12, VOCAB)
    said: list[Floats] = []
    for flavour in flavours:
        graphs = {g.role: g for g in found.only(flavour).manifest.graphs}
        seen = engine.load(graphs["vision"], found.path).run({"pixel_values": pixels})["features"]
        assert seen.shape[1] == (576 if clip else 729)
        visual = engine.load(graphs["projector"], found.path).run({"features": seen})
        prompt = np.concatenate([table[:5], visual["image_embeds"][0], table[5:9]])
        session = engine.load_step(graphs["target"], found.path).open(len(prompt) + 20)
        prefill(session, prompt)
        said.append(tree_logits(session, table, 7, tree))
    for flavour, logits in zip(flavours, said, strict=True):
        check_close({"logits": logits}, {"logits": said[0]}, OFF[flavour.precision])


# What is refused


def test_cuda_has_no_float32(zoo: Zoo) -> None:
    """Its GroupQueryAttention takes halves alone."""
    request = ExportRequest(str(zoo.checkpoint("gqa")), Path("b"), flavours=(Flavour("cuda"),))
    with pytest.raises(ConfigError, match="'cuda' has fp16, bf16, int8, int4; use native:fp32"):
        plan_export(request)


def test_parity_of_half_precision(zoo: Zoo, tmp_path: Path) -> None:
    draft = zoo.head_checkpoint("gqa", "eagle3")
    out = tmp_path / "b"
    asked = ["native:fp16", "portable:fp16", "portable:bf16"]
    assert main([
        "export", "--target", str(zoo.checkpoint("gqa")), "--draft", str(draft), "--parity",
        "--out", str(out), "--sessions", "2",
        *(word for name in asked for word in ("--lowering", name)),
    ]) == 0  # fmt: skip
    report = read_bundle(out).manifest.parity
    assert report["target"]["max_abs_diff"] <= OFF["fp16"] * report["target"]["max_abs_value"]
    assert report["target"]["max_abs_diff"] > 1e-5, "float32 was compared"
    assert report["draft_chain.portable-fp16"]["max_abs_value"] > 0
    packed = [report[f"target_packed{end}"] for end in ("", ".portable-fp16")]
    assert all(figures["against"] == "the step graph" for figures in packed)
    assert report["draft.portable-bf16"].startswith("not checked: ")
