"""`edgespec build` keeps to what each TensorRT has, from 10.3 to 11.4, as their bindings tell."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgespec.bundle import GraphSpec, TensorSpec, read_bundle
from edgespec.errors import BundleError, ConfigError, EngineError, InputError
from edgespec.flavour import Flavour
from edgespec_export.exporter import ExportRequest, export_bundle
from edgespec_export.tensorrt.build import check_memory, choose_flavour, suitable_profiles
from edgespec_export.tensorrt.graph import Source, read_source
from edgespec_export.tensorrt.network import (
    FLAGS,
    NATIVE_FROM,
    Settings,
    build_plan,
    check_settings,
    network_flags,
)
from edgespec_export.tensorrt.shapes import profiles_of, sizes_of, static_axes
from tests.support.tensorrt_recorded import PLAN, VERSIONS, enumeration, recorded
from tests.support.tiny import write_tiny


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("versions")
    target = write_tiny(folder / "target")
    export_bundle(
        ExportRequest(target=str(target), out=folder / "b", flavours=(Flavour("native"),))
    )
    return folder / "b"


@pytest.fixture(scope="module")
def source(bundle: Path) -> Source:
    found = read_bundle(bundle)
    graph = found.manifest.graph("target")
    assert graph
    return read_source(found, graph, static_axes(graph, sizes_of(found.manifest)))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_build_asks_a_release_for_nothing_it_lacks(
    version: str, bundle: Path, source: Source, tmp_path: Path
) -> None:
    tensorrt = recorded(version)
    settings = Settings(flags=tuple(FLAGS), workspace_mb=512, timing_cache=tmp_path / "timings")
    check_settings(tensorrt, settings)
    sizes = sizes_of(read_bundle(bundle).manifest)
    with pytest.raises(EngineError, match="no input 'inputs_embeds'"):
        build_plan(tensorrt, source, profiles_of(source.spec, sizes), settings)
    plan, decomposed = build_plan(tensorrt, source, (), settings)
    assert plan == PLAN and not decomposed
    called = [name for name, _ in tensorrt.module.calls]
    assert called.count("IBuilderConfig.set_flag") == 2 * len(FLAGS)  # of both builds
    assert ("IBuilderConfig.set_memory_pool_limit", (0, 512 << 20)) in tensorrt.module.calls
    assert (tmp_path / "timings").read_bytes() == b"timings"


@pytest.mark.parametrize("version", VERSIONS)
def test_networks_are_strongly_typed_with_an_explicit_batch_while_that_is_a_flag(
    version: str,
) -> None:
    names = enumeration(version, "NetworkDefinitionCreationFlag")
    flags = network_flags(recorded(version).module)
    assert flags >> names.index("STRONGLY_TYPED") & 1
    batch = version.startswith("10.")
    assert ("EXPLICIT_BATCH" in names) is batch
    assert flags.bit_count() == (2 if batch else 1)


def test_what_the_record_says_of_the_releases() -> None:
    """The differences that the code was written around; a new record that has others shows here."""
    old = [v for v in VERSIONS if "FP16" in enumeration(v, "BuilderFlag")]
    assert old == [v for v in VERSIONS if v.startswith("10.")]
    caches = [v for v in VERSIONS if "KV_CACHE_UPDATE" in enumeration(v, "LayerType")]
    numbers = {v: tuple(int(n) for n in v.split(".")[:3]) for v in VERSIONS}
    assert caches == [v for v in VERSIONS if numbers[v] >= NATIVE_FROM]
    assert not any(enumeration(v, "ComputeCapability") for v in VERSIONS)
    for flag in FLAGS.values():
        assert all(flag in enumeration(v, "BuilderFlag") for v in VERSIONS)


def test_a_flag_or_a_capability_that_a_release_lacks_is_refused() -> None:
    tensorrt = recorded("10.3.0")
    with pytest.raises(ConfigError, match="builds for the GPU of this machine alone"):
        check_settings(tensorrt, Settings(compute_capabilities=("8.6",)))
    tensorrt.module.__dict__["BuilderFlag"] = object()
    with pytest.raises(ConfigError, match="--strip: tensorrt 10.3.0 has no such flag"):
        check_settings(tensorrt, Settings(flags=("strip",)))


def test_the_device_picks_the_lowering_that_its_tensorrt_has(bundle: Path) -> None:
    found = read_bundle(bundle)
    assert choose_flavour(found, recorded("10.15.1.29"), None) == Flavour("native")
    assert choose_flavour(found, recorded("11.4.0.106"), None) == Flavour("native")
    with pytest.raises(BundleError, match="only native:fp32; .*--lowering portable:fp16"):
        choose_flavour(found, recorded("10.3.0"), None)
    assert choose_flavour(found, recorded("10.3.0"), "native") == Flavour("native")
    with pytest.raises(ConfigError, match="ONNX Runtime's alone"):
        choose_flavour(found, recorded("10.3.0"), "ort")


def test_profiles_by_library() -> None:
    assert suitable_profiles(recorded("10.3.0")) == ("prefill", "tree", "single")


def test_sizes_have_limits(bundle: Path) -> None:
    manifest = read_bundle(bundle).manifest
    longest = 128  # of the tiny model
    sizes = sizes_of(manifest)
    assert (sizes.context, sizes.prefill_rows, sizes.max_rows) == (longest, longest, 128)
    assert sizes.capacity == longest + 2 * 128
    assert sizes_of(manifest, context=65, max_rows=1).capacity == 128  # whole blocks of 64
    for words, asked in (
        ("--context 129 is more", (129, None, None)),
        ("--max-rows 513 is too many", (None, None, 513)),
        ("--prefill-rows 65 is more", (64, 65, None)),
    ):
        with pytest.raises(InputError, match=words):
            sizes_of(manifest, *asked)
    with pytest.raises(ConfigError, match="single may be left out"):
        sizes_of(manifest, profiles=("tree", "single"))


def test_profiles_cover_prompts_trees_and_single_rows(bundle: Path) -> None:
    manifest = read_bundle(bundle).manifest
    graph = manifest.graph("target")
    assert graph
    sizes = sizes_of(manifest, context=100, prefill_rows=80, max_rows=20)
    prefill, tree, single = profiles_of(graph, sizes)
    assert [p.name for p in (prefill, tree, single)] == ["prefill", "tree", "single"]
    assert prefill.inputs["position_ids"].most == (1, 80)
    assert tree.inputs["position_ids"].least == (1, 1) and tree.inputs["position_ids"].most == (
        1,
        20,
    )
    assert single.inputs["position_ids"].most == (1, 1)
    assert prefill.inputs["logit_index"].best == (1,) and tree.inputs["logit_index"].most == (20,)
    for profile in (prefill, tree, single):
        rows = profile.inputs["tree_mask"]
        assert {s[3] for s in (rows.least, rows.best, rows.most)} == {sizes.capacity}
        assert profile.inputs["past_key.0"].least == profile.inputs["past_key.0"].most
    vision = manifest.graph("vision")
    assert vision and [p.name for p in profiles_of(vision, sizes)] == ["whole"]


def test_a_graph_with_an_unknown_axis_is_refused(bundle: Path) -> None:
    manifest = read_bundle(bundle).manifest
    strange = GraphSpec(
        "vision", "vision.onnx", "native", "fp32", (TensorSpec("x", "float32", ("Q",)),), ()
    )
    with pytest.raises(BundleError, match="input 'x' has an axis 'Q'"):
        profiles_of(strange, sizes_of(manifest))


def test_too_little_memory_is_said_before_anything_is_tried(source: Source, tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 8000000 kB\nMemAvailable:  4 kB\nSwapFree:  2 kB\n")
    with pytest.raises(EngineError, match="target.onnx takes about .* GB .*swap"):
        check_memory(source, meminfo)
    meminfo.write_text(f"MemAvailable: {3 * source.weight_bytes >> 10} kB\nSwapFree: 0 kB\n")
    check_memory(source, meminfo)
    check_memory(source, tmp_path / "none")
