"""Published layouts of feature-level drafts: each recognised, its variant told or asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgespec.errors import CheckpointError
from edgespec_export.compression import parse_compression
from edgespec_export.heads.geometry import VARIANTS
from edgespec_export.heads.layouts import open_head
from edgespec_export.plan import Model
from tests.support import heads
from tests.support.heads import HIDDEN, KV, PUBLISHED, SIZE, VOCAB, PublishedHead, random
from tests.support.opening import opened, refused


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_layouts_open(name: str, dtype: str, tmp_path: Path, head_target: Model) -> None:
    published = PUBLISHED[name]()
    head = open_head(published.write(tmp_path / "head", dtype), head_target)
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


def expect(name: str, folder: Path, head_target: Model) -> Any:
    return opened(PUBLISHED[name](), folder / name, head_target).geometry


def test_what_tensors_and_configs_tell(tmp_path: Path, head_target: Model) -> None:
    found = {name: expect(name, tmp_path, head_target) for name in PUBLISHED}
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


def test_specforge_numbers_layers_by_their_outputs(tmp_path: Path, head_target: Model) -> None:
    ids = {"eagle_aux_hidden_state_layer_ids": [1, 3, 6], "use_aux_hidden_state": True}
    head = heads.specforge().with_config(eagle_config=ids)
    assert opened(head, tmp_path, head_target).geometry.feature_layers == (2, 4, 7)


def test_defaults_that_are_taken_are_said(tmp_path: Path, head_target: Model) -> None:
    head = heads.eagle()
    for key in ("rms_norm_eps", "max_position_embeddings"):
        del head.config[key]
    line = opened(head, tmp_path, head_target).description
    assert "by default rope_theta 10000, rms_norm_eps 1e-06, max_position_embeddings 2048" in line
    said = heads.eagle().with_config(rope_parameters={"rope_theta": 5e5, "rope_type": "default"})
    assert "by default" not in opened(said, tmp_path, head_target).description


def test_sizes_that_a_config_leaves_out_come_from_tensors(
    tmp_path: Path, head_target: Model
) -> None:
    head = heads.eagle()
    for key in ("hidden_size", "intermediate_size", "vocab_size"):
        del head.config[key]
    text = opened(head, tmp_path, head_target).geometry.text
    assert (text.hidden, text.intermediate, text.vocab) == (64, 80, VOCAB)
    head = heads.vispec()
    del head.config["num_attention_heads"]
    assert opened(head, tmp_path, head_target).geometry.text.heads == 4


def test_msd_is_taken_when_asked_for(tmp_path: Path, head_target: Model) -> None:
    line = opened(heads.eagle(), tmp_path, head_target, "msd").description
    assert ": msd (as asked for)" in line
    head = opened(heads.msd(), tmp_path, head_target, "msd")
    assert head.geometry.text.vocab == VOCAB  # the last rows are the target's
    assert head.checkpoint.shapes["embed_tokens.weight"] == (VOCAB - 6, HIDDEN)
    message = refused(heads.msd(), tmp_path, head_target, "EAGLE and of MSD alike", "variant 'msd'")
    assert "variant 'eagle'" in message
    refused(heads.msd(), tmp_path, head_target, "vocabulary of 90", "96", variant="eagle")
    far = heads.msd(missing_rows=66)
    refused(far, tmp_path, head_target, "vocabulary of 30", variant="msd")


@pytest.mark.parametrize("rows", [VOCAB, VOCAB - 6])
def test_an_embedding_that_is_the_targets_is_shared(
    rows: int, tmp_path: Path, head_target: Model
) -> None:
    head = heads.msd(missing_rows=VOCAB - rows)
    table = head_target.checkpoint.tensor("text.embed_tokens.weight")[:rows]
    head.tensors["embed_tokens.weight"] = table
    head.tensors = {n: t.astype(np.float32) for n, t in head.tensors.items()}
    shared = open_head(head.write(tmp_path / "a", "F32"), head_target, "msd")
    assert not shared.geometry.own_embedding and "the target's embedding" in shared.description
    assert "embed_tokens.weight" not in shared.checkpoint.entries
    table = table.copy()
    table[-1, -1] += 1
    head.tensors["embed_tokens.weight"] = table
    own = open_head(head.write(tmp_path / "b", "F32"), head_target, "msd")
    assert own.geometry.own_embedding and "own embedding" in own.description
    absent = open_head(
        head.drop("embed_tokens.weight").write(tmp_path / "c", "F32"), head_target, "msd"
    )
    assert not absent.geometry.own_embedding
    names = absent.checkpoint.entries
    assert absent.checkpoint.fingerprint(names) == shared.checkpoint.fingerprint(names)


def test_a_layer_narrower_than_its_target(tmp_path: Path, head_target: Model) -> None:
    """EAGLE-3 with target_hidden_size: an embedding of its own is needed."""
    head = heads.eagle3().with_config(hidden_size=32, num_attention_heads=2, target_hidden_size=64)
    head.config |= {"num_key_value_heads": 2, "head_dim": SIZE}
    head.tensors = {n: _narrow(n, t) for n, t in head.tensors.items()}
    refused(head, tmp_path, head_target, "32 wide", "64", "embed_tokens.weight is missing")
    geometry = opened(head.add(embed_tokens__weight=(VOCAB, 32)), tmp_path, head_target).geometry
    assert geometry.own_embedding and geometry.feature_size == 3 * HIDDEN
    refused(head.with_config(target_hidden_size=48), tmp_path, head_target, "192 columns", "48")


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
    make: Callable[[], PublishedHead], words: tuple[str, ...], tmp_path: Path, head_target: Model
) -> None:
    refused(make(), tmp_path, head_target, *words)


def test_medusa_under_its_other_names(tmp_path: Path, head_target: Model) -> None:
    head = heads.medusa()
    head.tensors = {f"medusa_head.{n}": t for n, t in head.tensors.items()}
    refused(head, tmp_path, head_target, "Medusa")


def test_a_whole_model_is_no_head(head_target: Model) -> None:
    with pytest.raises(CheckpointError, match="stand-alone draft"):
        open_head(head_target.checkpoint.source, head_target)


def test_tensors_of_nothing_that_is_known(tmp_path: Path, head_target: Model) -> None:
    head = PublishedHead({"model_type": "llama"}).add(encoder__weight=(2, 2))
    refused(head, tmp_path, head_target, "encoder.weight", "EAGLE-1/2/3", "ViSpec")


def test_the_description_has_one_line_for_every_flag(tmp_path: Path, head_target: Model) -> None:
    head = opened(heads.specforge(fc_norm=True, norm_output=True), tmp_path, head_target)
    assert head.description.endswith("features of layers 2, 4, 5; fc_norm; norm_output")


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
    head_target: Model,
) -> None:
    refused(make(), tmp_path, head_target, *words, variant=variant)


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
    label: Any, words: tuple[str, ...], tmp_path: Path, head_target: Model
) -> None:
    refused(heads.eagle().with_config(edgespec=label), tmp_path, head_target, *words)


def test_labels(tmp_path: Path, head_target: Model) -> None:
    label = {"variant": "msd", "target_fingerprint": head_target.text_fingerprint}
    head = opened(heads.msd().with_config(edgespec=label), tmp_path, head_target)
    assert ": msd (by its config.json)" in head.description
    head_files = heads.msd().with_config(edgespec=label)
    refused(head_files, tmp_path, head_target, "'eagle' was asked for", "'msd'", variant="eagle")
    layers = heads.eagle3().with_config(edgespec={"feature_layers": [1, 2, 8]})
    assert opened(layers, tmp_path, head_target).geometry.feature_layers == (1, 2, 8)
    for odd in ([1, 2, 9], [1, 2], [-1, 2, 3]):
        wrong = heads.eagle3().with_config(edgespec={"feature_layers": odd})
        refused(wrong, tmp_path, head_target, str(odd), "0 to 8")


def test_a_pruned_head_of_specvlm(tmp_path: Path, head_target: Model) -> None:
    """A compressor without weights is told by the label alone."""
    label = {"variant": "specvlm", "compressor": {"kind": "pool:4"}}
    head = opened(heads.eaglevlm().with_config(edgespec=label), tmp_path, head_target)
    assert head.geometry.compression == parse_compression("pool:4")
    assert "compressor pool:4" in head.description
    label["compressor"] = {"kind": "resampler:2"}
    refused(
        heads.eaglevlm().with_config(edgespec=label), tmp_path, head_target,
        "missing tensor compressor.attention.q [2, 4, 16]",
    )  # fmt: skip
