"""Heads written from torch and read back: the same geometry, tensors and outputs; whole or not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgespec.errors import CheckpointError, ConfigError, InputError
from edgespec_export.compression import parse_compression
from edgespec_export.geometry import Rope, TextGeometry
from edgespec_export.heads.geometry import HeadGeometry, captured_layers
from edgespec_export.heads.layouts import OpenedHead, open_head
from edgespec_export.heads.modules import Head, build_head
from edgespec_export.heads.save import load_head, write_head
from edgespec_export.heads.shapes import head_shapes
from edgespec_export.plan import Model, open_model
from tests.support import heads
from tests.support.heads import HIDDEN, PUBLISHED, VOCAB

LAYER = TextGeometry(
    hidden=64, intermediate=80, layers=1, heads=4, kv_heads=2, head_dim=16, vocab=VOCAB,
    max_positions=128, eps=1e-5, rope=Rope(10000.0), qkv_bias=False, o_bias=False, mlp_bias=False,
)  # fmt: skip
QWEN = replace(LAYER, qkv_bias=True, kv_heads=4, rope=Rope(1e6), eps=1e-6)
LONG = replace(
    LAYER, o_bias=True, qkv_bias=True, mlp_bias=True, max_positions=256,
    rope=Rope(5e5, "llama3", 8.0, 1.0, 4.0, 64),
)  # fmt: skip
LINEAR = replace(LAYER, rope=Rope(10000.0, "linear", 2.0))
THREE = HeadGeometry(
    "eagle3", LAYER, 3 * HIDDEN, fc_bias=False, feature_layers=captured_layers(heads.LAYERS)
)
COMPRESSORS = (
    "elastic:select", "elastic:weighted", "elastic:concat", "conv:3", "resampler:2", "pool:4",
    "prune:20", "text-only",
)  # fmt: skip
GEOMETRIES: Mapping[str, HeadGeometry] = {
    "eagle": HeadGeometry("eagle", LAYER, HIDDEN),
    "eagle without bias": HeadGeometry("eagle", LAYER, HIDDEN, fc_bias=False),
    "eagle qwen2": HeadGeometry("eagle", QWEN, HIDDEN),
    "eagle llama3": HeadGeometry("eagle", LONG, HIDDEN),
    "eagle linear": HeadGeometry("eagle", LINEAR, HIDDEN),
    "eaglevlm": HeadGeometry("eaglevlm", LAYER, HIDDEN),
    "eaglevlm with a table": HeadGeometry("eaglevlm", LAYER, HIDDEN, own_embedding=True),
    "msd": HeadGeometry("msd", LAYER, HIDDEN),
    "vispec": HeadGeometry("vispec", LAYER, HIDDEN, queries=2),
    "vispec qwen": HeadGeometry("vispec", QWEN, HIDDEN, queries=4),
    **{
        f"specvlm {name}": HeadGeometry(
            "specvlm", LAYER, HIDDEN, compression=parse_compression(name)
        )
        for name in COMPRESSORS
    },
    "specvlm branches": HeadGeometry(
        "specvlm", LAYER, HIDDEN,
        compression=parse_compression("elastic:select", ("conv:2", "pool:2", "resampler:3")),
    ),
    "eagle3": THREE,
    "eagle3 trimmed": replace(THREE, draft_vocab=40, feature_layers=(1, 2, 8)),
    "eagle3 residual": replace(THREE, draft_vocab=40, norm_before_residual=True),
    "eagle3 fc": replace(THREE, norm_before_fc=True, norm_output=True),
    "eagle3 norms": replace(THREE, fc_norm=True, norm_output=True),
    "eagle3 narrow": replace(
        THREE, text=replace(LAYER, hidden=32, heads=2), own_embedding=True, draft_vocab=40
    ),
}  # fmt: skip


def tables(target: Model) -> tuple[Any, Any]:
    names = ("text.embed_tokens.weight", "lm_head.weight")
    embedding, head = (torch.from_numpy(target.checkpoint.tensor(name)) for name in names)
    return embedding, head


def untrained(geometry: HeadGeometry, target: Model) -> Head:
    """Random in every parameter, so that no two tensors are alike."""
    embedding, head = tables(target)
    if geometry.own_embedding:
        embedding = torch.zeros(VOCAB, geometry.text.hidden)
    module = build_head(geometry, embedding, head)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name != "embed_tokens.weight" or geometry.own_embedding:
                parameter.copy_(torch.randn(parameter.shape, generator=generator).half().float())
    if geometry.draft_vocab:
        kept = torch.from_numpy(heads.kept_ids(geometry.draft_vocab))
        module.get_buffer("d2t").copy_(kept - torch.arange(geometry.draft_vocab))
    return module


def written(folder: Path, head: Head, target: Model, **more: Any) -> OpenedHead:
    write_head(folder, head, target_fingerprint=target.text_fingerprint, **more)
    return open_head(str(folder), target)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_head_comes_back_as_it_was(name: str, tmp_path: Path, head_target: Model) -> None:
    head = untrained(GEOMETRIES[name], head_target)
    opened = written(tmp_path / "head", head, head_target)
    assert opened.geometry == head.geometry
    assert sorted(p.name for p in tmp_path.iterdir()) == ["head"]
    files = sorted(p.name for p in (tmp_path / "head").iterdir())
    assert files == ["config.json", "model.safetensors"]
    loaded = load_head(opened, *tables(head_target)).state_dict()
    state = head.state_dict()
    assert loaded.keys() == state.keys()
    for key, tensor in state.items():
        assert torch.equal(loaded[key], tensor), key
    shapes = dict(opened.checkpoint.shapes)
    shapes.pop("embed_tokens.weight", None)
    trimmed = {"d2t": (40,)} if head.geometry.draft_vocab else {}
    assert shapes == {**head_shapes(head.geometry), **trimmed}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_heads_load_into_their_modules(
    name: str, tmp_path: Path, head_target: Model
) -> None:
    opened = open_head(PUBLISHED[name]().write(tmp_path / "a"), head_target)
    head = load_head(opened, *tables(head_target))
    again = written(tmp_path / "b", head, head_target)
    assert again.geometry == opened.geometry
    names = opened.checkpoint.entries
    assert again.checkpoint.fingerprint(names) == opened.checkpoint.fingerprint(names)
    if opened.draft_ids is not None:
        assert np.array_equal(opened.draft_ids, heads.kept_ids(heads.DRAFT_VOCAB))
        d2t = head.get_buffer("d2t").numpy()
        assert np.array_equal(d2t + np.arange(len(d2t)), opened.draft_ids)


def test_msd_takes_its_last_rows_from_the_target(tmp_path: Path, head_target: Model) -> None:
    published = heads.msd()
    opened = open_head(published.write(tmp_path / "head"), head_target, "msd")
    table = load_head(opened, *tables(head_target)).embed_tokens.weight.numpy()
    assert np.array_equal(table[:-6], published.tensors["embed_tokens.weight"])
    assert np.array_equal(table[-6:], tables(head_target)[0][-6:].numpy())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_precisions(dtype: str, tmp_path: Path, head_target: Model) -> None:
    head = untrained(GEOMETRIES["eagle"], head_target)
    opened = written(tmp_path / "head", head, head_target, dtype=dtype)
    kinds = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
    assert {e.dtype for e in opened.checkpoint.entries.values()} == {kinds[dtype]}
    assert opened.checkpoint.config["torch_dtype"] == dtype


def test_the_targets_table_is_written_when_asked_for(tmp_path: Path, head_target: Model) -> None:
    head = untrained(GEOMETRIES["eagle"], head_target)
    opened = written(tmp_path / "head", head, head_target, embedding=True, dtype="float32")
    header = (tmp_path / "head" / "model.safetensors").read_bytes()[:4000]
    assert b"embed_tokens.weight" in header and not opened.geometry.own_embedding


def test_notes_and_the_target_travel_along(tmp_path: Path, head_target: Model) -> None:
    head = untrained(GEOMETRIES["msd"], head_target)
    opened = written(tmp_path / "head", head, head_target, extra={"steps": 3})
    assert opened.label.notes == {"steps": 3}
    assert opened.label.target_fingerprint == head_target.text_fingerprint
    config = json.loads((tmp_path / "head" / "config.json").read_text())
    assert config["edgespec"]["variant"] == "msd" and config["num_hidden_layers"] == 1
    other = open_model(str(heads.target_folder(tmp_path / "other", rope_theta=5e5)))
    object.__setattr__(other, "text_fingerprint", "f" * 64)
    with pytest.raises(CheckpointError, match="trained for another target.*ffffffffffff"):
        open_head(str(tmp_path / "head"), other)


def test_numbers_that_do_not_fit(tmp_path: Path, head_target: Model) -> None:
    head = untrained(GEOMETRIES["eagle"], head_target)
    with torch.no_grad():
        head.get_parameter("fc.bias")[0] = 1e6
    with pytest.raises(ConfigError, match="fc.bias does not fit float16"):
        written(tmp_path / "head", head, head_target)
    with torch.no_grad():
        head.get_parameter("fc.bias")[0] = torch.nan
    with pytest.raises(ConfigError, match="fc.bias has diverged"):
        written(tmp_path / "head", head, head_target)
    with pytest.raises(ConfigError, match="dtype 'int4'.*float16, bfloat16"):
        written(tmp_path / "head", head, head_target, dtype="int4")
    trimmed = untrained(GEOMETRIES["eagle3 trimmed"], head_target)
    trimmed.get_buffer("d2t")[0] = -3
    with pytest.raises(CheckpointError, match="token -3"):
        written(tmp_path / "head", trimmed, head_target)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_of_a_write_that_fails(
    tmp_path: Path, head_target: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = untrained(GEOMETRIES["eagle"], head_target)

    def save_file(tensors: Any, file: Path, **more: Any) -> None:
        file.write_bytes(b"half")
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr("safetensors.torch.save_file", save_file)
        with pytest.raises(InputError, match="writing .* failed: no space left"):
            written(tmp_path / "head", head, head_target)
        assert list(tmp_path.iterdir()) == []
    before = written(tmp_path / "head", head, head_target).checkpoint.config
    with monkeypatch.context() as patched:
        patched.setattr("safetensors.torch.save_file", save_file)
        with pytest.raises(InputError, match="no space left"):
            written(tmp_path / "head", head, head_target, overwrite=True)
    assert open_head(str(tmp_path / "head"), head_target).checkpoint.config == before


def test_what_is_in_the_way(tmp_path: Path, head_target: Model) -> None:
    first, second = (untrained(GEOMETRIES[name], head_target) for name in ("eagle", "vispec"))
    written(tmp_path / "head", first, head_target)
    with pytest.raises(ConfigError, match="already exists"):
        written(tmp_path / "head", second, head_target)
    assert written(tmp_path / "head", second, head_target, overwrite=True).geometry.queries == 2
    assert [p.name for p in tmp_path.iterdir()] == ["head"]
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigError, match="is no head"):
        written(tmp_path / "other", second, head_target, overwrite=True)
