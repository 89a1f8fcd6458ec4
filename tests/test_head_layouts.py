"""Published layouts of feature-level drafts: each recognised, every defect refused by name."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgespec.errors import CheckpointError, InputError, MissingDependencyError
from edgespec_export.compression import parse_compression
from edgespec_export.exporter import Model, open_model
from edgespec_export.geometry import read_geometry
from edgespec_export.heads.geometry import VARIANTS
from edgespec_export.heads.layouts import OpenedHead, open_head
from tests.support import heads
from tests.support.heads import HIDDEN, KV, PUBLISHED, SIZE, VOCAB, PublishedHead, random
from tests.support.tiny import tiny_config

Change = Callable[[PublishedHead], Any]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return open_model(str(heads.target_folder(tmp_path_factory.mktemp("target") / "t")))


def opened(
    head: PublishedHead, folder: Path, target: Model, variant: str | None = None
) -> OpenedHead:
    return open_head(head.write(folder / "head"), target, variant)


def refused(
    head: PublishedHead, folder: Path, target: Model, *words: str, variant: str | None = None
) -> str:
    with pytest.raises(CheckpointError) as caught:
        opened(head, folder, target, variant)
    for word in words:
        assert word in str(caught.value)
    return str(caught.value)


# What is recognised


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_layouts_open(name: str, dtype: str, tmp_path: Path, target: Model) -> None:
    published = PUBLISHED[name]()
    head = open_head(published.write(tmp_path / "head", dtype), target)
    variant = name.split("-")[0].removesuffix(".1")
    assert head.geometry.variant == variant
    assert f": {variant} (by its tensors" in head.description and "\n" not in head.description
    text = head.geometry.text
    assert (text.hidden, text.intermediate, text.layers, text.head_dim) == (64, 80, 1, 16)
    longest = 2048 if "speculators" in name else 128  # the class's default; the target's
    assert (text.vocab, text.max_positions) == (VOCAB, longest)
    for key, tensor in published.tensors.items():
        spelled = key.replace("layers.0.", "midlayer.") if variant == "eagle3" else key
        if key in ("d2t", "t2d"):
            continue
        assert np.allclose(head.checkpoint.tensor(spelled), tensor, atol=0.01), key
    assert len(head.checkpoint.entries) == len(published.tensors) - sum(
        (key == "t2d") or (key == "d2t" and not head.geometry.draft_vocab)
        for key in published.tensors
    )


def expect(name: str, folder: Path, target: Model) -> Any:
    return opened(PUBLISHED[name](), folder / name, target).geometry


def test_what_tensors_and_configs_tell(tmp_path: Path, target: Model) -> None:
    found = {name: expect(name, tmp_path, target) for name in PUBLISHED}
    assert not found["eagle-llama3"].fc_bias and found["eagle-vicuna"].fc_bias
    assert found["eagle-qwen2"].text.qkv_bias and not found["eagle-qwen2"].text.o_bias
    assert found["eagle-mha"].text.kv_heads == 4 and found["eagle-vicuna"].text.kv_heads == KV
    assert found["eagle-llama3"].text.rope.theta == 500000.0
    assert [found[f"vispec-{n}"].queries for n in ("llava", "qwen", "four")] == [2, 2, 4]
    assert found["vispec-qwen"].text.qkv_bias and not found["vispec-llava"].text.qkv_bias
    official, whole = found["eagle3-official"], found["eagle3-whole"]
    assert (official.feature_size, official.draft_vocab, whole.draft_vocab) == (3 * HIDDEN, 40, 0)
    assert official.feature_layers == (2, 4, 5) and not official.own_embedding
    forge, newer = found["eagle3-specforge"], found["eagle3.1-specforge"]
    assert not forge.norm_output and newer.norm_output and newer.fc_norm and not forge.fc_norm
    wrapped, normed = found["eagle3-speculators"], found["eagle3-speculators-fc"]
    assert wrapped.norm_before_residual and not wrapped.norm_before_fc
    assert normed.norm_before_fc and not normed.norm_before_residual
    assert wrapped.feature_layers == (1, 2, 3) and wrapped.own_embedding


def test_specforge_numbers_layers_by_their_outputs(tmp_path: Path, target: Model) -> None:
    ids = {"eagle_aux_hidden_state_layer_ids": [1, 3, 6], "use_aux_hidden_state": True}
    head = heads.specforge().with_config(eagle_config=ids)
    assert opened(head, tmp_path, target).geometry.feature_layers == (2, 4, 7)


def test_defaults_that_are_taken_are_said(tmp_path: Path, target: Model) -> None:
    head = heads.eagle()
    for key in ("rms_norm_eps", "max_position_embeddings"):
        del head.config[key]
    line = opened(head, tmp_path, target).description
    assert "by default rope_theta 10000, rms_norm_eps 1e-06, max_position_embeddings 2048" in line
    said = heads.eagle().with_config(rope_parameters={"rope_theta": 5e5, "rope_type": "default"})
    assert "by default" not in opened(said, tmp_path, target).description


def test_sizes_that_a_config_leaves_out_come_from_tensors(tmp_path: Path, target: Model) -> None:
    head = heads.eagle()
    for key in ("hidden_size", "intermediate_size", "vocab_size"):
        del head.config[key]
    text = opened(head, tmp_path, target).geometry.text
    assert (text.hidden, text.intermediate, text.vocab) == (64, 80, VOCAB)
    head = heads.vispec()
    del head.config["num_attention_heads"]
    assert opened(head, tmp_path, target).geometry.text.heads == 4


def test_msd_is_taken_when_asked_for(tmp_path: Path, target: Model) -> None:
    line = opened(heads.eagle(), tmp_path, target, "msd").description
    assert ": msd (as asked for)" in line
    head = opened(heads.msd(), tmp_path, target, "msd")
    assert head.geometry.text.vocab == VOCAB  # the last rows are the target's
    assert head.checkpoint.shapes["embed_tokens.weight"] == (VOCAB - 6, HIDDEN)
    message = refused(heads.msd(), tmp_path, target, "EAGLE and of MSD alike", "variant 'msd'")
    assert "variant 'eagle'" in message
    refused(heads.msd(), tmp_path, target, "vocabulary of 90", "96", variant="eagle")
    far = heads.msd(missing_rows=66)
    refused(far, tmp_path, target, "vocabulary of 30", variant="msd")


@pytest.mark.parametrize("rows", [VOCAB, VOCAB - 6])
def test_an_embedding_that_is_the_targets_is_shared(
    rows: int, tmp_path: Path, target: Model
) -> None:
    head = heads.msd(missing_rows=VOCAB - rows)
    table = target.checkpoint.tensor("text.embed_tokens.weight")[:rows]
    head.tensors["embed_tokens.weight"] = table
    head.tensors = {n: t.astype(np.float32) for n, t in head.tensors.items()}
    shared = open_head(head.write(tmp_path / "a", "F32"), target, "msd")
    assert not shared.geometry.own_embedding and "the target's embedding" in shared.description
    assert "embed_tokens.weight" not in shared.checkpoint.entries
    table = table.copy()
    table[-1, -1] += 1
    head.tensors["embed_tokens.weight"] = table
    own = open_head(head.write(tmp_path / "b", "F32"), target, "msd")
    assert own.geometry.own_embedding and "own embedding" in own.description
    absent = open_head(head.drop("embed_tokens.weight").write(tmp_path / "c", "F32"), target, "msd")
    assert not absent.geometry.own_embedding
    names = absent.checkpoint.entries
    assert absent.checkpoint.fingerprint(names) == shared.checkpoint.fingerprint(names)


def test_a_layer_narrower_than_its_target(tmp_path: Path, target: Model) -> None:
    """EAGLE-3 with target_hidden_size: an embedding of its own is needed."""
    head = heads.eagle3().with_config(hidden_size=32, num_attention_heads=2, target_hidden_size=64)
    head.config |= {"num_key_value_heads": 2, "head_dim": SIZE}
    head.tensors = {n: _narrow(n, t) for n, t in head.tensors.items()}
    refused(head, tmp_path, target, "32 wide", "64", "embed_tokens.weight is missing")
    geometry = opened(head.add(embed_tokens__weight=(VOCAB, 32)), tmp_path, target).geometry
    assert geometry.own_embedding and geometry.feature_size == 3 * HIDDEN
    refused(head.with_config(target_hidden_size=48), tmp_path, target, "192 columns", "48")


def _narrow(name: str, tensor: Any) -> Any:
    if name in ("d2t", "t2d"):
        return tensor
    halved = {HIDDEN: 32, 2 * HIDDEN: HIDDEN, KV * SIZE: KV * SIZE}
    return random(name, tuple(halved.get(size, size) for size in tensor.shape))


@pytest.mark.parametrize(("make", "words"), [
    (heads.vispec_nemo, ("NeMo", "final norm")),
    (heads.medusa, ("Medusa", "EAGLE-style")),
])  # fmt: skip
def test_layouts_that_are_known_but_not_built(
    make: Callable[[], PublishedHead], words: tuple[str, ...], tmp_path: Path, target: Model
) -> None:
    refused(make(), tmp_path, target, *words)


def test_medusa_under_its_other_names(tmp_path: Path, target: Model) -> None:
    head = heads.medusa()
    head.tensors = {f"medusa_head.{n}": t for n, t in head.tensors.items()}
    refused(head, tmp_path, target, "Medusa")


def test_a_whole_model_is_no_head(target: Model) -> None:
    with pytest.raises(CheckpointError, match="stand-alone draft"):
        open_head(target.checkpoint.source, target)


def test_tensors_of_nothing_that_is_known(tmp_path: Path, target: Model) -> None:
    head = PublishedHead({"model_type": "llama"}).add(encoder__weight=(2, 2))
    refused(head, tmp_path, target, "encoder.weight", "EAGLE-1/2/3", "ViSpec")


# Variants by name


@pytest.mark.parametrize(("make", "variant", "words"), [
    (heads.eagle, "vispec", ("'vispec'", "eagle or msd")),
    (heads.eagle, "eaglevlm", ("'eaglevlm'", "eagle or msd")),
    (heads.eaglevlm, "eagle", ("'eagle'", "eaglevlm or specvlm")),
    (heads.eaglevlm, "specvlm", ("'specvlm'", "names no compressor")),
    (heads.vispec, "eagle", ("'eagle'", "vispec")),
    (heads.eagle3, "eagle", ("'eagle'", "eagle3")),
    (heads.eagle, "vispecc", ("'vispecc'", "did you mean 'vispec'?")),
    (heads.eagle, "Eagle3", ("did you mean 'eagle3'?", "msd")),
    (heads.eagle, "xyz", ("'xyz'", ", ".join(VARIANTS))),
])  # fmt: skip
def test_variants_that_contradict_the_tensors(
    make: Callable[[], PublishedHead],
    variant: str,
    words: tuple[str, ...],
    tmp_path: Path,
    target: Model,
) -> None:
    refused(make(), tmp_path, target, *words, variant=variant)


LABELS: list[tuple[Any, tuple[str, ...]]] = [
    ({"variant": "vispec"}, ("config.json says 'vispec'", "eagle or msd")),
    ({"variant": "eagel"}, ("edgespec.variant 'eagel'", "did you mean 'eagle'?")),
    ({"variant": 3}, ("edgespec.variant is 3",)),
    ({"variante": "eagle"}, ("variante", "upgrade edgespec")),
    ({"target_fingerprint": "0" * 64}, ("trained for another target (000000000000...)",)),
    ({"target_fingerprint": 7}, ("edgespec.target_fingerprint is 7",)),
    ({"compressor": {"kind": "conv:3"}}, ("'eagle'", "names a compressor")),
    ({"compressor": {"kind": "convv:3"}}, ("edgespec.compressor", "convv:3")),
    ({"compressor": {"kind": "conv:3", "branches": ["pool:4"]}}, ("has no branches",)),
    ({"compressor": {"kind": "elastic:selectt"}}, ("did you mean 'elastic:select'?",)),
    ({"compressor": {"sort": "conv:3"}}, ("edgespec.compressor is", "kind")),
    ({"compressor": "conv:3"}, ("edgespec.compressor is 'conv:3'", "object")),
    ({"feature_layers": [1, 2, 3]}, ("feature_layers are EAGLE-3's",)),
    ({"feature_layers": [1, "2"]}, ("edgespec.feature_layers",)),
    ([], ("edgespec is []",)),
]


@pytest.mark.parametrize(("label", "words"), LABELS)
def test_labels_that_are_not_understood(
    label: Any, words: tuple[str, ...], tmp_path: Path, target: Model
) -> None:
    refused(heads.eagle().with_config(edgespec=label), tmp_path, target, *words)


def test_labels(tmp_path: Path, target: Model) -> None:
    label = {"variant": "msd", "target_fingerprint": target.text_fingerprint}
    head = opened(heads.msd().with_config(edgespec=label), tmp_path, target)
    assert ": msd (by its config.json)" in head.description
    refused(
        heads.msd().with_config(edgespec=label), tmp_path, target, "'eagle' was asked for", "'msd'",
        variant="eagle",
    )  # fmt: skip
    layers = heads.eagle3().with_config(edgespec={"feature_layers": [1, 2, 8]})
    assert opened(layers, tmp_path, target).geometry.feature_layers == (1, 2, 8)
    for odd in ([1, 2, 9], [1, 2], [-1, 2, 3]):
        wrong = heads.eagle3().with_config(edgespec={"feature_layers": odd})
        refused(wrong, tmp_path, target, str(odd), "0 to 8")


def test_a_pruned_head_of_specvlm(tmp_path: Path, target: Model) -> None:
    """A compressor without weights is told by the label alone."""
    label = {"variant": "specvlm", "compressor": {"kind": "pool:4"}}
    head = opened(heads.eaglevlm().with_config(edgespec=label), tmp_path, target)
    assert head.geometry.compression == parse_compression("pool:4")
    assert "compressor pool:4" in head.description
    label["compressor"] = {"kind": "resampler:2"}
    refused(
        heads.eaglevlm().with_config(edgespec=label), tmp_path, target,
        "missing tensor compressor.attention.q [2, 4, 16]",
    )  # fmt: skip


# Defects


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
def test_defects_are_refused_by_name(name: str, tmp_path: Path, target: Model) -> None:
    make, change, words = DEFECTS[name]
    head = make()
    change(head)
    refused(head, tmp_path, target, *words)


def test_many_differences_are_counted(tmp_path: Path, target: Model) -> None:
    head = heads.eagle()
    names = [name for name in head.tensors if name.startswith("layers.0.")]
    message = refused(head.drop(*names), tmp_path, target, "missing tensor layers.0.mlp.down_proj")
    assert message.endswith("and 2 more")


def test_buffers_are_passed_over(tmp_path: Path, target: Model) -> None:
    head = heads.eagle()
    head.tensors["layers.0.self_attn.rotary_emb.inv_freq"] = random("inv_freq", (8,))
    entries = opened(head, tmp_path, target).checkpoint.entries
    assert "layers.0.self_attn.rotary_emb.inv_freq" not in entries


def test_heads_of_other_targets(tmp_path: Path, target: Model) -> None:
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
    hidden: int, vocab: int, words: tuple[str, ...], tmp_path: Path, target: Model
) -> None:
    """ViSpec for Qwen2.5-VL, by its config and the sizes of what little is written of it."""
    head = heads.vispec(qkv_bias=True).drop("embed_tokens.weight")
    head.with_config(hidden_size=hidden, vocab_size=vocab, model_type="qwen2_5_vl")
    head.tensors["fc.weight"] = random("fc", (hidden, 8))
    refused(head, tmp_path, target, "(vispec)", f"features {hidden} wide", str(vocab), *words)


# Files


def truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def test_an_interrupted_download(tmp_path: Path, target: Model) -> None:
    folder = tmp_path / "head"
    heads.eagle().write(folder)
    truncated(folder)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is no intact safetensors file"):
        open_head(str(folder), target)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        open_head(str(folder), target)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="no config.json"):
        open_head(str(folder), target)
    with pytest.raises(CheckpointError, match="does not exist"):
        open_head(str(folder / "nowhere"), target)


def as_pickle(head: PublishedHead, folder: Path, value: Any = None) -> str:
    torch = pytest.importorskip("torch")
    heads_folder = Path(head.write(folder))
    (heads_folder / "model.safetensors").unlink()
    state = {name: torch.from_numpy(tensor) for name, tensor in head.tensors.items()}
    torch.save(state if value is None else value, heads_folder / "pytorch_model.bin")
    return str(heads_folder)


@pytest.mark.parametrize("make", [heads.eagle, heads.eagle3])
def test_pickled_weights_open_with_torch(
    make: Callable[[], PublishedHead], tmp_path: Path, target: Model
) -> None:
    plain = open_head(make().write(tmp_path / "plain", "F32"), target)
    pickled = open_head(as_pickle(make(), tmp_path / "pickled"), target)
    assert plain.geometry == pickled.geometry
    names = plain.checkpoint.entries
    assert names.keys() == pickled.checkpoint.entries.keys()
    assert plain.checkpoint.fingerprint(names) == pickled.checkpoint.fingerprint(names)
    # Beside safetensors a pickle is not even looked at.
    (tmp_path / "plain" / "pytorch_model.bin").write_bytes(b"no pickle")
    assert open_head(str(tmp_path / "plain"), target).geometry == plain.geometry


def test_pickled_weights_without_torch(
    tmp_path: Path, target: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = as_pickle(heads.eagle(), tmp_path / "head")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match=r"pickled.*'torch'.*edgespec\[train\]"):
        open_head(folder, target)
    # A target is never opened from a pickle.
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin.*does not open"):
        open_model(folder)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.file, "boom"))


@pytest.mark.parametrize("form", ["torch", "plain"])
def test_pickles_that_run_code_are_refused(form: str, tmp_path: Path, target: Model) -> None:
    boom = tmp_path / "boom"
    head = heads.eagle()
    folder = Path(as_pickle(head, tmp_path / "head", {**head.tensors, "fc.weight": Bomb(boom)}))
    if form == "plain":
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"fc.weight": Bomb(boom)}))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is no intact pickle of tensors"):
        open_head(str(folder), target)
    assert not boom.exists()
    pickle.loads(pickle.dumps(Bomb(boom)))
    assert boom.exists()  # the bomb is live


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([1, 2], "holds a list"),
        ({"epoch": 3}, "more than tensors by name: epoch"),
        ({"state_dict": {}}, "more than tensors by name: state_dict"),
    ],
)
def test_pickles_of_something_else(value: Any, words: str, tmp_path: Path, target: Model) -> None:
    folder = as_pickle(heads.eagle(), tmp_path / "head", value)
    with pytest.raises(CheckpointError, match=words):
        open_head(folder, target)


def test_a_truncated_pickle(tmp_path: Path, target: Model) -> None:
    folder = as_pickle(heads.eagle(), tmp_path / "head")
    file = Path(folder) / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(CheckpointError, match="no intact pickle.*fetch it again"):
        open_head(folder, target)


def test_a_torch_that_opens_pickles_unsafely(
    tmp_path: Path, target: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = as_pickle(heads.eagle(), tmp_path / "head")
    monkeypatch.setattr("torch.__version__", "2.5.1+cpu")
    with pytest.raises(CheckpointError, match=r"torch 2\.5\.1.*upgrade"):
        open_head(folder, target)


@pytest.mark.parametrize("pickled", [False, True])
def test_heads_of_the_hub(
    pickled: bool, tmp_path: Path, target: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pickle is fetched only where the hub has nothing else."""
    import huggingface_hub

    folder = tmp_path / "head"
    as_pickle(heads.eagle(), folder) if pickled else heads.eagle().write(folder)
    fetched: list[list[str]] = []

    def snapshot_download(repo: str, **more: Any) -> str:
        assert repo == "owner/head" and more["ignore_patterns"] == ["*/*"]
        fetched.append(more["allow_patterns"])
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert open_head("owner/head", target).geometry.variant == "eagle"
    with_pickle = [any(Path("pytorch_model.bin").match(p) for p in each) for each in fetched]
    assert with_pickle == ([False, True] if pickled else [False])


def test_a_pickle_of_the_hub_is_not_fetched_in_vain(
    tmp_path: Path, target: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    calls: list[Any] = []

    def snapshot_download(repo: str, **more: Any) -> str:
        calls.append(more)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match="owner/head"):
        open_head("owner/head", target)
    assert len(calls) == 1


# Targets of other kinds


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


# Anything at all in a config


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
def test_no_value_anywhere_is_a_crash(name: str, tmp_path: Path, target: Model) -> None:
    """Accepted or refused in words; never another exception."""
    head = PUBLISHED[name]()
    head.config["edgespec"] = {
        "variant": name.split("-")[0], "target_fingerprint": target.text_fingerprint,
        "compressor": None, "feature_layers": None, "notes": None,
    }  # fmt: skip
    head.config["eagle_config"] = {"eagle_aux_hidden_state_layer_ids": [0, 1, 2]}
    if name.startswith("vispec"):
        del head.config["eagle_config"]
    folder = Path(head.write(tmp_path / "head"))
    open_head(str(folder), target)
    for config in variations(head.config):
        (folder / "config.json").write_text(json.dumps(config))
        try:
            open_head(str(folder), target)
        except InputError as error:
            assert str(error)


def test_the_description_has_one_line_for_every_flag(tmp_path: Path, target: Model) -> None:
    head = opened(heads.specforge(fc_norm=True, norm_output=True), tmp_path, target)
    assert head.description.endswith("features of layers 2, 4, 5; fc_norm; norm_output")
