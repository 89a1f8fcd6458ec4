"""Exported graphs against torch and transformers: towers, decoders, lowerings, rotary scalings."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgespec.errors import EngineError, MissingDependencyError
from edgespec.flavour import Flavour
from edgespec_export import comparing
from edgespec_export.blocks import rotary_tables
from edgespec_export.exporter import ExportRequest, export_bundle
from edgespec_export.geometry import Rope
from edgespec_export.graphs import chain, decoder
from edgespec_export.graphs.proposer import Proposer
from tests.support.mutants import plant
from tests.support.tiny import tiny_config, tiny_tensors, write_tiny
from tests.support.zoo import LOWERINGS, Zoo

TORCH = comparing.Against("torch")
LLAMA3 = {
    "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "rope-linear": {"text_extra": {"rope_scaling": {"type": "linear", "factor": 3.0}}},
    "rope-llama3": {"text_extra": {"rope_scaling": LLAMA3, "rope_theta": 500000.0}},
    "rope-parameters": {"text_extra": {"rope_parameters": {**LLAMA3, "rope_theta": 20000.0}}},
    "biases": {"text_extra": {"attention_bias": True, "mlp_bias": True}},
    "no-projector-bias": {"multimodal_projector_bias": False},
    "qwen2": {"text": "qwen2", "text_extra": {"rope_theta": 1e6}},
    "mistral": {"text": "mistral", "text_extra": {"sliding_window": None}},
    "own-head-size": {"text_extra": {"head_dim": 32}},
    "siglip-odd-size": {
        "tower": "siglip",
        "vision_extra": {"image_size": 38, "patch_size": 8},
        "vision_feature_layer": -1,
    },
    "clip-odd-size": {"vision_extra": {"image_size": 38}},
    "clip-last-layer": {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"},
    "several-layers": {"vision_feature_layer": [-2, 0, 2]},
    "one-head": {"text_extra": {"num_key_value_heads": 1}, "projector_hidden_act": "quick_gelu"},
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def export(source: Path, out: Path, **more: Any) -> dict[str, Any]:
    request = ExportRequest(target=str(source), out=out, parity=True, **more)
    return dict(export_bundle(request).parity)


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("name", ["mha", "tied", "qwen2", "siglip"])
def test_graphs_of_saved_models_equal_torch(
    zoo: Zoo, tmp_path: Path, name: str, lowering: str
) -> None:
    report = export(
        zoo.checkpoint(name),
        tmp_path / "b",
        draft=str(zoo.checkpoint(name, "own")),
        compressor="pool:9",  # does not divide the 4 x 4 grid
        flavours=(Flavour(lowering),),
    )
    roles = ["vision", "projector", "target", "draft_vision", "draft_projector"]
    assert list(report) == [*roles, "compressor", "draft", "draft_chain"]
    for role, figures in report.items():
        assert figures["max_abs_diff"] <= 1e-5 * figures["max_abs_value"], role
        assert f"torch {torch.__version__}" in figures["against"]
    assert report["target"]["argmax_equal"] and report["draft"]["argmax_equal"]
    assert report["draft"]["topk"]["max_abs_diff"] < 1e-3
    coupled = [report[role]["coupled"] for role in ("draft", "draft_chain")]
    assert coupled[0]["topk"]["max_abs_value"] != report["draft"]["topk"]["max_abs_value"]
    assert all(figures["max_abs_diff"] < 1e-3 for figures in coupled)


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_setting_that_is_understood_equals_torch(
    tmp_path: Path, name: str, lowering: str
) -> None:
    source = write_tiny(tmp_path / "t", tiny_config(**CONFIGS[name]))
    report = export(source, tmp_path / "b", flavours=(Flavour(lowering),))
    for role, figures in report.items():
        assert figures["max_abs_diff"] <= 2e-5 * figures["max_abs_value"], role


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_half_precision_checkpoints_equal_torch(tmp_path: Path, dtype: str) -> None:
    source = write_tiny(tmp_path / "t", dtype=dtype, shards=3, spelling="5")
    report = export(source, tmp_path / "b", draft=str(source), compressor="pool:4")
    assert report["target"]["argmax_equal"]
    assert "draft_vision" not in report and "draft_projector" in report


def test_a_context_too_short_for_an_image_is_checked_with_text(tmp_path: Path) -> None:
    config = tiny_config(text_extra={"max_position_embeddings": 22})
    assert export(write_tiny(tmp_path / "t", config), tmp_path / "b")["target"]["argmax_equal"]


@pytest.mark.parametrize(
    "rope",
    [
        Rope(10000.0),
        Rope(1e6),
        Rope(10000.0, "linear", factor=4.0),
        Rope(500000.0, "llama3", 8.0, 1.0, 4.0, 8192),
    ],
    ids=["default", "million", "linear", "llama3"],
)
def test_rotary_tables_equal_transformers_far_out(rope: Rope) -> None:
    """At position 100,000 one bit in a frequency would be a hundredth of a radian."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rule: dict[str, Any] = {"rope_type": rope.kind, "rope_theta": rope.theta}
    if rope.kind != "default":
        rule["factor"] = rope.factor
    if rope.kind == "llama3":
        rule["low_freq_factor"] = rope.low_freq_factor
        rule["high_freq_factor"] = rope.high_freq_factor
        rule["original_max_position_embeddings"] = rope.original_max_position
    config = LlamaConfig(
        hidden_size=128, num_attention_heads=1, max_position_embeddings=100_000,
        rope_parameters=rule,
    )  # fmt: skip
    wanted, _ = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(0, 100_000, 997)[None])
    cos, _ = rotary_tables(rope, 128, 100_000)
    difference = np.abs(cos[::997] - wanted[0, :, :64].numpy()).max(axis=0)
    assert (difference < 1e-5).sum() >= 62 and difference.max() < 1e-2


def test_a_graph_that_differs_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Rope(9000.0)
    monkeypatch.setattr(decoder, "rotary_tables", lambda rope, *sizes: rotary_tables(wrong, *sizes))
    with pytest.raises(EngineError, match=r"graph 'target' differs by up to .* on values up to"):
        export(write_tiny(tmp_path / "t"), tmp_path / "b")
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


@pytest.mark.parametrize(
    "old, new",
    [
        ("b.node('Add', scaled, coupling.noise)", "scaled"),
        ("b.node('Mul', logits, coupling.inv_temperature)", "logits"),
        ("b.node('Mul', logits, coupling.inv_temperature)",
         "b.node('Div', logits, coupling.inv_temperature)"),
    ],
    ids=["no noise", "no temperature", "its inverse"],
)  # fmt: skip
@pytest.mark.parametrize("head", [False, True], ids=["vlm", "head"])
def test_a_draft_that_is_wrongly_coupled_is_not_published(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, head: bool
) -> None:
    plant(monkeypatch, Proposer, "best", old.replace("'", '"'), new.replace("'", '"'))
    draft = zoo.head_checkpoint("gqa", "eaglevlm") if head else zoo.checkpoint("gqa", "shared")
    with pytest.raises(EngineError, match="parity: graph 'draft with noise: topk_logprobs'"):
        export(zoo.checkpoint("gqa"), tmp_path / "b", draft=str(draft))
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("head", [False, True], ids=["vlm", "head"])
def test_a_chain_whose_steps_share_a_row_of_noise_is_not_published(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: bool
) -> None:
    plant(monkeypatch, chain, "chained_steps", "couplings[ahead], ahead", "couplings[0], ahead")
    draft = zoo.head_checkpoint("gqa", "eaglevlm") if head else zoo.checkpoint("gqa", "shared")
    with pytest.raises(EngineError, match="parity: graph 'draft_chain with noise: topk_logprobs'"):
        export(zoo.checkpoint("gqa"), tmp_path / "b", draft=str(draft))


def test_a_wrong_candidate_is_found() -> None:
    logits = np.array([[1.0, 3.0, 2.0, 0.0]], dtype=np.float32)
    logprobs = torch.log_softmax(torch.from_numpy(logits), -1).numpy()
    best = -np.sort(-logprobs)[:, :2]
    ids = np.array([[1, 2]])
    assert comparing.check_top_k("draft", best, ids, logits, TORCH)["max_abs_diff"] < 1e-6
    for wrong in ([[1, 0]], [[2, 1]]):
        with pytest.raises(EngineError, match="topk_ids"):
            comparing.check_top_k("draft", best, np.array(wrong), logits, TORCH)
    tie = np.zeros((1, 4), dtype=np.float32)
    flat = np.full((1, 2), -np.log(4), dtype=np.float32)
    with pytest.raises(EngineError, match="twice"):
        comparing.check_top_k("draft", flat, np.array([[1, 1]]), tie, TORCH)


def test_nan_never_passes() -> None:
    bad = np.array([1.0, np.nan], dtype=np.float32)
    with pytest.raises(EngineError, match="differs by up to nan"):
        comparing.compared("vision", bad, np.ones(2, dtype=np.float32), TORCH)
    with pytest.raises(EngineError, match="gives"):
        comparing.compared("vision", bad, np.ones(3, dtype=np.float32), TORCH)


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_parity_without_torch_says_so_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=rf"{package}.*edgespec\[train\]"):
        export(tmp_path / "there is nothing here", tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_the_draft_may_be_of_another_width(tmp_path: Path) -> None:
    target = write_tiny(tmp_path / "t")
    config = tiny_config(text_extra={"hidden_size": 32, "num_attention_heads": 2})
    tensors = tiny_tensors(config, seed=9)
    own = tiny_tensors(tiny_config())
    tensors |= {name: value for name, value in own.items() if name.startswith("vision.")}
    draft = write_tiny(tmp_path / "d", config, tensors)
    report = export(target, tmp_path / "b", draft=str(draft), compressor="pool:4")
    assert "draft_vision" not in report and report["draft"]["argmax_equal"]
