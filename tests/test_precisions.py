"""Precisions by part, end to end: what bundles hold and say of themselves, and what comes out."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

import edgespec_runtime
from edgespec.bundle import Bundle, GraphSpec, read_bundle
from edgespec.cli import main
from edgespec.errors import ConfigError, InputError
from edgespec.flavour import Flavour
from edgespec.precisions import Precisions
from edgespec_export.assets import read_assets
from edgespec_export.exporter import ExportRequest, export_bundle, plan_export
from edgespec_export.family import checkpoint_path, export_request, sample_folder
from edgespec_export.plan import open_model
from edgespec_export.quantise.asking import calibration_rows
from edgespec_export.quantise.moments import LayerMoments
from edgespec_export.quantise.quality import answers, compared
from edgespec_export.questions import questions_of, read_questions
from edgespec_runtime import Model
from edgespec_runtime.engines import open_engine
from edgespec_runtime.prefill import causal_mask
from edgespec_runtime.tables import open_table
from tests.support.compare import first_difference
from tests.support.tiny import write_tiny
from tests.test_builtin import questions

Floats = npt.NDArray[np.float32]
ORT = Flavour("ort")
INT8, INT4 = Flavour("ort", "int8"), Flavour("ort", "int4")
ASKED = [*questions("in_domain", "detailed", 4), *questions("out_of_domain", "detailed", 2)]
CLOSE = 0.3
"""Largest difference of two tokens' scores that the number of rows may decide between in integer
kernels; right ones are ahead by 3 and more."""


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("family") / "family.bundle"
    export_bundle(replace(export_request("draft", out), flavours=(ORT, INT8, INT4)))
    return read_bundle(out)


@pytest.fixture(scope="module")
def models(family: Bundle) -> dict[tuple[Flavour, bool], Model]:
    """By flavour, and whether plain decoding is exact."""
    return {
        (flavour, exact): Model(family.only(flavour), open_engine("ort", threads=1), exact=exact)
        for flavour in (ORT, INT8, INT4)
        for exact in (False, True)
    }


def target_of(bundle: Bundle, flavour: Flavour) -> GraphSpec:
    spec = bundle.only(flavour).manifest.graph("target")
    assert spec is not None
    return spec


def loaded(bundle: Bundle, spec: GraphSpec) -> onnx.ModelProto:
    return onnx.load(bundle.path / spec.file, load_external_data=False)


# Asking for them


def test_parts() -> None:
    assert Precisions.parse("int4") == Precisions(target="int4")
    assert Precisions.parse("int8,block=64") == Precisions(target="int8", block="64")
    mixed = Precisions.parse("target=int4, draft=int8,vision=fp16,head=int8,block=64")
    assert (mixed.target, mixed.draft, mixed.head, mixed.block) == ("int4", "int8", "int8", "64")
    assert Precisions.parse(str(mixed)) == mixed


@pytest.mark.parametrize(
    "text, words",
    [
        ("target=int5", "unknown precision 'int5' of target; there are: fp32, fp16, bf16, int8"),
        ("int3", "unknown precision 'int3' of target"),
        ("vision=int4", "unknown precision 'int4' of vision; there are: fp32, fp16, bf16"),
        ("tower=fp16", "'tower=fp16' names no part.*target, draft, vision, head, embedding, block"),
        ("target=int4,int8", "'int8' names no part"),
        ("block=48", "unknown block '48' of block; there are: 32, 64, 128"),
        ("head=int8,head=int4", "names 'head' twice"),
    ],
)
def test_parts_that_do_not_exist(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Precisions.parse(text)


def test_a_settings_file_may_name_parts(tmp_path: Path, capsys: Any) -> None:
    target = write_tiny(tmp_path / "target")
    settings = tmp_path / "export.yaml"
    settings.write_text(
        f"target: {target}\nout: {tmp_path / 'b'}\n"
        "precision: {target: int8, head: fp16, embedding: int8}\n",
        encoding="utf-8",
    )
    assert main(["export", "--config", str(settings)]) == 0
    bundle = read_bundle(tmp_path / "b")
    assert bundle.manifest.flavours == (INT8,)
    assert target_of(bundle, INT8).meta["stored"] == {"layers": "int8", "head": "fp16"}
    assert "target.embed.scale.npy" in bundle.manifest.files
    settings.write_text("precision: {targets: int8}\ntarget: x\nout: y\n", encoding="utf-8")
    assert main(["export", "--config", str(settings)]) == 2
    assert "'targets=int8' names no part" in capsys.readouterr().err
    settings.write_text("target: {a: b}\nout: y\n", encoding="utf-8")
    assert main(["export", "--config", str(settings)]) == 2
    assert "a single value is expected" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, words",
    [
        ({"calibration": "x.jsonl", "flavours": (INT8,)}, "--calibration is about int4 weights"),
        ({"calibration": "x.jsonl", "flavours": (Flavour("native", "int4"),)}, "ort and cuda"),
        ({"quality": "x.jsonl", "flavours": (ORT,)}, "--quality compares quantised targets"),
        ({"quality": "x.jsonl", "flavours": (INT8,), "part": "device"}, "--quality runs the"),
        ({"calibration": "none.jsonl", "flavours": (INT4,)}, "'none.jsonl' cannot be read"),
        ({"flavours": (Flavour("cuda"),)}, "lowering 'cuda' has fp16, bf16, int8, int4"),
        ({"embedding": "int8", "parity": True}, "--parity holds all graphs"),
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, Any], words: str) -> None:
    parts = Precisions(embedding=change.pop("embedding", "fp32"))
    request = ExportRequest(str(checkpoint_path("target")), Path("x"), precisions=parts)
    with pytest.raises(InputError, match=words):
        plan_export(replace(request, **change))


# What bundles hold and say


def test_manifests_say_how_weights_are_stored(family: Bundle) -> None:
    stored = {f: target_of(family, f).meta["stored"] for f in (ORT, INT8, INT4)}
    assert stored[ORT] == {"layers": "fp32", "head": "fp32"}
    assert stored[INT8] == {"layers": "int8", "head": "int8"}
    assert stored[INT4] == {
        "layers": "int4", "head": "int8", "block": "64", "rounding": "nearest",
    }  # fmt: skip
    said = {f: target_of(family, f).meta["row_invariant"] for f in stored}
    assert said[ORT].startswith("up to float32 rounding")
    assert said[INT8].startswith("products exactly") and "attention" in said[INT8]
    assert said[INT4].startswith("products up to float32 rounding")


def test_weights_are_as_small_as_they_should_be(family: Bundle) -> None:
    whole, eight, four = (target_of(family, f).meta["weight_bytes"] for f in (ORT, INT8, INT4))
    assert eight < 0.29 * whole and four < 0.20 * whole
    drafts = [
        family.only(f).manifest.graph("draft").meta["stored"]["layers"]  # type: ignore[union-attr]
        for f in (ORT, INT8, INT4)
    ]
    assert drafts == ["fp32", "int8", "int8"]


def test_every_part_gets_what_was_asked_for_it(tmp_path: Path) -> None:
    request = replace(
        export_request("draft", tmp_path / "b"),
        flavours=(INT4,),
        precisions=Precisions.parse("draft=fp32,vision=fp16,head=int4,block=64,embedding=fp16"),
    )
    export_bundle(request)
    bundle = read_bundle(tmp_path / "b")
    kinds = {
        spec.role: {node.op_type for node in loaded(bundle, spec).graph.node}
        for spec in bundle.manifest.graphs
    }
    assert "MatMulNBits" in kinds["target"] and "MatMulInteger" not in kinds["target"]
    assert {"MatMulNBits", "MatMulInteger"}.isdisjoint(kinds["draft"] - {"MatMulNBits"})
    assert "Cast" in kinds["vision"], "float16 inside, float32 outside"
    small = bundle.manifest.files["vision.bin"].size
    assert small < 4.2e6
    model = Model(bundle, open_engine("ort", threads=1))
    image, prompt = ASKED[0]
    said = model.generate([image], prompt, max_new_tokens=40)
    assert len(said.token_ids) == 40 and said.stats.accepted_length > 2


@pytest.mark.parametrize("stored, off", [("fp16", 1e-3), ("int8", 5e-3)])
def test_token_tables_are_float32_when_they_are_read(
    tmp_path: Path, stored: str, off: float
) -> None:
    target = write_tiny(tmp_path / "target")
    for name in ("fp32", stored):
        parts = Precisions(embedding=name)
        export_bundle(ExportRequest(str(target), tmp_path / name, precisions=parts))
    wanted, found = (open_table(read_bundle(tmp_path / n), "target") for n in ("fp32", stored))
    assert found.shape == wanted.shape and len(found) == len(wanted)
    ids = [5, 0, 5, 90]
    assert found[ids].dtype == np.float32 and found[7].shape == wanted[7].shape
    scale = np.abs(wanted[list(range(96))]).max(axis=-1, keepdims=True)
    assert (np.abs(found[list(range(96))] - wanted[list(range(96))]) <= off * scale).all()
    files = [tmp_path / n / "target.embed.npy" for n in ("fp32", stored)]
    assert files[1].stat().st_size < 0.6 * files[0].stat().st_size


# What they compute


def rows_of(model: Model) -> tuple[Any, Floats, int]:
    """A session behind a prompt with a picture, rows to continue it, and the prompt's length."""
    image, prompt = ASKED[0]
    embeds = model.prompt_embeds([image], prompt)
    step = model.steps["target"]
    table = model.tables["target"]
    session = step.open(len(embeds) + 16)
    session.step(embeds, np.arange(len(embeds)), causal_mask(0, len(embeds)), last_only=True)
    session.cache.commit(range(len(embeds)))
    return session, table[list(range(100, 112))], len(embeds)


@pytest.mark.parametrize("flavour", [INT8, INT4], ids=str)
def test_several_rows_are_the_same_however_many(
    models: dict[tuple[Flavour, bool], Model], flavour: Flavour
) -> None:
    """Of an even number: exact decoding rests on that. The last one of an odd number goes through
    the kernel of single rows."""
    session, rows, start = rows_of(models[flavour, False])
    mask = causal_mask(start, len(rows))
    together = session.step(rows, np.arange(start, start + len(rows)), mask)[0].copy()
    session.cache.commit(())
    for count in (2, 4, 6, 8):
        where = np.arange(start, start + count)
        apart = session.step(rows[:count], where, causal_mask(start, count))[0]
        session.cache.commit(())
        np.testing.assert_allclose(apart, together[:count], atol=1e-5 * np.abs(together).max())


@pytest.mark.parametrize("flavour", [INT8, INT4], ids=str)
@pytest.mark.parametrize("policy", ["eagle2:nodes=12,depth=12,top_k=1", "eagle2:nodes=9,depth=3"])
def test_speculation_gives_the_plain_text(
    models: dict[tuple[Flavour, bool], Model], flavour: Flavour, policy: str
) -> None:
    """Of the same precision. Chains do so always where plain decoding is exact; a difference must
    be one between two tokens that are close."""
    for exact in (False, True):
        model, accepted, flips = models[flavour, exact], [], []
        for image, prompt in ASKED:
            given: dict[str, Any] = {"max_new_tokens": 60, "temperature": 0.0}
            plain = model.generate([image], prompt, draft="none", **given).token_ids
            spec = model.generate([image], prompt, draft="model", policy=policy, **given)
            accepted.append(spec.stats.accepted_length)
            at = first_difference(plain, spec.token_ids)
            if at is not None:
                flips.append(gap(model, (image, prompt), plain[:at], plain[at], spec.token_ids[at]))
        assert max(accepted) > 3
        assert max(flips, default=0.0) < CLOSE and len(flips) <= 1
        assert not (exact and "top_k=1" in policy and flips)


def gap(model: Model, asked: tuple[Path, str], known: tuple[int, ...], *pair: int) -> float:
    """How far two tokens' logits are apart after ``known``."""
    image, prompt = asked
    rows = np.concatenate(
        [model.prompt_embeds([image], prompt), model.tables["target"][list(known)]]
    )
    session = model.steps["target"].open(len(rows))
    mask = causal_mask(0, len(rows))
    (logits,) = session.step(rows, np.arange(len(rows)), mask, last_only=True)
    return abs(float(logits[0, pair[0]] - logits[0, pair[1]]))


def counted(step: Any, sizes: list[int], embeds: Any, *rest: Any, **more: Any) -> Any:
    sizes.append(len(embeds))
    return step(embeds, *rest, **more)


def test_exact_decoding_steps_two_rows_and_says_the_same(
    models: dict[tuple[Flavour, bool], Model],
) -> None:
    image, prompt = ASKED[1]
    said = []
    for exact in (False, True):
        request = models[ORT, exact].stream([image], prompt, draft="none", max_new_tokens=30)
        session = request._verifier._session  # type: ignore[attr-defined]
        sizes: list[int] = []
        step = session.step

        session.step = partial(counted, step, sizes)
        said.append([record.token for record in request])
        assert set(sizes[1:]) == {2 if exact else 1}
        assert session.cache.length == sizes[0] + len(sizes) - 1
    assert said[0] == said[1]


def test_exact_is_for_targets_that_run_here(family: Bundle) -> None:
    with pytest.raises(ConfigError, match="leave --exact out"):
        edgespec_runtime.load(family.path, remote=object(), exact=True)  # type: ignore[arg-type]


# Calibration and quality


def test_layers_are_traced_as_the_target_runs_them(
    models: dict[tuple[Flavour, bool], Model],
) -> None:
    """The rows behind the last layer give the logits of the whole graph."""
    target = open_model(str(checkpoint_path("target")))
    asked = read_questions([sample_folder() / "in_domain.jsonl"], 2)
    assets = read_assets(target.checkpoint, target.geometry)
    rows = calibration_rows(target, assets, asked)
    model = models[ORT, False]
    prompt = model.prompt_embeds([asked[0].image], asked[0].prompt)  # type: ignore[list-item]
    np.testing.assert_allclose(rows[0][: len(prompt)], prompt, atol=1e-4)
    assert len(rows[0]) > len(prompt) + 20, "the answer follows"
    text = target.geometry.text
    moments = LayerMoments(target.checkpoint, text, lambda: rows)
    last = text.layers - 1
    assert moments.root(f"text.layers.{last}.down.weight") is not None
    normed = moments._rows[0] / np.sqrt(
        np.square(moments._rows[0]).mean(-1, keepdims=True) + text.eps
    )
    normed *= target.checkpoint.tensor("text.norm.weight")
    found = normed @ target.checkpoint.tensor("text.embed_tokens.weight").T
    session = model.steps["target"].open(len(rows[0]))
    mask = causal_mask(0, len(rows[0]))
    (wanted,) = session.step(rows[0], np.arange(len(rows[0])), mask)
    np.testing.assert_allclose(found, wanted, atol=2e-3)
    assert moments.root("head.weight") is None
    first = moments.root("text.layers.0.qkv.weight")  # an earlier layer begins again
    assert first is not None and first.shape == (256, 256)


def test_calibration_brings_a_target_nearer_to_float32(
    models: dict[tuple[Flavour, bool], Model], tmp_path: Path
) -> None:
    calibrated = str(sample_folder() / "out_of_domain.jsonl") + ":8"
    judged = questions_of(str(sample_folder() / "in_domain.jsonl"), 5)
    answered = answers(models[ORT, False], judged)
    figures = []
    for name, questions_ in (("nearest", []), ("gptq", ["--calibration", calibrated])):
        command = ["export", "--target", str(checkpoint_path("target")), "--precision"]
        command += ["target=int4,block=128", "--out", str(tmp_path / name), *questions_]
        assert main(command) == 0
        bundle = read_bundle(tmp_path / name)
        assert target_of(bundle, INT4).meta["stored"]["rounding"] == name
        figures.append(compared(Model(bundle, open_engine("ort", threads=1)), answered))
    assert figures[1]["divergence"] < 0.75 * figures[0]["divergence"]
    assert figures[1]["perplexity"] <= figures[0]["perplexity"] * 1.001
    assert figures[1]["agreement"] >= figures[0]["agreement"]


def test_quality_is_told_in_the_manifest(tmp_path: Path) -> None:
    out = str(tmp_path / "b")
    command = ["export", "--target", "builtin", "--out", out, "--precision", "int8"]
    assert main([*command, "--quality", "builtin:3", "--json"]) == 0
    manifest = json.loads((tmp_path / "b" / "edgespec.json").read_text(encoding="utf-8"))
    told = {g["role"]: g["meta"].get("quality") for g in manifest["graphs"]}
    found = told.pop("target")
    assert found["against"] == "ort:fp32" and found["questions"] == 3
    assert 0 < found["divergence"] < 0.01 and found["agreement"] > 0.95
    assert 1 <= found["perplexity"] < 1.5 and 0 <= found["exact_match"] <= 1
    assert not any(told.values())
    assert read_bundle(out).manifest.flavours == (INT8,), "whole, with its reference gone"


def test_cuda_has_blocks_in_half_precision(tmp_path: Path) -> None:
    """Run by the CPU's kernels here: what is written is what is meant."""
    flavours = (Flavour("cuda", "int8"), Flavour("cuda", "int4"))
    target = str(checkpoint_path("target"))
    export_bundle(ExportRequest(target, tmp_path / "b", flavours=(ORT, *flavours)))
    bundle = read_bundle(tmp_path / "b")
    asked = questions_of(str(sample_folder() / "in_domain.jsonl"), 2)
    answered = answers(Model(bundle.only(ORT), open_engine("ort", threads=1)), asked)
    for flavour, most in zip(flavours, (1e-3, 1e-2), strict=True):
        spec = target_of(bundle, flavour)
        assert spec.meta["row_invariant"] == "up to float16 rounding; close second tokens may win"
        sizes = {
            (next(a.i for a in node.attribute if a.name == "bits"),
             next(a.i for a in node.attribute if a.name == "block_size"))
            for node in loaded(bundle, spec).graph.node if node.op_type == "MatMulNBits"
        }  # fmt: skip
        assert sizes == ({(8, 128)} if flavour.precision == "int8" else {(4, 128), (8, 128)})
        figures = compared(Model(bundle.only(flavour), open_engine("ort", threads=1)), answered)
        assert figures["divergence"] < most
