"""Checkpoints that are incomplete, altered or not understood: refused by name, nothing written."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgespec.errors import CheckpointError, ConfigError, InputError, MissingDependencyError
from edgespec.flavour import Flavour
from edgespec_export.assets import read_assets
from edgespec_export.checkpoint import open_checkpoint
from edgespec_export.exporter import ExportRequest, export_bundle, plan_export
from edgespec_export.plan import open_model
from tests.support.tiny import (
    VOCAB,
    spelled,
    tiny_config,
    tiny_tensors,
    tiny_tokenizer,
    write_json,
    write_safetensors,
    write_tiny,
)

Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("base") / "target")


@pytest.fixture
def copy(base: Path, tmp_path: Path) -> Path:
    return shutil.copytree(base, tmp_path / "target")


def refused(folder: Path, *words: str, error: type[InputError] = CheckpointError) -> str:
    """Exports ``folder``; the message of the refusal, in which every one of ``words`` occurs."""
    out = folder.parent / "bundle"
    with pytest.raises(error) as caught:
        export_bundle(ExportRequest(target=str(folder), out=out))
    message = str(caught.value)
    for word in words:
        assert word in message
    assert [p.name for p in folder.parent.iterdir() if "bundle" in p.name] == []
    return message


# Settings of config.json: (where, what is set, words of the message)
SETTINGS: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("", {"model_type": "llava_next", "architectures": ["LlavaNext"]}, ("llava_next", "LlavaNext")),
    ("", {"model_type": None}, ("None",)),
    ("", {"mm_patch_merge_type": "flat"}, ("config.json", "mm_patch_merge_type")),
    ("", {"quantization_config": {"bits": 4}}, ("quantization_config",)),
    ("", {"vision_feature_select_strategy": "cls"}, ("vision_feature_select_strategy", "cls")),
    ("", {"vision_feature_layer": 3}, ("vision_feature_layer", "3")),
    ("", {"vision_feature_layer": [-1, -4]}, ("vision_feature_layer",)),
    ("", {"vision_feature_layer": "last"}, ("vision_feature_layer", "last")),
    ("", {"projector_hidden_act": "relu"}, ("relu",)),
    ("", {"image_token_index": "three"}, ("image_token_index", "three")),
    ("text_config", {"model_type": "gpt2"}, ("gpt2", "llama", "qwen2")),
    ("text_config", {"num_experts": 4}, ("text_config", "num_experts")),
    ("text_config", {"hidden_act": "gelu"}, ("hidden_act", "gelu")),
    ("text_config", {"num_key_value_heads": 3}, ("4 heads", "3 key-value heads")),
    ("text_config", {"hidden_size": "64"}, ("hidden_size", "'64'")),
    ("text_config", {"num_hidden_layers": 0}, ("num_hidden_layers", "0")),
    ("text_config", {"num_hidden_layers": 10**12}, ("num_hidden_layers", "4096")),
    ("text_config", {"rms_norm_eps": True}, ("rms_norm_eps",)),
    ("text_config", {"layer_types": ["sliding_attention"]}, ("sliding-window",)),
    ("text_config", {"use_sliding_window": True}, ("sliding-window",)),
    ("text_config", {"model_type": "mistral", "sliding_window": 64}, ("sliding-window",)),
    (
        "text_config",
        {"model_type": "mistral", "max_position_embeddings": 8192},  # 4096 where nothing is said
        ("sliding-window",),
    ),
    ("text_config", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, ("dynamic", "llama3")),
    ("text_config", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, ("yarn",)),
    ("text_config", {"rope_scaling": "linear"}, ("rotary scaling", "linear")),
    ("text_config", {"rope_scaling": {"type": "linear"}}, ("linear", "lacks factor")),
    ("text_config", {"rope_parameters": {"rope_type": "llama3"}}, ("lacks", "low_freq_factor")),
    ("text_config", {"rope_parameters": {"partial_rotary_factor": 0.5}}, ("partial_rotary",)),
    ("text_config", {"rope_theta": -1}, ("rope_theta",)),
    ("vision_config", {"model_type": "dinov2"}, ("dinov2", "clip_vision_model")),
    ("vision_config", {"num_channels": 4}, ("num_channels",)),
    ("vision_config", {"hidden_act": "relu"}, ("relu",)),
    ("vision_config", {"use_head": True}, ("vision_config", "use_head")),
    ("vision_config", {"num_attention_heads": 3}, ("32", "3 heads")),
    ("vision_config", {"patch_size": 64}, ("patches of 64",)),
]


@pytest.mark.parametrize(("where", "values", "words"), SETTINGS)
def test_settings_that_are_not_understood(
    copy: Path, where: str, values: dict[str, Any], words: tuple[str, ...]
) -> None:
    config = json.loads((copy / "config.json").read_text())
    (config[where] if where else config).update(values)
    write_json(copy / "config.json", config)
    refused(copy, *words)


def without(key: str) -> Change:
    return lambda folder: rewrite(folder, drop=spelled(key, "classic"))


def with_tensor(key: str, tensor: Any) -> Change:
    return lambda folder: rewrite(folder, add={spelled(key, "classic"): tensor})


def rewrite(folder: Path, drop: str = "", add: dict[str, Any] | None = None) -> None:
    tensors = {spelled(n, "classic"): t for n, t in tiny_tensors(tiny_config()).items()}
    tensors |= add or {}
    tensors.pop(drop, None)
    write_safetensors(folder / "model.safetensors", tensors, "F32")


def one_bad_value(key: str, value: float) -> Change:
    tensor = tiny_tensors(tiny_config())[key]
    tensor.flat[-1] = value
    return with_tensor(key, tensor)


def truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def cut_in_header(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:60])


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def text(name: str, content: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).write_text(content)

    return change


def gone(*names: str) -> Change:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def index(weight_map: Any) -> Change:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})

    return change


def same_tensor_in_two_spellings(folder: Path) -> None:
    rewrite(folder, add={"model.language_model.norm.weight": np.ones(64, dtype=np.float32)})


DOWN = "text.layers.1.mlp.down_proj.weight"
FILES: dict[str, tuple[Change, tuple[str, ...]]] = {
    "missing tensor": (without(DOWN), ("missing tensor", DOWN, "[64, 80]")),
    "missing tower": (without("vision.pre_layrnorm.bias"), ("vision.pre_layrnorm.bias",)),
    "missing head": (without("lm_head.weight"), ("lm_head.weight", "not tied")),
    "extra tensor": (
        with_tensor("text.layers.0.self_attn.q_proj.bias", np.zeros(64, dtype=np.float32)),
        ("unexpected tensor", "text.layers.0.self_attn.q_proj.bias", "[64]"),
    ),
    "extra part": (
        with_tensor("model.image_newline", np.zeros(64, dtype=np.float32)),
        ("unexpected tensor", "model.image_newline"),
    ),
    "wrong shape": (
        with_tensor(DOWN, np.zeros((80, 64), dtype=np.float32)),
        (DOWN, "[80, 64]", "[64, 80]"),
    ),
    "int8 weights": (with_tensor(DOWN, np.zeros((64, 80), dtype=np.int8)), (DOWN, "I8", "BF16")),
    "float64 weights": (with_tensor(DOWN, np.zeros((64, 80))), (DOWN, "F64")),
    "NaN": (one_bad_value(DOWN, float("nan")), ("down_proj.weight", "NaN")),
    "infinity": (one_bad_value("projector.linear_2.bias", float("inf")), ("linear_2.bias",)),
    "NaN in the table": (one_bad_value("text.embed_tokens.weight", np.nan), ("embed_tokens",)),
    "twice": (same_tensor_in_two_spellings, ("model.language_model.norm.weight", "twice")),
    "truncated": (truncated, ("model.safetensors", "intact")),
    "cut in the header": (cut_in_header, ("model.safetensors", "intact")),
    "empty": (text("model.safetensors", ""), ("model.safetensors", "intact")),
    "pickled": (pickled, ("pytorch_model.bin", "safetensors")),
    "no weights": (gone("model.safetensors"), ("no model.safetensors",)),
    "missing shard": (index({"a": "model-00001-of-00001.safetensors"}), ("00001-of-00001",)),
    "shard elsewhere": (index({"a": "../model.safetensors"}), ("weight_map",)),
    "index of another shape": (index([1, 2]), ("weight_map",)),
    "no config": (gone("config.json"), ("config.json",)),
    "config is no JSON": (text("config.json", "{"), ("config.json", "JSON")),
    "config is a list": (text("config.json", "[]"), ("config.json", "list")),
    "no tokenizer": (gone("tokenizer.json"), ("tokenizer.json", "save_pretrained")),
    "no template": (gone("chat_template.jinja"), ("chat template",)),
    "no processor": (gone("preprocessor_config.json"), ("preprocessor_config.json",)),
    "unknown processor": (
        text("preprocessor_config.json", '{"image_processor_type": "PixtralImageProcessor"}'),
        ("PixtralImageProcessor",),
    ),
    "processor of another size": (
        text(
            "preprocessor_config.json",
            '{"image_processor_type": "CLIPImageProcessor", "crop_size": 40}',
        ),
        ("40 x 40", "image_size is 32"),
    ),
    "beams": (text("generation_config.json", '{"num_beams": 4}'), ("num_beams=4",)),
    "n-gram ban": (
        text("generation_config.json", '{"no_repeat_ngram_size": 3}'),
        ("no_repeat_ngram_size=3",),
    ),
    "stop strings": (text("generation_config.json", '{"stop_strings": ["x"]}'), ("stop_strings",)),
    "end outside": (text("generation_config.json", '{"eos_token_id": [2, 999]}'), ("999",)),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_broken(copy: Path, name: str) -> None:
    change, words = FILES[name]
    change(copy)
    refused(copy, *words)


def test_a_tokenizer_larger_than_the_vocabulary(copy: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer["model"]["vocab"]["beyond"] = VOCAB
    write_json(copy / "tokenizer.json", tokenizer)
    refused(copy, f"id {VOCAB}", f"{VOCAB} rows")


def test_an_image_token_that_the_tokenizer_lacks(copy: Path) -> None:
    config = tiny_config(image_token_index=90)
    write_json(copy / "config.json", config)
    refused(copy, "90", "tokenizer.json")


def test_many_differences_are_counted(tmp_path: Path) -> None:
    config = tiny_config()
    tensors = {n: t for n, t in tiny_tensors(config).items() if not n.startswith("vision.enc")}
    folder = write_tiny(tmp_path / "t", config, tensors)
    message = refused(folder, "missing tensor vision.encoder.layers.0")
    assert "and 26 more" in message


def test_tied_embeddings_with_another_head(tmp_path: Path) -> None:
    tensors = tiny_tensors(tiny_config())
    config = tiny_config(tie_word_embeddings=True)
    refused(write_tiny(tmp_path / "t", config, tensors), "tie_word_embeddings", "lm_head.weight")
    tensors["lm_head.weight"] = tensors["text.embed_tokens.weight"]
    assert open_model(str(write_tiny(tmp_path / "u", config, tensors))).tensors.tied is False


def test_either_place_may_tie_the_embeddings(tmp_path: Path) -> None:
    config = tiny_config(text_extra={"tie_word_embeddings": True})
    assert open_model(str(write_tiny(tmp_path / "t", config))).tensors.tied
    silent = tiny_config(text_extra={})
    del silent["tie_word_embeddings"]
    tensors = tiny_tensors(silent)
    del tensors["lm_head.weight"]
    assert open_model(str(write_tiny(tmp_path / "u", silent, tensors))).tensors.tied


def test_buffers_and_unused_parts_are_passed_over(tmp_path: Path) -> None:
    tensors: dict[str, Any] = dict(tiny_tensors(tiny_config()))
    tensors["vision.embeddings.position_ids"] = np.arange(17)[None]
    tensors["vision.post_layernorm.weight"] = np.ones(32, dtype=np.float32)
    tensors["text.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, dtype=np.float32)
    open_model(str(write_tiny(tmp_path / "t", None, tensors)))


def test_a_short_mistral_window_that_never_closes(tmp_path: Path) -> None:
    config = tiny_config(text="mistral")  # window 4096, context 128
    assert open_model(str(write_tiny(tmp_path / "t", config))).geometry.text.max_positions == 128


def test_a_tower_that_is_not_described_is_llavas(tmp_path: Path) -> None:
    config = tiny_config()
    del config["vision_config"]
    from edgespec_export.configuration import read_geometry

    vision = read_geometry(config).vision
    assert (vision.image_size, vision.patch_size, vision.layers) == (336, 14, 24)


def test_a_tensor_cut_off_after_opening(copy: Path) -> None:
    checkpoint = open_checkpoint(copy)
    truncated(copy)
    last = max(checkpoint.entries, key=lambda name: checkpoint.entries[name].offset)
    with pytest.raises(CheckpointError, match="ends inside tensor"):
        checkpoint.tensor(last)
    (copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        checkpoint.tensor(last)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON document."""
    yield path
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value[:2])
        for key, inner in list(items)[:30]:
            yield from places(inner, (*path, key))


ODD: list[Any] = [None, "x", {}, [1], -1, 10**12]
DOCUMENTS = ("config", "generation_config", "preprocessor_config", "tokenizer", "tokenizer_config")


@pytest.mark.parametrize("name", [f"{stem}.json" for stem in DOCUMENTS])
def test_no_value_anywhere_is_a_crash(tmp_path: Path, name: str) -> None:
    """Accepted or refused in words; never another exception."""
    extra = {"head_dim": 16, "layer_types": ["full_attention"] * 2, "sliding_window": None}
    rope = {"rope_scaling": {"type": "linear", "factor": 2.0}}
    folder = write_tiny(tmp_path / "t", tiny_config(text_extra={**extra, **rope}))
    original = (folder / name).read_text()
    for path in places(json.loads(original)):
        for odd in ODD:
            document: Any = {"": json.loads(original)}
            place = document
            for key in ("", *path)[:-1]:
                place = place[key]
            place[("", *path)[-1]] = odd
            write_json(folder / name, document[""])
            try:
                model = open_model(str(folder))
                read_assets(model.checkpoint, model.geometry)
            except InputError as error:
                assert str(error), path


# Where checkpoints come from


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at", "nowhere", "a/b/c", "~/nowhere"])
def test_a_directory_that_does_not_exist(source: str) -> None:
    with pytest.raises(CheckpointError, match="does not exist.*hub id"):
        open_checkpoint(source)


def test_a_file_is_no_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="is a file"):
        open_checkpoint(file)


def test_a_hub_id_is_fetched_without_pickles(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: dict[str, Any] = {}

    def snapshot_download(repo: str, **more: Any) -> str:
        asked.update(more, repo=repo)
        return str(copy)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    request = ExportRequest(target="owner/model", out=tmp_path / "b")
    assert export_bundle(request).models["target"].source == "model"
    assert asked["repo"] == "owner/model" and asked["ignore_patterns"] == ["*/*"]
    patterns = asked["allow_patterns"]
    names = ["config.json", "model-00001-of-00002.safetensors", "chat_template.jinja"]
    assert all(any(Path(n).match(p) for p in patterns) for n in names)
    assert not any(Path("pytorch_model.bin").match(p) for p in patterns)


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def snapshot_download(repo: str, **more: Any) -> str:
        raise ConnectionError("no route to host\nand a long trace")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint("owner/model")
    message = str(caught.value)
    assert "no route to host" in message and "long trace" not in message
    assert "hf download owner/model --local-dir" in message


def test_a_hub_id_without_the_hub_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingDependencyError, match=r"huggingface_hub.*edgespec\[export\]"):
        open_checkpoint("owner/model")


# Draft and target


def pair(target: Path, draft: Path, **more: Any) -> None:
    plan_export(ExportRequest(target=str(target), draft=str(draft), out=Path("never"), **more))


def test_a_draft_with_another_tokenizer(copy: Path, base: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer["model"]["vocab"]["new"] = 50
    tokenizer["normalizer"] = {"type": "Lowercase"}
    write_json(copy / "tokenizer.json", tokenizer)
    with pytest.raises(CheckpointError, match="tokenizers.*differ in: model, normalizer"):
        pair(base, copy)


def test_padding_and_truncation_do_not_make_another_tokenizer(copy: Path, base: Path) -> None:
    write_json(copy / "tokenizer.json", {**tiny_tokenizer(), "truncation": {"max_length": 9}})
    pair(base, copy)


def test_a_draft_with_another_vocabulary_or_image_token(base: Path, tmp_path: Path) -> None:
    config = tiny_config(text_extra={"vocab_size": 100})
    with pytest.raises(CheckpointError, match="vocabulary size 100 against 96"):
        pair(base, write_tiny(tmp_path / "d", config))
    config = tiny_config(image_token_index=4)
    with pytest.raises(CheckpointError, match="image token id 4 against 3"):
        pair(base, write_tiny(tmp_path / "e", config))


def test_a_draft_of_another_target(base: Path, tmp_path: Path) -> None:
    fingerprint = open_model(str(base)).text_fingerprint
    right = tiny_config(edgespec_target_fingerprint=fingerprint)
    pair(base, write_tiny(tmp_path / "d", right, seed=1))
    wrong = tiny_config(edgespec_target_fingerprint="0" * 64)
    with pytest.raises(CheckpointError, match=r"trained for another target \(000000000000\.\.\.\)"):
        pair(base, write_tiny(tmp_path / "e", wrong, seed=1))


def test_a_draft_whose_images_are_of_another_size(base: Path, tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "d", tiny_config(vision_extra={"image_size": 48}))
    shutil.copy(base / "preprocessor_config.json", folder)
    with pytest.raises(CheckpointError, match="32 x 32 pixels, but vision_config.image_size is 48"):
        pair(base, folder)


def test_a_ratio_beyond_the_image(base: Path) -> None:
    with pytest.raises(ConfigError, match="pool:25: an image has only 16 visual tokens"):
        pair(base, base, compressor="pool:25")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"flavours": (Flavour("ort", "int3"),)}, "precision 'int3'.*fp32"),
        ({"flavours": (Flavour("qnn"),)}, "lowering 'qnn'.*ort, cuda, native"),
        ({"compressor": "pool:4"}, "needs --draft"),
        ({"compressor": "pool:4", "draft": "x"}, None),
        ({"compressor": "pool", "draft": "x"}, "pool:N"),
        ({"compressor": "pool:1", "draft": "x"}, "a ratio of at least 2"),
        ({"compressor": "resampler:0", "draft": "x"}, "a number of queries of at least 1"),
        ({"compressor": "qformer:4", "draft": "x"}, "qformer:4.*There are: pool"),
    ],
)
def test_requests_that_make_no_sense(base: Path, more: dict[str, Any], words: str | None) -> None:
    request = ExportRequest(target=str(base), out=Path("never"), **more)
    expected = ConfigError if words else CheckpointError
    with pytest.raises(expected, match=words or "'x' does not exist"):
        plan_export(request)


def test_head_sizes_that_group_query_attention_cannot_take(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "t", tiny_config(text_extra={"head_dim": 24}))
    refused(folder, "multiple of 16", "24", "--lowering native", error=ConfigError)
