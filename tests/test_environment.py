"""``edgespec env``: what is read of recorded machines, and of this one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgespec.cli import main
from edgespec_runtime.environment.block import as_block
from edgespec_runtime.environment.elf import Kernels, kernels, needed
from edgespec_runtime.environment.facts import facts_of
from edgespec_runtime.environment.place import Place
from tests.support.machines import Machine, agx_orin, library, orin_nano, pc, thor


def test_orin_nano_with_jetpack_6(tmp_path: Path) -> None:
    facts = facts_of(orin_nano(tmp_path).place)
    assert facts.jetson is not None and facts.gpu is not None
    assert (facts.jetson.l4t, facts.jetson.jetpack) == ("R36.4.3", "6.2")
    assert facts.jetson.power_mode == "25W" and facts.jetson.fastest_mode == 2
    assert facts.gpu.compute_capability == "8.7" and facts.gpu.driver == "540.4.0"
    assert facts.tensorrt.library == "10.3.0.30" and facts.tensorrt.module == "10.3.0"
    assert (facts.cuda.toolkit, facts.cuda.cudnn, facts.cuda.bindings) == ("12.6.68", "9.3.0", "")
    assert facts.onnxruntime.builds == {} and facts.onnxruntime.providers == ()
    assert facts.device == "jetson-orin-nano" and facts.memory.total_mb == 7620
    assert [swap.compressed for swap in facts.memory.swaps] == [True, True]
    assert facts.packages == {"numpy": "2.2.6", "onnxruntime": ""}
    assert not any(clock.locked for clock in facts.clocks) and len(facts.clocks) == 2


def test_agx_orin_is_told_from_the_nano_by_its_memory(tmp_path: Path) -> None:
    facts = facts_of(agx_orin(tmp_path).place)
    assert facts.device == "jetson-agx-orin" and facts.cuda.bindings == "12.9.10"
    assert all(clock.locked for clock in facts.clocks)


def test_thor_with_jetpack_7_known_by_its_jetson_linux(tmp_path: Path) -> None:
    facts = facts_of(thor(tmp_path).place)
    assert facts.jetson is not None and facts.gpu is not None
    assert (facts.jetson.l4t, facts.jetson.jetpack) == ("R39.2.0", "7.2")
    assert facts.jetson.generation == 7 and facts.gpu.compute_capability == "11.0"
    assert facts.tensorrt.library == "10.16.2.10" and facts.device == "jetson-thor"
    assert facts.system.processor == "Neoverse-V3AE" and facts.system.cores == 14


@pytest.mark.parametrize(
    ("release", "jetpack"),
    [
        ("# R36 (release), REVISION: 4.0", "6.1"),
        ("# R36 (release), REVISION: 4.4", "6.2.1"),
        ("# R36 (release), REVISION: 5.0", "6.2.2"),
        ("# R36 (release), REVISION: 4.7", ""),
        ("# R38 (release), REVISION: 2.1", "7.0"),
        ("# R39 (release), REVISION: 2.1", "7.2.1"),
        ("# R40 (release), REVISION: 0.0", ""),
    ],
)
def test_jetpack_by_jetson_linux_where_its_package_is_missing(
    release: str, jetpack: str, tmp_path: Path
) -> None:
    machine = orin_nano(tmp_path)
    machine.debs({})
    machine.write("etc/nv_tegra_release", f"{release}, GCID: 1\n")
    jetson = facts_of(machine.place).jetson
    assert jetson is not None and jetson.jetpack == jetpack


def test_a_pc_with_and_without_a_gpu(tmp_path: Path) -> None:
    facts = facts_of(pc(tmp_path / "with", gpu=True).place)
    assert facts.gpu is not None and facts.gpu.name == "NVIDIA GeForce RTX 3090"
    assert facts.gpu.driver == "550.120" and facts.gpu.compute_capability == ""
    assert facts.jetson is None and facts.device == ""
    without = facts_of(pc(tmp_path / "without", gpu=False).place)
    assert without.gpu is None and without.tensorrt.library == ""
    assert without.onnxruntime.providers == ("CPUExecutionProvider",)
    assert (without.system.model, without.system.cores) == ("Gigabyte B550", 16)


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    facts = facts_of(Machine(tmp_path).place)
    assert facts.gpu is None and facts.jetson is None and facts.memory.total_mb == 0
    assert "gpu" in as_block(facts)


def test_a_virtual_environment_without_system_packages_sees_no_tensorrt(tmp_path: Path) -> None:
    facts = facts_of(orin_nano(tmp_path, sees_system=False).place)
    assert facts.python.virtual and not facts.python.sees_system
    assert facts.tensorrt.module == "" and facts.tensorrt.elsewhere


def test_the_cuda_provider_says_what_it_needs_and_is_compiled_for(tmp_path: Path) -> None:
    machine = orin_nano(tmp_path)
    needs = ("libcublas.so.12", "libcudnn.so.9", "libcurand.so.10", "libcuda.so.1", "libc.so.6")
    machine.onnxruntime("onnxruntime-gpu", "1.24.0", library(needs, code=(80, 87)))
    ort = facts_of(machine.place).onnxruntime
    assert ort.providers == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert ort.missing == ("libcurand.so.10",)
    assert ort.kernels == Kernels(frozenset({80, 87}), frozenset())


def test_what_a_library_needs(tmp_path: Path) -> None:
    path = tmp_path / "library.so"
    path.write_bytes(library(("libone.so.1", "libtwo.so")))
    assert needed(path) == ("libone.so.1", "libtwo.so")
    assert kernels(path) == Kernels(frozenset(), frozenset())
    for content in (b"", b"not a library", library(("libone.so.1",))[:200]):
        path.write_bytes(content)
        assert needed(path) == () and kernels(path).machine_code == frozenset()
    assert needed(tmp_path / "absent.so") == ()


def test_a_real_library_needs_the_c_library() -> None:
    import onnxruntime

    folder = Path(onnxruntime.__file__).parent / "capi"
    (real,) = folder.glob("onnxruntime_pybind11_state*.so")
    assert "libc.so.6" in needed(real)


@pytest.mark.parametrize(
    ("code", "portable", "capability", "runs"),
    [
        ((87,), (), "8.7", True),
        ((80,), (), "8.7", True),
        ((89, 90, 120, 121), (), "8.7", False),
        ((89, 90, 120, 121), (), "11.0", False),
        ((90,), (90,), "11.0", True),
        ((), (89,), "8.7", False),
    ],
)
def test_which_gpus_run_machine_code(
    code: tuple[int, ...], portable: tuple[int, ...], capability: str, runs: bool
) -> None:
    """The third and fourth rows are the onnxruntime-gpu 1.31.1 of the public index for aarch64."""
    assert Kernels(frozenset(code), frozenset(portable)).run_on(capability) is runs


def test_the_block_names_every_subject(tmp_path: Path) -> None:
    lines = as_block(facts_of(orin_nano(tmp_path).place)).splitlines()
    subjects = [line.split("  ")[0] for line in lines]
    assert {"edgespec", "python", "system", "device", "jetpack", "gpu", "cuda", "tensorrt"} <= set(
        subjects
    )
    assert {"onnxruntime", "memory", "swap", "power mode", "clock gpu", "packages"} <= set(subjects)
    assert max(map(len, lines)) < 120
    assert "jetpack       6.2 (Jetson Linux R36.4.3)" in lines


def test_this_machine_as_text_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env"]) == 0
    assert "onnxruntime" in capsys.readouterr().out
    assert main(["env", "--json"]) == 0
    out, err = capsys.readouterr()
    value = json.loads(out)
    assert err == "" and set(value) == {
        "edgespec", "python", "system", "device", "jetson", "gpu", "cuda", "tensorrt",
        "onnxruntime", "memory", "clocks", "governor", "packages",
    }  # fmt: skip
    import onnxruntime

    assert value["onnxruntime"]["builds"] == {"onnxruntime": onnxruntime.__version__}
    assert value["packages"].get("numpy") or not value["packages"]


def test_a_recorded_machine_is_not_asked_what_it_cannot_tell(tmp_path: Path) -> None:
    place = orin_nano(tmp_path).place
    assert not place.live and replace(place, root=Path("/")).live
    assert Place.here().live and Place.here().sites
