"""``edgespec doctor``: each thing that can be wrong is found, with the commands that help."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgespec.bundle import ENGINES, read_bundle
from edgespec.cli import main
from edgespec.engines import BuiltEngines, Plan, write_index
from edgespec.latency import save_profile
from edgespec.nvidia import Gpu
from edgespec_runtime.environment.bundles import bundle_checks
from edgespec_runtime.environment.check import Check, as_lines, exit_code, ok, problem, warning
from edgespec_runtime.environment.doctor import machine_checks
from edgespec_runtime.environment.facts import Facts, facts_of
from tests.support.machines import Machine, agx_orin, library, orin_nano, pc, thor
from tests.support.profiles import profile

NEEDS = ("libcublas.so.12", "libcudart.so.12")


def found(machine: Machine | Facts) -> dict[str, Check]:
    facts = machine if isinstance(machine, Facts) else facts_of(machine.place)
    return {check.name: check for check in machine_checks(facts)}


def test_a_board_made_ready_has_nothing_to_complain_of(tmp_path: Path) -> None:
    checks = found(agx_orin(tmp_path))
    assert {check.result for check in checks.values()} == {"ok"}
    assert {"python", "gpu", "engine", "tensorrt", "cuda-python", "power mode", "clocks"} <= set(
        checks
    )


def test_a_board_as_flashed(tmp_path: Path) -> None:
    checks = found(orin_nano(tmp_path))
    assert checks["cuda-python"].result == "problem"
    assert checks["cuda-python"].commands == ("pip install 'cuda-python>=12.6,<13'",)
    assert checks["power mode"] == warning(
        "power mode", "25W, where MAXN_SUPER is faster", "sudo nvpmodel -m 2"
    )
    assert checks["clocks"].commands == ("sudo jetson_clocks",)
    assert checks["swap"].result == "warning" and "zram" in checks["swap"].found
    assert "sudo systemctl disable --now nvzramconfig" in checks["swap"].commands
    assert exit_code(checks.values()) == 1


def test_tensorrt_that_the_virtual_environment_does_not_see(tmp_path: Path) -> None:
    checks = found(orin_nano(tmp_path, sees_system=False))
    assert checks["tensorrt"].result == "problem"
    (command,) = checks["tensorrt"].commands
    assert "--system-site-packages" in command
    assert checks["engine"].result == "problem"


def test_tensorrt_that_is_not_installed(tmp_path: Path) -> None:
    machine = thor(tmp_path)
    machine.debs({})
    shutil.rmtree(machine.system_site)
    checks = found(machine)
    assert checks["tensorrt"].commands == ("sudo apt-get install python3-libnvinfer",)
    assert checks["engine"].commands[-1] == "pip install 'cuda-python>=13,<14'"


def test_another_python_than_jetpacks(tmp_path: Path) -> None:
    machine = orin_nano(tmp_path)
    machine.python = "3.12.1"
    check = found(machine)["python"]
    assert check.result == "warning" and check.commands[0].startswith("python3.10 -m venv")
    machine.python = "3.9.2"
    assert found(machine)["python"].result == "problem"


def test_bindings_of_another_cuda(tmp_path: Path) -> None:
    machine = agx_orin(tmp_path)
    shutil.rmtree(machine.site)
    machine.package("cuda-bindings", "13.5.0")
    assert found(machine)["cuda-python"].commands == ("pip install 'cuda-python>=12.6,<13'",)


def test_two_builds_of_onnxruntime(tmp_path: Path) -> None:
    machine = pc(tmp_path, gpu=True)
    machine.onnxruntime("onnxruntime-gpu", "1.23.2", library((), code=(86,)))
    check = found(machine)["onnxruntime"]
    assert check.result == "problem" and check.commands == (
        "pip uninstall -y onnxruntime onnxruntime-gpu",
        "pip install --force-reinstall 'edgespec[ort-gpu]'",
    )


def test_a_gpu_that_only_the_processors_engine_is_installed_for(tmp_path: Path) -> None:
    check = found(pc(tmp_path, gpu=True))["engine"]
    assert check.result == "warning"
    assert check.commands == (
        "pip uninstall -y onnxruntime",
        "pip install 'edgespec[ort-gpu]'",
    )


def test_a_machine_without_a_gpu_is_complete_with_onnxruntime(tmp_path: Path) -> None:
    checks = found(pc(tmp_path, gpu=False))
    assert [check.result for check in checks.values()] == ["ok"] * 3
    assert set(checks) == {"python", "engine", "memory"}


def test_what_building_needs(tmp_path: Path) -> None:
    machine = agx_orin(tmp_path)
    machine.package("edgespec", "0.1.0", ['onnx>=1.16; extra == "export"'])
    assert found(machine)["build"].commands == ("pip install 'edgespec[export]'",)
    machine.package("onnx", "1.20.0")
    assert "build" not in found(machine)


def test_no_engine_at_all(tmp_path: Path) -> None:
    machine = pc(tmp_path, gpu=False)
    shutil.rmtree(machine.site)
    assert found(machine)["engine"] == problem(
        "engine", "nothing that runs a graph is installed", "pip install 'edgespec[ort]'"
    )


def test_a_card_without_a_driver(tmp_path: Path) -> None:
    machine = pc(tmp_path, gpu=False)
    machine.write("sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")
    machine.write("sys/bus/pci/devices/0000:01:00.0/class", "0x040300\n")  # its sound
    assert "driver" not in found(machine)
    machine.write("sys/bus/pci/devices/0000:01:00.0/class", "0x030000\n")
    assert found(machine)["driver"].commands == ("sudo ubuntu-drivers install", "sudo reboot")


def test_a_build_without_code_for_this_gpu(tmp_path: Path) -> None:
    """onnxruntime-gpu 1.31.1 on a Jetson: it lists the CUDA provider all the same."""
    machine = agx_orin(tmp_path)
    machine.onnxruntime("onnxruntime-gpu", "1.31.1", library(NEEDS, code=(89, 90, 120, 121)))
    check = found(machine)["onnxruntime kernels"]
    assert check.result == "problem" and "8.9, 9.0, 12.0, 12.1" in check.found
    assert "Jetson AI Lab" in check.commands[-1]
    machine.onnxruntime("onnxruntime-gpu", "1.31.1", library(NEEDS, code=(87,)))
    assert found(machine)["onnxruntime kernels"].result == "ok"


def test_a_cuda_provider_whose_libraries_are_missing(tmp_path: Path) -> None:
    machine = pc(tmp_path, gpu=True)
    machine.onnxruntime("onnxruntime-gpu", "1.31.1", library(("libcublas.so.13", "libc.so.6")))
    check = found(machine)["cuda libraries"]
    assert check.result == "problem" and "libcublas.so.13" in check.found
    assert check.commands == ("pip install 'onnxruntime-gpu[cuda,cudnn]'",)
    wheel = machine.site / "nvidia/cu13/lib"
    wheel.mkdir(parents=True)
    (wheel / "libcublas.so.13").touch()
    assert found(machine)["cuda libraries"].result == "ok"


def test_memory_and_swap(tmp_path: Path) -> None:
    machine = orin_nano(tmp_path)
    machine.write("proc/swaps", "Filename Type Size Used Priority\n/swapfile file 8388604 0 -2\n")
    assert found(machine)["swap"].result == "ok"
    machine.write("proc/swaps", "Filename Type Size Used Priority\n")
    assert found(machine)["swap"].found.startswith("none")
    machine.write("proc/meminfo", "MemTotal: 7802880 kB\nMemAvailable: 512000 kB\n")
    assert found(machine)["memory"].commands == ("sudo systemctl isolate multi-user.target",)


def test_a_board_flashed_without_its_fast_modes(tmp_path: Path) -> None:
    machine = orin_nano(tmp_path)
    machine.write(
        "etc/nvpmodel.conf", "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=7W >\n"
    )
    machine.write("var/lib/nvpmodel/status", "pmode:0000")
    checks = found(machine)
    assert checks["power mode"].result == "ok" and checks["power modes"].result == "warning"


# Bundles -------------------------------------------------------------------------------------


def of_bundle(facts: Facts, bundle: Path, given: str = "") -> dict[str, Check]:
    return {check.name: check for check in bundle_checks(facts, str(bundle), given)}


@pytest.fixture
def own(builtin_bundle: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(builtin_bundle, tmp_path / "own.bundle"))


def engines(bundle: Path, built_for: str = "8.7", version: str = "10.3.0") -> BuiltEngines:
    """Engines of the bundle's target, as ``edgespec build`` writes them, with a plan of no use."""
    folder = bundle / ENGINES / f"tensorrt-{version}-sm{built_for.replace('.', '')}-portable-fp16"
    folder.mkdir(parents=True)
    (folder / "target.plan").write_bytes(b"plan")
    files = read_bundle(bundle, check_hashes=False).manifest.files
    sources = {"target.onnx": files["target.onnx"].sha256}
    plan = Plan("target", "target.plan", 4, "0" * 64, sources, (), False)
    built = BuiltEngines(
        folder=folder,
        library="tensorrt",
        version=version,
        compute_capabilities=(built_for,),
        device="Orin",
        l4t="R36.4.3",
        flavour="portable:fp16",
        context=1024,
        capacity=1088,
        prefill_rows=64,
        max_rows=65,
        profiles=("prefill", "tree", "single"),
        flags=(),
        plans=(plan,),
    )
    write_index(built, folder)
    return built


def test_a_bundle_on_a_machine_with_onnxruntime(builtin_bundle: Path, tmp_path: Path) -> None:
    checks = of_bundle(facts_of(pc(tmp_path, gpu=False).place), builtin_bundle)
    assert {check.result for check in checks.values()} == {"ok"}
    assert checks["flavours"].found == "ort:fp32 by onnxruntime" and "room" in checks


def test_a_bundle_that_no_engine_here_takes(builtin_bundle: Path, tmp_path: Path) -> None:
    """Graphs for onnxruntime, TensorRT 10.3 alone: another lowering has to be exported."""
    check = of_bundle(facts_of(agx_orin(tmp_path).place), builtin_bundle)["flavours"]
    assert check.result == "problem"
    assert check.commands == ("on the host: edgespec export --lowering portable:fp16 ...",)
    check = of_bundle(facts_of(thor(tmp_path / "thor").place), builtin_bundle)["flavours"]
    assert check.commands == ("on the host: edgespec export --lowering native:fp16 ...",)


def test_a_bundle_for_every_device(tmp_path: Path) -> None:
    """Each machine takes what its TensorRT takes; weights that flavours share count once."""
    bundle = tmp_path / "both.bundle"
    words = ["export", "--target", "builtin", "--lowering", "native:fp16"]
    assert main([*words, "--lowering", "portable:fp16", "--out", str(bundle)]) == 0
    facts = facts_of(agx_orin(tmp_path / "orin").place)
    checks = of_bundle(facts, bundle)
    assert checks["flavours"] == ok("flavours", "portable:fp16 by TensorRT")
    megabytes = sum(path.stat().st_size for path in bundle.glob("*.bin")) >> 20
    assert checks["room"].found.startswith(f"weights of {megabytes} MB")
    check = of_bundle(facts_of(thor(tmp_path / "thor").place), bundle)["flavours"]
    assert check.found == "native:fp16 by TensorRT; portable:fp16 by TensorRT"


def test_a_bundle_that_the_gpu_does_not_take(builtin_bundle: Path, tmp_path: Path) -> None:
    machine = agx_orin(tmp_path)
    machine.onnxruntime("onnxruntime", "1.31.1")
    check = of_bundle(facts_of(machine.place), builtin_bundle)["flavours"]
    assert check.result == "warning" and "portable:fp16" in check.commands[0]


def test_engines_that_were_not_built(builtin_bundle: Path, tmp_path: Path) -> None:
    check = of_bundle(facts_of(agx_orin(tmp_path).place), builtin_bundle)["engines"]
    assert check.result == "warning"
    assert check.commands == (f"edgespec build --bundle {builtin_bundle}",)


def test_engines_of_this_machine_and_of_another(own: Path, tmp_path: Path) -> None:
    facts = facts_of(agx_orin(tmp_path / "machine").place)
    other = engines(own, "11.0", "10.16.2")
    check = of_bundle(facts, own)["engines"]
    assert check.result == "problem" and "10.16.2 on 11.0" in check.found
    assert check.commands == (other.rebuild_command(),)
    fitting = engines(own)
    assert of_bundle(facts, own)["engines"] == ok("engines", fitting.tag)
    without = facts_of(pc(tmp_path / "pc", gpu=False).place)
    assert "its library is missing here" in of_bundle(without, own)["engines"].found


def test_engines_of_other_graphs(own: Path, tmp_path: Path) -> None:
    built = engines(own)
    index = built.folder / "engines.json"
    index.write_text(re.sub(r'("target.onnx": )"\w+"', r'\1"' + "1" * 64 + '"', index.read_text()))
    check = of_bundle(facts_of(agx_orin(tmp_path / "machine").place), own)["engines"]
    assert check.result == "problem" and "another graph" in check.found


def test_a_damaged_bundle(own: Path, tmp_path: Path) -> None:
    (own / "target.onnx").write_bytes(b"")
    checks = bundle_checks(facts_of(pc(tmp_path / "pc", gpu=False).place), str(own))
    assert [check.result for check in checks] == ["problem"] and "0 bytes" in checks[0].found


def test_weights_that_do_not_fit(builtin_bundle: Path, tmp_path: Path) -> None:
    facts = facts_of(orin_nano(tmp_path).place)
    small = replace(facts, memory=replace(facts.memory, total_mb=8, available_mb=4))
    check = of_bundle(small, builtin_bundle)["room"]
    assert check.result == "problem"
    assert check.commands == (f"edgespec plan --bundle {builtin_bundle} --device jetson-orin-nano",)


def test_a_profile_of_another_device(builtin_bundle: Path, tmp_path: Path) -> None:
    facts = facts_of(pc(tmp_path / "pc", gpu=False).place)
    path = tmp_path / "other.yaml"
    save_profile(profile(), path)
    check = of_bundle(facts, builtin_bundle, str(path))["profile"]
    assert check.result == "problem" and "something else" in check.found
    estimated = of_bundle(facts, builtin_bundle, "orin-nano")["profile"]
    assert estimated.result == "warning" and "estimate" in estimated.found


# The command ---------------------------------------------------------------------------------


def test_lines_show_each_command_below_its_check() -> None:
    text = as_lines([ok("a", "fine"), warning("b", "slow", "sudo faster", "sudo again")])
    assert text.splitlines() == [
        "ok       a: fine",
        "warning  b: slow",
        "           sudo faster",
        "           sudo again",
    ]


def test_the_exit_code_is_that_of_the_worst() -> None:
    assert exit_code([ok("a", ""), warning("b", "")]) == 0
    assert exit_code([ok("a", ""), problem("b", "")]) == 1


def test_this_machine_has_an_engine(
    builtin_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["doctor", "--bundle", str(builtin_bundle), "--json"])
    out, err = capsys.readouterr()
    value = json.loads(out)
    checks = {check["name"]: check for check in value["checks"]}
    assert err == "" and checks["engine"]["result"] != "problem"
    assert checks["bundle"]["result"] == "ok" and set(checks["bundle"]) == {
        "name", "result", "found", "commands",
    }  # fmt: skip
    assert code == int(any(check["result"] == "problem" for check in checks.values()))


def test_a_profile_needs_its_bundle(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--profile", "x.yaml"]) == 2
    assert "--bundle" in capsys.readouterr().err


def test_a_missing_bundle_is_a_problem_with_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--bundle", "no-such-bundle"]) == 1
    assert "does not exist" in capsys.readouterr().out


@pytest.mark.parametrize("made", [orin_nano, agx_orin, thor])
def test_every_command_is_one_line(made: Callable[[Path], Machine], tmp_path: Path) -> None:
    facts = facts_of(made(tmp_path).place)
    bare = replace(facts, gpu=Gpu("", "", ""), onnxruntime=replace(facts.onnxruntime, builds={}))
    for check in (*machine_checks(facts), *machine_checks(bare)):
        assert check.result == "ok" or check.commands, check
        assert all(command and "\n" not in command for command in check.commands)
