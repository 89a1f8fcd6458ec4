"""Device files, the profiles estimated from them, and how a user names either."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from edgespec.bundle import Bundle, read_bundle
from edgespec.errors import ConfigError
from edgespec.latency import (
    Curve,
    Datasheet,
    DeviceProfile,
    bundle_facts,
    card_of,
    check_fits,
    device_files,
    estimate_note,
    estimate_profile,
    load_estimate,
    profile_for,
    save_profile,
)
from edgespec.latency.geometry import load_geometry
from tests.support.profiles import profile

DEVICES = (
    "generic-cpu",
    "jetson-agx-orin",
    "jetson-orin-nano",
    "jetson-orin-nx",
    "jetson-thor",
    "nvidia-a100",
    "nvidia-l4",
)
GROWING = ("jetson-orin-nano", "jetson-orin-nx", "jetson-agx-orin", "jetson-thor")


@pytest.fixture(scope="module")
def bundle(builtin_bundle: Path) -> Bundle:
    return read_bundle(builtin_bundle)


def sheet(name: str) -> Datasheet:
    return load_estimate(device_files()[name])


def curves(given: DeviceProfile) -> dict[str, Curve]:
    return {name: item for name, item in vars(given.costs).items() if isinstance(item, Curve)}


def test_devices_that_come_with_edgespec() -> None:
    assert tuple(sorted(device_files())) == DEVICES


def test_a_device_answers_to_shorter_names(bundle: Bundle) -> None:
    """No two devices to the same, none to another's own."""
    names = [*DEVICES, *(alias for name in DEVICES for alias in sheet(name).aliases)]
    assert len(set(names)) == len(names)
    for short, name in (("orin-nano", "jetson-orin-nano"), ("thor", "jetson-thor")):
        one, other = profile_for(short, bundle), profile_for(name, bundle)
        assert one == replace(other, created=one.created)  # the clock may go on between them
    assert profile_for("orin-nano:15W", bundle).device.power_mode == "15W"
    with pytest.raises(ConfigError, match="Did you mean agx-orin"):
        profile_for("agx-orrin", bundle)


def test_every_gpu_has_a_compute_capability_and_every_jetson_its_releases() -> None:
    capabilities = {name: sheet(name).compute_capability for name in DEVICES}
    assert capabilities == {
        "generic-cpu": "",
        "jetson-agx-orin": "8.7",
        "jetson-orin-nano": "8.7",
        "jetson-orin-nx": "8.7",
        "jetson-thor": "11.0",
        "nvidia-a100": "8.0",
        "nvidia-l4": "8.9",
    }
    for name in GROWING:
        assert sheet(name).software and set(sheet(name).precisions) >= {"fp16", "int4"}


@pytest.mark.parametrize("name", DEVICES)
def test_every_device_file_loads_and_names_its_sources_and_assumptions(name: str) -> None:
    found = sheet(name)
    assert found.name == name
    assert found.sources and found.assumptions
    assert found.usable_mb < found.memory_mb
    text = device_files()[name].read_text(encoding="utf-8")
    for number, _ in enumerate(found.sources, start=1):
        assert text.count(f"[{number}]") > 1  # a source that no figure rests on is no source


@pytest.mark.parametrize("name", DEVICES)
def test_an_estimate_has_every_cost_of_the_bundle(name: str, bundle: Bundle) -> None:
    given = estimate_profile(sheet(name), bundle)
    assert given.kind == "estimate" and not given.card.measured and given.noise == 1
    assert len(curves(given)) == 9
    chain = bundle.manifest.graph("draft_chain")
    assert chain is not None and given.costs.chain_steps == chain.meta["steps"]
    assert given.memory.target_mb > given.memory.draft_mb > 0
    check_fits(given, bundle=bundle_facts(bundle))


def test_a_bundle_without_a_draft_has_no_costs_of_one(bundle: Bundle) -> None:
    manifest = bundle.manifest
    graphs = tuple(g for g in manifest.graphs if g.role in ("vision", "projector", "target"))
    models = {"target": manifest.models["target"]}
    alone = replace(bundle, manifest=replace(manifest, graphs=graphs, models=models))
    alone = replace(alone, manifest=replace(alone.manifest, compressor=None))
    given = estimate_profile(sheet("generic-cpu"), alone)
    assert set(curves(given)) == {"vision", "prefill", "verify"}
    assert (given.costs.chain_steps, given.costs.commit_ms) == (0, 0)
    assert (given.memory.draft_mb, given.memory.draft_kv_bytes) == (0, 0)
    assert (given.bundle.draft, given.bundle.variant, given.bundle.compressor) == (
        None,
        None,
        "none",
    )


@pytest.mark.parametrize("name", DEVICES)
def test_more_rows_and_more_context_never_cost_less(name: str, bundle: Bundle) -> None:
    for found in curves(estimate_profile(sheet(name), bundle)).values():
        table = np.asarray(found.median_ms)
        assert (np.diff(table, axis=0) >= 0).all()
        assert (np.diff(table, axis=1) >= 0).all()
        assert table.min() > 0


def test_a_larger_device_is_never_slower(bundle: Bundle) -> None:
    estimates = [curves(estimate_profile(sheet(name), bundle)) for name in GROWING]
    for small, large in zip(estimates, estimates[1:], strict=False):
        for name in small:
            slow, fast = (np.asarray(one[name].median_ms) for one in (small, large))
            assert (fast <= slow).all(), name
        assert large["prefill"].at(512) < small["prefill"].at(512)


def test_more_power_is_never_slower(bundle: Bundle) -> None:
    nano = sheet("jetson-orin-nano")
    times = [
        estimate_profile(nano, bundle, mode.name).costs.verify.at(64, 512) for mode in nano.modes
    ]
    assert times == sorted(times, reverse=True) and times[0] > times[-1]


def test_on_a_gpu_a_started_tile_costs_as_much_as_a_full_one(bundle: Bundle) -> None:
    nano = sheet("jetson-orin-nano")
    row = estimate_profile(nano, bundle).costs.verify.row(0, 128)
    edges = range(nano.tile["fp32"], 128, nano.tile["fp32"])
    steps = [row[edge + 1] - row[edge] for edge in edges]
    within = [row[edge] - row[edge - 7] for edge in edges]
    assert max(steps) > 0
    assert sum(steps) > 10 * sum(within)


def test_where_memory_is_the_limit_rows_cost_nothing(bundle: Bundle) -> None:
    """An arithmetic rate without end leaves the weights to be read and the calls to be made."""
    agx = sheet("jetson-agx-orin")
    rates = {"fp32": 1e12}
    modes = tuple(replace(mode, gflops=rates) for mode in agx.modes)
    fast = replace(agx, modes=modes, tile={"fp32": 8})
    given = estimate_profile(fast, bundle)
    assert given.costs.verify.at(64) == pytest.approx(given.costs.verify.at(1))
    read = given.card.floor_ms("target", 1) / agx.achieved.bandwidth
    wait = agx.overhead.call_ms + 12 * agx.overhead.layer_ms
    assert given.costs.verify.at(1) == pytest.approx(read + wait)


def test_without_overlap_reading_and_computing_add_up(bundle: Bundle) -> None:
    cpu = sheet("generic-cpu")
    added = estimate_profile(cpu, bundle).costs.verify.at(16)
    longer = estimate_profile(replace(cpu, overlap=True), bundle).costs.verify.at(16)
    assert longer < added < 2 * longer


def test_no_estimate_is_faster_than_the_floor_of_its_card(bundle: Bundle) -> None:
    for name in DEVICES:
        given = estimate_profile(sheet(name), bundle)
        for rows in (1, 8, 33, 100):
            assert given.costs.verify.at(rows, 512) > given.card.floor_ms("target", rows, 512)


def test_a_bundle_that_does_not_fit_into_memory_is_refused(bundle: Bundle) -> None:
    tiny = replace(sheet("jetson-orin-nano"), usable_mb=720)
    with pytest.raises(ConfigError, match="needs 747 MB with its weights, .* about 720 MB to give"):
        estimate_profile(tiny, bundle)


def test_a_precision_without_a_rate_is_refused(bundle: Bundle) -> None:
    nano = sheet("jetson-orin-nano")
    modes = tuple(replace(m, gflops={"fp16": m.gflops["fp16"]}) for m in nano.modes)
    half = replace(nano, modes=modes, tile={"fp16": 16})
    with pytest.raises(ConfigError, match=r"no arithmetic rate for precision 'fp32' .* are: fp16"):
        estimate_profile(half, bundle)


def test_a_device_is_found_by_its_bare_name(bundle: Bundle) -> None:
    given = profile_for("jetson-orin-nano", bundle)
    assert given.device.name == "jetson-orin-nano"
    assert given.device.power_mode == "MAXN_SUPER"
    assert profile_for("jetson-orin-nano:15w", bundle).device.power_mode == "15W"


def test_a_device_file_of_ones_own_is_as_good(bundle: Bundle, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_bytes(device_files()["jetson-thor"].read_bytes())
    for given in (own, str(own), f"{own}:MAXN"):
        assert profile_for(given, bundle).device.power_mode == "MAXN"


def test_a_profile_file_is_taken_as_it_is(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "board.yaml"
    save_profile(profile(), path)
    assert profile_for(path, bundle) == profile()
    with pytest.raises(ConfigError, match="is no device file, so it has no power mode '15W'"):
        profile_for(f"{path}:15W", bundle)


def test_a_saved_estimate_comes_back_as_an_estimate(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "nano.yaml"
    save_profile(profile_for("jetson-orin-nano", bundle), path)
    back = profile_for(path, bundle)
    assert back.kind == "estimate"
    assert any(text.startswith("assumption: ") for text in back.sources)


def test_an_estimate_says_that_it_is_one(bundle: Bundle) -> None:
    note = estimate_note(profile_for("jetson-orin-nx", bundle))
    assert "jetson-orin-nx in power mode MAXN_SUPER are estimates" in note
    assert "nothing was measured" in note
    assert estimate_note(profile()) == ""


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            "jetson-orin-nanno",
            r"devices: generic-cpu, .*nvidia-l4\. Did you mean jetson-orin-nan",
        ),
        ("qqq", r"neither a profile file nor a known device; devices: generic-cpu.*edgespec prof"),
        ("jetson-thor:15W", r"no power mode '15W'; there are: MAXN"),
        ("missing.yaml", r"profile 'missing\.yaml' cannot be read"),
        ("no/such/folder", r"cannot be read"),
    ],
)
def test_what_stands_for_no_profile_is_refused(given: str, said: str, bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match=said):
        profile_for(given, bundle)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "measured"}, "kind is 'measured', not 'datasheet'"),
        ({"version": 7}, "version 7, this edgespec reads 1"),
        ({"default_mode": "5W"}, "default_mode '5W' is none of 7W, 15W, 25W, MAXN_SUPER"),
        ({"modes": []}, "default_mode 'MAXN_SUPER' is none of"),
        ({"tile": {"fp32": 8}}, "mode 7W needs a bandwidth, and a rate and a tile"),
        ({"tile": {"fp32": 0, "fp16": 16}}, "mode 7W needs a bandwidth"),
        ({"achieved": {"bandwidth": 1.5, "rate": 0.5}}, r"achieved: bandwidth is 1\.5"),
        ({"tiles": {}}, "unknown key 'tiles'; did you mean tile"),
        ({"cores": -1}, "cores is -1"),
        ({"compute_capability": "sm87"}, "not as in '8.7'"),
        ({"compute_capability": ""}, "come together or not at all"),
        ({"precisions": ["fp16", "fp3"]}, r"precisions is \['fp3'\]"),
    ],
)
def test_a_damaged_device_file_is_refused(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    values = yaml.safe_load(device_files()["jetson-orin-nano"].read_text(encoding="utf-8"))
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({**values, **change}), encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        load_estimate(path)


def test_models_by_their_sizes_weigh_what_they_are_known_to() -> None:
    """LLaVA-1.5-7B: 6.74 G parameters of Vicuna, an embedding table of 131 M that is only looked
    up; a draft of 160 M with as small a table."""
    bundle = load_geometry("llava-1.5-7b").as_bundle()
    card = card_of(bundle, 100.0, 1000.0, measured=False)

    def parameters(role: str) -> float:
        graph = card.graph(role)
        assert graph is not None
        return graph.weight_bytes / 2

    assert parameters("target") == pytest.approx(6.74e9 - 131e6, rel=0.005)
    assert parameters("draft") == pytest.approx(162e6 - 25e6, rel=0.02)
    assert parameters("vision") == pytest.approx(304e6 * 23 / 24, rel=0.05)
    assert parameters("draft_chain") == parameters("draft")


def test_a_device_that_only_drafts_needs_no_room_for_the_target() -> None:
    bundle = load_geometry("llava-1.5-7b").as_bundle()
    with pytest.raises(ConfigError, match="about 5,300 MB"):
        estimate_profile(sheet("jetson-orin-nano"), bundle)
    found = estimate_profile(sheet("jetson-orin-nano"), bundle, target_here=False)
    assert found.memory.target_mb == 0 and 700 < found.memory.draft_mb < 1000
