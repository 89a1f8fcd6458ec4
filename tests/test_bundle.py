"""Reading a bundle: whole and unaltered, or refused by the name of what is wrong."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from edgespec.bundle import (
    FORMAT_VERSION,
    MANIFEST,
    GraphSpec,
    Manifest,
    ModelIdentity,
    TensorSpec,
    read_bundle,
    write_bundle,
)
from edgespec.errors import BundleError, InputError

GOLDEN = """{
 "format_version": 4,
 "created_by": "edgespec 0",
 "graphs": [
  {
   "role": "target",
   "file": "target.onnx",
   "lowering": "ort",
   "precision": "fp32",
   "inputs": [
    {
     "name": "inputs_embeds",
     "dtype": "float32",
     "axes": [
      "B",
      "S",
      8
     ]
    }
   ],
   "outputs": [],
   "meta": {
    "hidden": 8
   }
  }
 ],
 "models": {
  "target": {
   "source": "llava",
   "architecture": "LlavaForConditionalGeneration",
   "fingerprint": "f",
   "vision_fingerprint": "v"
  }
 },
 "text": {
  "image_token": "<image>"
 },
 "generation": {
  "eos_token_ids": [
   2
  ]
 },
 "compressor": null,
 "parity": {
  "target": "not checked"
 },
 "tools": {
  "onnx": "1.0"
 },
 "files": {
  "sub/words.txt": {
   "size": 5,
   "sha256": "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
  },
  "target.onnx": {
   "size": 0,
   "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
  }
 }
}
"""
"""The manifest's format, version 4. Another text here is another format version."""


def write(out: Path, **more: Any) -> Manifest:
    spec = GraphSpec(
        role="target",
        file="target.onnx",
        lowering="ort",
        precision="fp32",
        inputs=(TensorSpec("inputs_embeds", "float32", ("B", "S", 8)),),
        outputs=(),
        meta={"hidden": 8},
    )
    identity = ModelIdentity("llava", "LlavaForConditionalGeneration", "f", "v")
    with write_bundle(out, **more) as writer:
        (writer.folder / "target.onnx").write_bytes(b"")
        (writer.folder / "sub").mkdir()
        (writer.folder / "sub" / "words.txt").write_text("hello")
        return writer.finish(
            created_by="edgespec 0",
            graphs=(spec,),
            models={"target": identity},
            text={"image_token": "<image>"},
            generation={"eos_token_ids": [2]},
            compressor=None,
            parity={"target": "not checked"},
            tools={"onnx": "1.0"},
        )


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write(tmp_path / "b")
    return tmp_path / "b"


def change(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Edits the manifest in place."""
    data = json.loads((folder / MANIFEST).read_text())
    edit(data)
    (folder / MANIFEST).write_text(json.dumps(data))


def refused(folder: Path, *words: str, **more: Any) -> None:
    with pytest.raises(BundleError) as caught:
        read_bundle(folder, **more)
    for word in words:
        assert word in str(caught.value)


def test_the_manifest_is_pinned_and_comes_back_as_it_was(tmp_path: Path) -> None:
    manifest = write(tmp_path / "b")
    assert (tmp_path / "b" / MANIFEST).read_text() == GOLDEN
    bundle = read_bundle(tmp_path / "b")
    assert bundle.manifest == manifest and asdict(bundle.manifest) == asdict(manifest)
    assert FORMAT_VERSION == 4
    assert bundle.file("sub/words.txt").read_text() == "hello"
    assert bundle.manifest.graph("target") == manifest.graphs[0]
    assert bundle.manifest.graph("draft") is None
    with pytest.raises(BundleError, match=r"no file 'draft\.onnx'"):
        bundle.file("draft.onnx")


def test_a_bundle_may_be_named_as_text(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle.parent)
    assert read_bundle("b").path == Path("b")


def test_what_is_no_bundle(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "nowhere", "does not exist", "edgespec export")
    refused(tmp_path, "no bundle", MANIFEST)
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "is a file")


def test_a_missing_file(bundle: Path) -> None:
    (bundle / "sub" / "words.txt").unlink()
    refused(bundle, "'sub/words.txt' is missing")


def test_an_altered_byte(bundle: Path) -> None:
    (bundle / "sub" / "words.txt").write_text("hallo")
    refused(bundle, "words.txt was altered", "sha256")
    read_bundle(bundle, check_hashes=False)


def test_a_truncated_file_is_noticed_without_hashing(bundle: Path) -> None:
    (bundle / "sub" / "words.txt").write_text("hell")
    refused(bundle, "words.txt has 4 bytes where the manifest says 5", check_hashes=False)


@pytest.mark.parametrize("name", ["extra.bin", "sub/extra.bin", ".hidden"])
def test_an_extra_file(bundle: Path, name: str) -> None:
    (bundle / name).write_text("")
    refused(bundle, name, "does not list")


def test_a_file_that_is_a_link(bundle: Path, tmp_path: Path) -> None:
    shutil.copy(bundle / "sub" / "words.txt", tmp_path / "outside")
    (bundle / "sub" / "words.txt").unlink()
    (bundle / "sub" / "words.txt").symlink_to(tmp_path / "outside")
    refused(bundle, "words.txt is a symbolic link")


def test_a_directory_that_is_a_link(bundle: Path, tmp_path: Path) -> None:
    shutil.move(bundle / "sub", tmp_path / "sub")
    (bundle / "sub").symlink_to(tmp_path / "sub")
    refused(bundle, "does not list: sub")


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "sub/../../outside", "..\\outside"])
def test_a_file_name_that_leads_out(bundle: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").write_text("")
    change(bundle, lambda data: data["files"].update({name: {"size": 0, "sha256": ""}}))
    refused(bundle, name, "leads out of the bundle")


def test_a_graph_file_that_is_not_listed(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "evil.onnx").write_text("")
    change(bundle, lambda data: data["graphs"][0].update(file="../evil.onnx"))
    refused(bundle, "../evil.onnx", "does not list")


@pytest.mark.parametrize("version", [0, 1, 2, 3, 5, "4", None])
def test_another_format_version(bundle: Path, version: Any) -> None:
    change(bundle, lambda data: data.update(format_version=version))
    refused(bundle, f"format version {version}", "reads 4", "export it again")


@pytest.mark.parametrize(
    "edit",
    [
        lambda data: data.update(extra=1),
        lambda data: data["graphs"][0].update(extra=1),
        lambda data: data["models"]["target"].update(extra=1),
        lambda data: data["files"]["target.onnx"].update(extra=1),
    ],
    ids=["manifest", "graph", "model", "file"],
)
def test_an_unknown_key(bundle: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    change(bundle, edit)
    refused(bundle, MANIFEST, "extra")


@pytest.mark.parametrize("key", [k for k in json.loads(GOLDEN) if k != "format_version"])
def test_a_missing_key_or_a_value_of_another_shape(bundle: Path, key: str) -> None:
    original = (bundle / MANIFEST).read_text()
    change(bundle, lambda data: data.pop(key))
    refused(bundle, MANIFEST, key)
    if key in ("created_by", "compressor"):
        return
    for wrong in (7, "x", [3]):
        (bundle / MANIFEST).write_text(original)
        change(bundle, lambda data, wrong=wrong: data.update({key: wrong}))  # type: ignore[misc]
        refused(bundle, MANIFEST)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '"x"', "\ufeff"])
def test_a_manifest_that_is_none(bundle: Path, text: str) -> None:
    (bundle / MANIFEST).write_text(text, encoding="utf-8")
    refused(bundle, MANIFEST)


def test_a_manifest_that_is_not_utf8(bundle: Path) -> None:
    (bundle / MANIFEST).write_bytes(b"\xff\xfe\x00")
    refused(bundle, MANIFEST)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(bundle: Path) -> None:
    (bundle / "sub" / "words.txt").chmod(0)
    refused(bundle, "words.txt cannot be read")


# Writing, as far as it needs no checkpoint (the rest is in test_export.py)


def test_a_writer_without_a_manifest_is_a_bug(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="without its manifest"):
        with write_bundle(tmp_path / "b"):
            pass
    assert list(tmp_path.iterdir()) == []


def test_overwriting_replaces_every_file(bundle: Path) -> None:
    (bundle / "left over").write_text("")
    with pytest.raises(InputError, match="already exists"):
        write(bundle)
    write(bundle, overwrite=True)
    read_bundle(bundle)
    assert [p.name for p in bundle.parent.iterdir()] == ["b"]


def test_names_with_pattern_characters(tmp_path: Path) -> None:
    other = tmp_path / ".x.partial-other"
    other.mkdir()
    write(tmp_path / "[x]")
    write(tmp_path / "*")
    assert other.is_dir() and (tmp_path / "[x]" / MANIFEST).is_file()


def test_a_link_to_a_bundle_is_followed(bundle: Path) -> None:
    link = bundle.parent / "link"
    link.symlink_to(bundle)
    read_bundle(link)
    write(link, overwrite=True)
    assert link.is_symlink() and read_bundle(link).manifest.created_by == "edgespec 0"
