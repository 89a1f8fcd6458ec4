"""Engines beside a bundle: what is written is read back, and what does not fit is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from edgespec.bundle import Bundle, FileEntry, file_sha256, read_bundle
from edgespec.engines import (
    INDEX,
    BuiltEngines,
    Plan,
    Profile,
    Span,
    check_runs_here,
    read_engines,
    write_index,
)
from edgespec.errors import BundleError, EngineError, InputError
from edgespec.flavour import Flavour
from edgespec_export.exporter import ExportRequest, export_bundle
from edgespec_export.tensorrt.folder import Workshop, sole_builder
from tests.support.tiny import write_tiny

TAG = "tensorrt-10.3.0-sm87-native-fp32"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    target = write_tiny(folder / "target")
    out = folder / "tiny.bundle"
    export_bundle(ExportRequest(target=str(target), out=out, flavours=(Flavour("native"),)))
    return out


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Bundle:
    shutil.copytree(exported, tmp_path / "b")
    return read_bundle(tmp_path / "b")


def engines(bundle: Bundle, **changes: object) -> BuiltEngines:
    blank = BuiltEngines(
        folder=bundle.path / "engines" / TAG,
        library="tensorrt",
        version="10.3.0",
        compute_capabilities=("8.7",),
        device="Orin",
        l4t="R36.4.0",
        flavour="native:fp32",
        context=96,
        capacity=128,
        prefill_rows=64,
        max_rows=16,
        profiles=("prefill", "tree"),
        flags=(),
        plans=(),
    )
    return replace(blank, **changes)  # type: ignore[arg-type]


def plan(bundle: Bundle, role: str) -> Plan:
    files = (f"{role}.onnx", f"{role}.bin")
    digests = {name: bundle.manifest.files[name].sha256 for name in files}
    spans = {"inputs_embeds": Span((1, 1, 64), (1, 8, 64), (1, 16, 64))}
    return Plan(role, f"{role}.plan", 0, "", digests, (Profile("tree", spans),), False)


def add(workshop: Workshop, made: Plan, content: str) -> None:
    workshop.draft(made.file).write_text(content)
    workshop.add(made)


def built(bundle: Bundle, *roles: str, **changes: object) -> BuiltEngines:
    """Engines of those roles, as a build would leave them."""
    workshop = Workshop(bundle, engines(bundle, **changes))
    workshop.take_over(overwrite=False)
    for role in roles:
        if all(made.role != role for made in workshop.plans):
            add(workshop, plan(bundle, role), f"plan of {role}")
    return workshop.publish()


def test_engines_are_read_back_as_they_were_built(bundle: Bundle) -> None:
    assert read_engines(bundle) == ()
    made = built(bundle, "target", "vision")
    (found,) = read_engines(read_bundle(bundle.path))
    assert found == made
    assert found.tag == TAG and found.path("target").read_bytes() == b"plan of target"
    assert found.plan("target") is not None and found.plan("draft") is None
    with pytest.raises(EngineError, match="no engine of graph 'draft'; run: edgespec build"):
        found.path("draft")


def test_a_plan_of_another_graph_is_refused(bundle: Bundle) -> None:
    """The weights count as much as the operators: same ONNX file, other weights."""
    built(bundle, "target")
    (bundle.path / "target.bin").write_bytes(b"other weights")
    size, digest = 13, file_sha256(bundle.path / "target.bin")
    files = {**bundle.manifest.files, "target.bin": FileEntry(size, digest)}
    other = Bundle(bundle.path, replace(bundle.manifest, files=files))
    with pytest.raises(BundleError, match="built from another graph 'target'.*edgespec build"):
        read_engines(other)


@pytest.mark.parametrize("change", ["content", "length", "gone", "link"])
def test_a_plan_that_was_altered_is_refused(bundle: Bundle, change: str) -> None:
    path = built(bundle, "target").path("target")
    content = path.read_bytes()
    if change == "content":
        path.write_bytes(content.upper())
    elif change == "length":
        path.write_bytes(content + b"!")
    else:
        path.unlink()
    if change == "link":
        elsewhere = bundle.path.parent / "elsewhere"
        elsewhere.write_bytes(content)
        path.symlink_to(elsewhere)
    words = "was altered" if change in ("content", "length") else "is missing or no plain file"
    with pytest.raises(BundleError, match=words):
        read_engines(bundle)


def test_hashes_are_checked_only_when_asked_for(bundle: Bundle) -> None:
    path = built(bundle, "target").path("target")
    path.write_bytes(path.read_bytes().upper())
    assert read_engines(bundle, check_hashes=False)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("format_version", 99, "format version 99"),
        ("cuda", "12.6", "unknown keys: cuda"),
        ("plans", [{"role": "target"}], "cannot be read"),
        ("plans", None, "cannot be read"),
    ],
)
def test_an_index_of_another_shape_is_refused(
    bundle: Bundle, key: str, value: object, words: str
) -> None:
    index = built(bundle, "target").folder / INDEX
    index.write_text(json.dumps({**json.loads(index.read_text()), key: value}))
    with pytest.raises(BundleError, match=words):
        read_engines(bundle)


def test_a_bundle_holds_engines_but_no_link_to_any(bundle: Bundle, tmp_path: Path) -> None:
    built(bundle, "target")
    assert read_bundle(bundle.path).manifest == bundle.manifest
    (bundle.path / "engines").rename(tmp_path / "engines")
    (bundle.path / "engines").symlink_to(tmp_path / "engines")
    with pytest.raises(BundleError, match="does not list: engines"):
        read_bundle(bundle.path)
    with pytest.raises(BundleError, match="symbolic link"):
        read_engines(bundle)


@pytest.mark.parametrize(
    ("library", "version", "capability"),
    [
        ("tensorrt", "10.3.1", "8.7"),
        ("tensorrt", "10.3.0", "8.6"),
        ("tensorrt_rtx", "10.3.0", "8.7"),
    ],
)
def test_engines_are_refused_elsewhere_with_the_command_that_rebuilds(
    bundle: Bundle, library: str, version: str, capability: str
) -> None:
    made = engines(bundle)
    check_runs_here(made, "tensorrt", "10.3.0", "8.7")
    with pytest.raises(EngineError) as refused:
        check_runs_here(made, library, version, capability)
    text = str(refused.value)
    assert "TensorRT 10.3.0 on 8.7 (Jetson Linux R36.4.0)" in text and capability in text
    assert f"edgespec build --bundle {bundle.path} --flavour native:fp32" in text
    assert "--context 96 --max-rows 16 --prefill-rows 64 --profiles prefill,tree" in text


def test_the_rebuild_command_is_one(bundle: Bundle) -> None:
    from edgespec.cli import build_parser

    made = engines(bundle, flags=("strip", "version-compatible"))
    words = made.rebuild_command().split()
    asked = build_parser()[0].parse_args(words[1:])
    assert (asked.context, asked.max_rows, asked.prefill_rows) == (96, 16, 64)
    assert asked.strip and asked.version_compatible and not asked.refit and asked.overwrite


def test_version_compatible_engines_run_under_newer_ones_of_their_major_version(
    bundle: Bundle,
) -> None:
    made = engines(bundle, flags=("version-compatible",))
    check_runs_here(made, "tensorrt", "10.13.3", "8.7")
    for version in ("10.2.0", "11.0.0"):
        with pytest.raises(EngineError, match="were built for"):
            check_runs_here(made, "tensorrt", version, "8.7")


def test_an_interrupted_build_goes_on_where_it_stopped(bundle: Bundle) -> None:
    first = Workshop(bundle, engines(bundle))
    first.take_over(overwrite=False)
    add(first, plan(bundle, "vision"), "built before the end")
    (first.folder / "target.plan.partial").write_bytes(b"half")
    assert read_engines(bundle) == ()  # nothing appears under the final name

    second = Workshop(bundle, engines(bundle))
    second.take_over(overwrite=False)
    assert [made.role for made in second.plans] == ["vision"]
    add(second, plan(bundle, "target"), "built after")
    second.publish()
    (found,) = read_engines(bundle)
    assert found.path("vision").read_bytes() == b"built before the end"
    assert sorted(p.name for p in found.folder.iterdir()) == [
        "engines.json", "target.plan", "vision.plan",
    ]  # fmt: skip


def test_plans_are_built_again_for_other_graphs_options_or_on_demand(bundle: Bundle) -> None:
    built(bundle, "vision")
    other = Workshop(bundle, engines(bundle, context=64))
    with pytest.raises(InputError, match="other options: --context 96 .*--overwrite"):
        other.take_over(overwrite=False)
    other.take_over(overwrite=True)
    assert other.plans == ()
    (bundle.path / "engines" / TAG / "vision.plan").write_bytes(b"damaged")
    again = Workshop(bundle, engines(bundle))
    again.take_over(overwrite=False)
    assert again.plans == ()


def test_a_build_killed_between_its_two_renames_loses_nothing(bundle: Bundle) -> None:
    made = built(bundle, "vision")
    made.folder.rename(made.folder.with_name(f".{TAG}.old"))
    again = Workshop(bundle, engines(bundle))
    again.take_over(overwrite=False)
    assert [kept.role for kept in again.plans] == ["vision"]
    assert again.publish() == made and read_engines(bundle) == (made,)


def test_two_builds_do_not_meet(bundle: Bundle) -> None:
    folder = engines(bundle).folder
    with sole_builder(bundle, folder):
        with pytest.raises(InputError, match="another `edgespec build` is at work"):
            with sole_builder(bundle, folder):
                pass
    with sole_builder(bundle, folder):
        pass


def test_the_index_says_nothing_of_where_it_lies(bundle: Bundle, tmp_path: Path) -> None:
    """A bundle may be moved with its engines."""
    write_index(engines(bundle), tmp_path)
    assert str(bundle.path) not in (tmp_path / INDEX).read_text()
