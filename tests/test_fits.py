"""Which profile fits where: everything that differs is named, and what to do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgespec.bundle import read_bundle
from edgespec.errors import ConfigError
from edgespec.latency import BundleFacts, Device, EngineFacts, bundle_facts, check_fits
from tests.support.profiles import profile


def test_a_profile_fits_where_it_was_measured() -> None:
    given = profile()
    check_fits(given, bundle=given.bundle, device=given.device, engine=given.engine)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target": "0" * 64}, r"target was ffffffffffff\.\.\. and is 000000000000\.\.\. here"),
        ({"draft": None}, r"draft was dddddddddddd\.\.\. and is none here"),
        ({"variant": "vispec"}, "draft variant was vlm and is vispec here"),
        ({"compressor": "none"}, "compressor was pool:4 and is none here"),
        ({"lowering": "native"}, "lowering was ort and is native here"),
        ({"precision": "fp16"}, "precision was fp32 and is fp16 here"),
        ({"chain_steps": 12}, "steps of a chain call was 4 and is 12 here"),
    ],
)
def test_a_profile_of_another_bundle_is_refused(change: dict[str, Any], said: str) -> None:
    given = profile()
    for kind in ("measured", "estimate"):
        with pytest.raises(ConfigError, match=said):
            check_fits(replace(given, kind=kind), bundle=replace(given.bundle, **change))


def test_the_same_bundle_under_another_name_fits() -> None:
    given = profile()
    check_fits(given, bundle=replace(given.bundle, name="copy"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"power_mode": "25W"}, "power mode was 15W and is 25W here"),
        ({"cores": 4}, "number of cores was 6 and is 4 here"),
        ({"processor": "Cortex-A76"}, "processor was Cortex-A78AE and is Cortex-A76 here"),
        ({"accelerator": "tegra264"}, "accelerator was Ampere and is tegra264 here"),
    ],
)
def test_a_profile_of_another_device_is_refused(change: dict[str, Any], said: str) -> None:
    given = profile()
    with pytest.raises(ConfigError, match=said):
        check_fits(given, bundle=given.bundle, device=replace(given.device, **change))
    estimate = replace(given, kind="estimate")  # it is for a device that need not be this one
    check_fits(estimate, bundle=given.bundle, device=replace(given.device, **change))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": "1.33.0"}, r"engine version was 1\.32\.0 and is 1\.33\.0 here"),
        ({"threads": 2}, "number of threads was 6 and is 2 here"),
        ({"provider": "CUDAExecutionProvider"}, "execution provider was CPUExecutionProvider"),
        ({"name": "trt"}, "engine was ort and is trt here"),
    ],
)
def test_a_profile_of_another_engine_is_refused(change: dict[str, Any], said: str) -> None:
    given = profile()
    with pytest.raises(ConfigError, match=said):
        check_fits(given, bundle=given.bundle, engine=replace(given.engine, **change))


def test_a_patch_release_of_the_engine_and_unknown_facts_are_no_difference() -> None:
    given = profile()
    check_fits(
        given,
        bundle=given.bundle,
        device=Device("another name"),
        engine=EngineFacts("ort", "1.32.4", "CPUExecutionProvider", 6),
    )


def test_all_differences_are_named_at_once_with_the_command_that_helps() -> None:
    given = profile()
    with pytest.raises(ConfigError) as caught:
        check_fits(
            given,
            bundle=replace(given.bundle, name="new.bundle", target="0" * 64),
            device=replace(given.device, power_mode="7W"),
            engine=replace(given.engine, threads=1),
            path="board.yaml",
        )
    said = str(caught.value)
    assert said.startswith("profile 'board.yaml' (board, 2026-11-25T20:00:00Z) was measured for")
    assert said.index("target was") < said.index("power mode was") < said.index("threads was")
    assert said.endswith("edgespec profile --bundle new.bundle --out board.yaml")


def test_a_bundle_says_of_itself_what_a_profile_records(builtin_bundle: Path) -> None:
    bundle = read_bundle(builtin_bundle)
    models = bundle.manifest.models
    chain = bundle.manifest.graph("draft_chain")
    assert chain is not None
    assert bundle_facts(bundle) == BundleFacts(
        name=builtin_bundle.name,
        target=models["target"].fingerprint,
        draft=models["draft"].fingerprint,
        variant="vlm",
        compressor="pool:4",
        lowering="ort",
        precision="fp32",
        chain_steps=chain.meta["steps"],
    )
