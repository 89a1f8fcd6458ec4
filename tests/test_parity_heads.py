"""Every graph of a feature-level draft against its torch module, as `edgespec export --parity`
reports it; and that a graph which differs is not published."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import edgespec_runtime
from edgespec.errors import ConfigError, EngineError
from edgespec.flavour import Flavour
from edgespec.sizing import parse_policy
from edgespec_export.exporter import ExportRequest, export_bundle, plan_export
from edgespec_export.heads.folded import Folded
from edgespec_export.heads.layouts import open_head
from edgespec_export.heads.modules import build_head
from edgespec_export.heads.save import write_head
from edgespec_export.plan import open_model
from edgespec_export.vocabulary import write_frequencies
from tests.support.fakes import grown_by
from tests.support.random_heads import VARIANTS, random_head
from tests.support.zoo import LOWERINGS, Zoo

CASES = [
    *((variant, "") for variant in VARIANTS),
    ("eaglevlm", "pool:4"), ("eagle3", "prune:4"), ("msd", "text-only"), ("eagle", "stride:3"),
    *(("specvlm", kind) for kind in (
        "elastic:weighted", "elastic:concat", "conv:3", "resampler:2",
    )),
]  # fmt: skip


def export(zoo: Zoo, out: Path, variant: str, compressor: str = "", **more: Any) -> dict[str, Any]:
    asked = compressor if variant != "specvlm" else ""
    request = ExportRequest(
        str(zoo.checkpoint("gqa")),
        out,
        str(zoo.head_checkpoint("gqa", variant, compressor)),
        asked or None,
        draft_variant=variant,
        parity=True,
        **more,
    )
    return dict(export_bundle(request).parity)


@pytest.mark.parametrize("variant, compressor", CASES)
def test_every_graph_equals_its_module(
    zoo: Zoo, tmp_path: Path, variant: str, compressor: str
) -> None:
    report = export(zoo, tmp_path / "b", variant, compressor)
    assert {"target", "draft", "draft_chain"} <= report.keys()
    assert ("compressor" in report) == bool(compressor or variant in ("vispec", "specvlm"))
    assert ("draft_features" in report) == (variant == "eagle3")
    for role, figures in report.items():
        assert figures["max_abs_diff"] <= 1e-4 * figures["max_abs_value"], role
    assert report["draft"]["argmax_equal"] and "hidden" in report["target"]


@pytest.mark.parametrize("lowering", LOWERINGS[1:])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_other_lowerings_as_well(zoo: Zoo, tmp_path: Path, variant: str, lowering: str) -> None:
    report = export(zoo, tmp_path / "b", variant, flavours=(Flavour(lowering),))
    assert report["draft"]["argmax_equal"]
    for role, figures in report.items():
        assert figures["max_abs_diff"] <= 1e-4 * figures["max_abs_value"], role


@pytest.mark.parametrize("variant", ["eaglevlm", "vispec", "eagle3"])
def test_a_trimmed_vocabulary(zoo: Zoo, tmp_path: Path, variant: str) -> None:
    """Only listed tokens are proposed, with the module's own order among them."""
    frequencies = tmp_path / "f.json"
    write_frequencies(frequencies, 320, {7: 9, 300: 5, 41: 3, 12: 2, 99: 1}, [2])
    report = export(zoo, tmp_path / "b", variant, draft_vocab=f"{frequencies}:5")
    assert report["draft"]["argmax_equal"]
    manifest = json.loads((tmp_path / "b" / "edgespec.json").read_text(encoding="utf-8"))
    (draft,) = (g for g in manifest["graphs"] if g["role"] == "draft")
    logits = next(o for o in draft["outputs"] if o["name"] == "logits")
    assert logits["axes"][-1] == 5 and draft["meta"]["top_k"] == 5


def test_a_trimmed_vocabulary_of_a_draft_vlm(zoo: Zoo, tmp_path: Path) -> None:
    frequencies = tmp_path / "f.json"
    write_frequencies(frequencies, 320, {7: 9, 300: 5, 41: 3, 12: 2, 99: 1}, [2])
    request = ExportRequest(
        str(zoo.checkpoint("gqa")), tmp_path / "b", str(zoo.checkpoint("gqa", "shared")), "pool:4",
        draft_vocab=str(frequencies), parity=True,
    )  # fmt: skip
    report = export_bundle(request).parity
    assert report["draft"]["argmax_equal"] and report["draft_chain"]["max_abs_diff"] < 1e-3


def test_a_vocabulary_of_its_own(zoo: Zoo, tmp_path: Path) -> None:
    """Published EAGLE-3 heads have d2t: the graphs' candidates are the target's tokens."""
    target = open_model(str(zoo.checkpoint("gqa")))
    whole = random_head(target, "eagle3")
    geometry = replace(whole.geometry, draft_vocab=40)
    head = build_head(geometry, whole.embed_tokens.weight, whole.get_buffer("target_head"))
    ids = torch.arange(40) * 7 + 4
    weights = {**whole.state_dict(), "d2t": ids - torch.arange(40)}
    head.load_state_dict({**weights, "lm_head.weight": weights["lm_head.weight"][ids]})
    folder = write_head(tmp_path / "head", head, target_fingerprint=target.text_fingerprint)
    request = ExportRequest(str(zoo.checkpoint("gqa")), tmp_path / "b", str(folder), parity=True)
    report = export_bundle(request).parity
    assert report["draft"]["argmax_equal"] and report["draft_chain"]["max_abs_diff"] < 1e-3
    model = edgespec_runtime.load(tmp_path / "b", threads=1)
    stream: Any = model.stream(None, "x", policy="eagle2:nodes=9,depth=2,top_k=3")
    stream._draft.begin(stream._verifier.begin())
    candidates = grown_by(stream._draft, parse_policy("eagle2:nodes=9,depth=2,top_k=3"), 5)
    assert len(candidates) > 3 and set(candidates.tokens) <= set(ids.tolist())


@pytest.mark.parametrize("defect", ["token_map", "hidden_map", "offset_map"])
def test_a_graph_that_differs_is_not_published(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, defect: str
) -> None:
    original = Folded.__dict__[defect]

    def wrong(self: Folded) -> Any:
        found = original.func(self) if defect == "token_map" else original(self)
        return found * np.float32(1.01)

    replaced = property(wrong) if defect == "token_map" else wrong
    monkeypatch.setattr(Folded, defect, replaced)
    with pytest.raises(EngineError, match="parity: graph"):
        export(zoo, tmp_path / "b", "vispec")
    assert not (tmp_path / "b").exists()


def test_a_table_that_lacks_rows_is_completed_from_the_targets(zoo: Zoo, tmp_path: Path) -> None:
    """MSD's original LLaVA has 32,000 words, Hugging Face's 32,064 rows."""
    target = open_model(str(zoo.checkpoint("gqa")))
    folder = tmp_path / "msd"
    shutil.copytree(zoo.head_checkpoint("gqa", "msd"), folder)
    own = np.random.default_rng(0).standard_normal((300, 64), dtype=np.float32)
    tensors = {**load_file(folder / "model.safetensors"), "embed_tokens.weight": own}
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 300}))
    opened = open_head(str(folder), target, "msd")
    assert opened.geometry.own_embedding
    whole = Folded(opened.checkpoint, opened.geometry, target.checkpoint).table_array()
    rows = np.concatenate([own, target.checkpoint.tensor("text.embed_tokens.weight")[300:]])
    wanted = rows @ tensors["fc.weight"][:, :64].T + tensors["fc.bias"]
    np.testing.assert_allclose(whole, wanted, atol=1e-4)


def test_compressors_that_make_no_sense_are_refused(zoo: Zoo, tmp_path: Path) -> None:
    target, eagle = str(zoo.checkpoint("gqa")), str(zoo.head_checkpoint("gqa", "eagle"))
    vispec = str(zoo.head_checkpoint("gqa", "vispec"))
    small = str(zoo.checkpoint("gqa", "shared"))
    for draft, variant, compressor, message in (
        (eagle, "eagle", "conv:3", "has weights.*edgespec distill"),
        (vispec, "vispec", "pool:4", "trained with its compressor 'adaptor:2'"),
        (small, None, "resampler:2", "stand-alone draft does not"),
        (eagle, "eagle", "poll:4", "did you mean 'pool'"),
        (eagle, "eagle", "pool:1", "a ratio of at least 2"),
        (eagle, "eagle", "prune:99", "only 16 visual tokens"),
        (eagle, "eagle", "elastic:selekt", "did you mean 'elastic:select'"),
    ):
        request = ExportRequest(target, tmp_path / "b", draft, compressor, draft_variant=variant)
        with pytest.raises(ConfigError, match=message):
            plan_export(request)


def test_flags_of_a_draft_need_a_draft(zoo: Zoo, tmp_path: Path) -> None:
    flags: list[dict[str, Any]] = [
        {"compressor": "pool:4"}, {"draft_variant": "msd"}, {"draft_vocab": "f.json"},
    ]  # fmt: skip
    for flag in flags:
        name = next(iter(flag)).replace("_", "-")
        with pytest.raises(ConfigError, match=f"--{name} is about the draft"):
            plan_export(ExportRequest(str(zoo.checkpoint("gqa")), tmp_path / "b", **flag))
