"""Heads with a defect: every one refused by name, and no config makes anything crash."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgespec.errors import CheckpointError, InputError
from edgespec_export.configuration import read_geometry
from edgespec_export.heads.layouts import open_head
from edgespec_export.plan import Model, open_model
from tests.support import heads
from tests.support.heads import PUBLISHED, PublishedHead, random
from tests.support.opening import opened, refused
from tests.support.tiny import tiny_config

Change = Callable[[PublishedHead], Any]


def put(name: str, shape: tuple[int, ...]) -> Change:
    return lambda head: head.tensors.__setitem__(name, random(name, shape))


def gone(*names: str) -> Change:
    return lambda head: head.drop(*names)


def said(**values: Any) -> Change:
    return lambda head: head.with_config(**values)


def unsaid(key: str) -> Change:
    return lambda head: head.config.pop(key)


def spoilt(name: str, value: float) -> Change:
    return lambda head: head.tensors[name].reshape(-1).__setitem__(-1, value)


def cast(name: str, dtype: str) -> Change:
    return lambda head: head.tensors.__setitem__(name, head.tensors[name].astype(dtype))


def mapped(name: str, index: int, value: Any) -> Change:
    return lambda head: head.tensors[name].__setitem__(index, value)


Q, UP = "layers.0.self_attn.q_proj", "layers.0.mlp.up_proj.weight"
DEFECTS: dict[str, tuple[Callable[[], PublishedHead], Change, tuple[str, ...]]] = {
    "missing": (heads.eagle, gone(UP), (f"missing tensor {UP} [80, 64]",)),
    "missing fc": (heads.eagle, gone("fc.weight"), ("missing tensor fc.weight [64, 128]",)),
    "missing norm": (
        heads.eagle, gone("layers.0.post_attention_layernorm.weight"), ("post_attention",),
    ),
    "extra norm": (heads.eagle, put("norm.weight", (64,)), ("unexpected tensor norm.weight [64]",)),
    "extra layer": (
        heads.eagle, put("layers.1.mlp.up_proj.weight", (80, 64)),
        ("unexpected tensor layers.1.mlp.up_proj.weight",),
    ),
    "query norms": (heads.eagle, put("layers.0.self_attn.q_norm.weight", (16,)), ("q_norm",)),
    "misshapen": (heads.eagle, put(UP, (64, 80)), (UP, "[64, 80] where [80, 64] was expected")),
    "one of three biases": (heads.eagle, put(f"{Q}.bias", (64,)), ("k_proj.bias", "v_proj.bias")),
    "misshapen fc": (heads.eagle, put("fc.weight", (64, 64)), ("fc.weight", "[64, 128]")),
    "flat fc": (heads.eagle, put("fc.weight", (64,)), ("fc.weight has shape [64]",)),
    "misshapen table": (heads.eagle, put("embed_tokens.weight", (96, 32)), ("embed_tokens",)),
    "flat table": (heads.eagle, put("embed_tokens.weight", (96,)), ("embed_tokens.weight",)),
    "int8": (heads.eagle, cast(UP, "int8"), (UP, "I8", "BF16")),
    "float64": (heads.eagle, cast(UP, "float64"), (UP, "F64")),
    "NaN": (heads.eagle, spoilt(UP, np.nan), (UP, "NaN")),
    "infinity": (heads.vispec, spoilt("img_fc.bias", np.inf), ("img_fc.bias", "infinity")),
    "NaN in the table": (heads.eagle, spoilt("embed_tokens.weight", np.nan), ("embed_tokens",)),
    "hidden": (heads.eagle, said(hidden_size=32), ("hidden_size is 32", "64")),
    "inner": (heads.eagle, said(intermediate_size=96), ("intermediate_size is 96", "80")),
    "vocabulary": (heads.eagle, said(vocab_size=97), ("vocab_size is 97", "96")),
    "layers": (heads.eagle, said(num_hidden_layers=2), ("num_hidden_layers is 2", "1")),
    "heads": (heads.eagle, said(num_attention_heads=8), ("k_proj.weight", "[16, 64]")),
    "no heads": (heads.eagle, unsaid("num_attention_heads"), ("lacks num_attention_heads",)),
    "groups": (heads.eagle, said(num_key_value_heads=4), ("k_proj.weight", "[32, 64]")),
    "uneven groups": (heads.eagle, said(num_key_value_heads=3), ("4 heads", "3 key-value")),
    "head size": (heads.eagle, said(head_dim=32), (f"{Q}.weight", "[128, 64]")),
    "bias said": (lambda: heads.eagle(bias=False), said(bias=True), ("bias is true", "fc.bias")),
    "bias denied": (heads.eagle, said(bias=False), ("bias is false, but fc.bias is there",)),
    "qkv said": (heads.eagle, said(qkv_bias=True), ("qkv_bias is true", f"{Q}.bias is missing")),
    "qkv denied": (
        lambda: heads.eagle(qkv_bias=True), said(qkv_bias=False, attention_bias=False),
        ("qkv_bias is false",),
    ),
    "attention said": (heads.eagle, said(attention_bias=True), ("o_proj.bias is missing",)),
    "bias is a word": (heads.eagle, said(bias="no"), ("bias is 'no'", "true or false")),
    "activation": (heads.eagle, said(hidden_act="gelu"), ("hidden_act", "gelu")),
    "window": (heads.eagle, said(layer_types=["sliding_attention"]), ("sliding-window",)),
    "rope": (heads.eagle, said(rope_scaling={"type": "mrope", "mrope_section": [2]}), ("mrope",)),
    "unknown key": (heads.eagle, said(num_experts=4), ("config.json", "num_experts")),
    "quantised": (heads.eagle, said(quantization_config={"bits": 4}), ("quantization_config",)),
    "flag of another": (heads.eagle, said(norm_before_fc=True), ("norm_before_fc",)),
    "one query": (heads.vispec, put("imadpt.q", (1, 4, 16)), ("1 queries", "global vector")),
    "queries": (heads.vispec, put("imadpt.q", (2, 2, 32)), ("imadpt.q", "[2, 4, 16]")),
    "no img_fc": (heads.vispec, gone("img_fc.weight"), ("missing tensor img_fc.weight",)),
    "img_fc bias": (heads.vispec, gone("img_fc.bias"), ("missing tensor img_fc.bias",)),
    "adaptor bias": (
        lambda: heads.vispec(qkv_bias=True), gone("imadpt.k_proj.bias"), ("imadpt.k_proj.bias",),
    ),
    "draft vocabulary": (heads.eagle3, said(draft_vocab_size=41), ("draft_vocab_size is 41", "40")),
    "no head": (heads.eagle3, gone("lm_head.weight"), ("missing tensor lm_head.weight",)),
    "no d2t": (heads.eagle3, gone("d2t"), ("40 rows for 96 tokens", "d2t")),
    "short d2t": (
        heads.eagle3, lambda head: head.tensors.update(d2t=head.tensors["d2t"][:-1]),
        ("d2t has shape [39] where [40]",),
    ),
    "d2t of reals": (heads.eagle3, cast("d2t", "float64"), ("'d2t'", "F64", "I64")),
    "d2t outside": (heads.eagle3, mapped("d2t", 0, 96), ("token 96", "96")),
    "d2t below": (heads.eagle3, mapped("d2t", 0, -1), ("token -1",)),
    "d2t twice": (
        heads.eagle3, lambda head: head.tensors["d2t"].__setitem__(0, head.tensors["d2t"][1] + 1),
        ("from more than one row",),
    ),
    "t2d": (
        heads.eagle3, lambda head: head.tensors.update(t2d=~head.tensors["t2d"]),
        ("t2d keeps 56 tokens", "40"),
    ),
    "short t2d": (
        heads.eagle3, lambda head: head.tensors.update(t2d=head.tensors["t2d"][:9]), ("t2d", "[96]")
    ),
    "three features": (heads.eagle3, put("fc.weight", (64, 128)), ("128 columns", "64")),
    "fc_norm lacks": (heads.specforge, said(fc_norm=True), ("missing tensor fc_norm.0.weight",)),
    "fc_norm extra": (
        lambda: heads.specforge(fc_norm=True), said(fc_norm=False), ("unexpected tensor fc_norm",),
    ),
    "both norms": (
        lambda: heads.speculators(norm_before_fc=True), said(fc_norm=True), ("exclude each other",),
    ),
    "flag is a word": (heads.eagle3, said(norm_output="yes"), ("norm_output is 'yes'",)),
    "two features": (
        heads.eagle3, said(eagle_aux_hidden_state_layer_ids=[1, 2]), ("[1, 2]", "three layers"),
    ),
    "layers beyond": (
        heads.eagle3, said(eagle_aux_hidden_state_layer_ids=[1, 2, 9]), ("[1, 2, 9]", "0 to 8"),
    ),
    "two hidden states": (heads.eagle3, said(num_aux_hidden_states=2), ("num_aux_hidden_states",)),
    "no features": (
        heads.eagle3, said(eagle_config={"use_aux_hidden_state": False}), ("without auxiliary",),
    ),
    "eagle_config": (heads.eagle3, said(eagle_config={"x": 1}), ("eagle_config", "x")),
    "both names": (
        heads.eagle3, put("layers.0.mlp.up_proj.weight", (80, 64)),
        ("midlayer.mlp.up_proj.weight", "also there"),
    ),
    "another speculator": (
        heads.speculators, said(speculators_model_type="peagle"), ("'peagle'", "eagle3"),
    ),
    "no layer config": (
        heads.speculators, said(transformer_layer_config=None), ("transformer_layer_config",),
    ),
    "qwen3 layers": (
        heads.speculators,
        lambda head: head.config["transformer_layer_config"].update(model_type="qwen3"),
        ("'qwen3'", "llama"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DEFECTS)
def test_defects_are_refused_by_name(name: str, tmp_path: Path, head_target: Model) -> None:
    make, change, words = DEFECTS[name]
    head = make()
    change(head)
    refused(head, tmp_path, head_target, *words)


def test_many_differences_are_counted(tmp_path: Path, head_target: Model) -> None:
    head = heads.eagle()
    names = [name for name in head.tensors if name.startswith("layers.0.")]
    message = refused(
        head.drop(*names), tmp_path, head_target, "missing tensor layers.0.mlp.down_proj"
    )
    assert message.endswith("and 2 more")


def test_buffers_are_passed_over(tmp_path: Path, head_target: Model) -> None:
    head = heads.eagle()
    head.tensors["layers.0.self_attn.rotary_emb.inv_freq"] = random("inv_freq", (8,))
    entries = opened(head, tmp_path, head_target).checkpoint.entries
    assert "layers.0.self_attn.rotary_emb.inv_freq" not in entries


def test_heads_of_other_targets(tmp_path: Path, head_target: Model) -> None:
    for text, words in (
        ({"vocab_size": 100}, ("vocabulary of 96", "100")),
        ({"hidden_size": 128, "head_dim": 16}, ("features 64 wide", "128")),
    ):
        other = open_model(str(heads.target_folder(tmp_path / str(len(words[0])), **text)))
        for make in (heads.eagle, heads.vispec, heads.eagle3, heads.speculators):
            refused(make(), tmp_path, other, "another target", *words)


@pytest.mark.parametrize(("hidden", "vocab", "words"), [
    (3584, 152064, ("Qwen2.5-VL-7B", "cannot be exported yet")),
    (2048, 151936, ("Qwen2.5-VL-3B", "cannot be exported yet")),
    (4096, 32064, ("LLaVA-1.5-7B",)),
])  # fmt: skip
def test_heads_of_known_targets_are_named(
    hidden: int, vocab: int, words: tuple[str, ...], tmp_path: Path, head_target: Model
) -> None:
    """ViSpec for Qwen2.5-VL, by its config and the sizes of what little is written of it."""
    head = heads.vispec(qkv_bias=True).drop("embed_tokens.weight")
    head.with_config(hidden_size=hidden, vocab_size=vocab, model_type="qwen2_5_vl")
    head.tensors["fc.weight"] = random("fc", (hidden, 8))
    refused(head, tmp_path, head_target, "(vispec)", f"features {hidden} wide", str(vocab), *words)


# Anything at all


def variations(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    odd: list[Any] = [None, "x", {}, [], [1], -1, 0, True, 1.5, 10**12]
    inner = [k for k in ("edgespec", "eagle_config", "transformer_layer_config") if k in config]
    for key in config:
        for value in odd:
            yield {**config, key: value}
    for place in inner:
        for key in config[place]:
            for value in odd:
                yield {**config, place: {**config[place], key: value}}


@pytest.mark.parametrize("name", ["eagle3-specforge", "eagle3-speculators", "vispec-llava"])
def test_no_value_anywhere_is_a_crash(name: str, tmp_path: Path, head_target: Model) -> None:
    """Accepted or refused in words; never another exception."""
    head = PUBLISHED[name]()
    head.config["edgespec"] = {
        "variant": name.split("-")[0], "target_fingerprint": head_target.text_fingerprint,
        "compressor": None, "feature_layers": None, "notes": None,
    }  # fmt: skip
    head.config["eagle_config"] = {"eagle_aux_hidden_state_layer_ids": [0, 1, 2]}
    if name.startswith("vispec"):
        del head.config["eagle_config"]
    folder = Path(head.write(tmp_path / "head"))
    open_head(str(folder), head_target)
    for config in variations(head.config):
        (folder / "config.json").write_text(json.dumps(config))
        try:
            open_head(str(folder), head_target)
        except InputError as error:
            assert str(error)


@pytest.mark.parametrize("name", ["eagle-qwen2", "vispec-qwen", "eagle3.1-specforge"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 64), (1, 2, 3, 4)])
def test_no_shape_of_any_tensor_is_a_crash(
    name: str, shape: tuple[int, ...], tmp_path: Path, head_target: Model
) -> None:
    for key in PUBLISHED[name]().tensors:
        head = PUBLISHED[name]()
        head.tensors[key] = np.zeros(shape, head.tensors[key].dtype)
        refused(head, tmp_path, head_target, "head")


@pytest.mark.parametrize(("kind", "words"), [
    ("llava_next", "LLaVA-1.6.*recognised, but cannot be exported yet.*'llava'"),
    ("qwen2_5_vl", "Qwen2.5-VL.*recognised, but cannot be exported yet.*'llava'"),
    ("llava_onevision", "OneVision.*recognised"),
    ("mamba", r"'mamba' \(Some\)\. edgespec exports 'llava'"),
    ([], r"\[\] \(Some\)\. edgespec exports 'llava'"),
])  # fmt: skip
def test_targets_that_cannot_be_exported_yet(kind: Any, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        read_geometry(tiny_config(model_type=kind, architectures=["Some"]))


def test_a_target_in_the_original_layout() -> None:
    for config in (
        tiny_config(architectures=["LlavaLlamaForCausalLM"]),
        tiny_config(mm_vision_tower="clip", architectures="odd"),
    ):
        with pytest.raises(CheckpointError, match="original layout.*llava-hf/llava-1.5-7b-hf"):
            read_geometry(config)
