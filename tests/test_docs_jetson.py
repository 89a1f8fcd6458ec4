"""docs/jetson.md: the host's part runs, its tables are the code's; the Dockerfiles parse."""

from __future__ import annotations

import re
import shlex
from fnmatch import fnmatch
from pathlib import Path

import pytest

from edgespec.bundle import read_bundle
from edgespec.cli import main
from edgespec.latency import device_files, load_estimate
from edgespec_runtime.environment import remedies
from edgespec_runtime.environment.bundles import NATIVE_TENSORRT
from edgespec_runtime.environment.jetson import JETPACKS

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "jetson.md").read_text(encoding="utf-8")
DOCKERFILES = sorted(ROOT.glob("docker/*.Dockerfile"))


def test_the_hosts_part_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it stands there, with the family that edgespec brings along."""
    (block,) = re.findall(r"^```\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    export, generate, doctor = (shlex.split(line)[1:] for line in block.splitlines())
    monkeypatch.chdir(tmp_path)
    assert main(export) == 0
    bundle = read_bundle("builtin.bundle")
    assert [str(f) for f in bundle.manifest.flavours] == ["native:fp16", "portable:fp16"]
    capsys.readouterr()
    assert main(generate) == 0 and capsys.readouterr().out.strip()
    assert main(doctor) in (0, 1)
    assert "native:fp16 by onnxruntime" in capsys.readouterr().out


def test_the_table_of_releases_is_that_of_the_device_files() -> None:
    rows = re.findall(r"^\| (\d\.\d) \| ([\d.]+) \| ([\w, ]+) \| (.*) \|$", PAGE, re.MULTILINE)
    told = {}
    for jetpack, linux, devices, rest in rows:
        python, cuda, tensorrt, flavour = (cell.strip(" `") for cell in rest.split("|"))
        assert JETPACKS.get(f"R{linux}", JETPACKS.get(f"R{linux}.0")) == jetpack
        native = tuple(map(int, tensorrt.split("."))) >= NATIVE_TENSORRT
        assert flavour == ("native:fp16" if native else "portable:fp16")
        for device in devices.split(", "):
            told[device, f"JetPack {jetpack}"] = (python, cuda, tensorrt)
    written = {
        ("Thor" if "thor" in name else "Orin", item.name): (item.python, item.cuda, item.tensorrt)
        for name, path in device_files().items()
        for item in load_estimate(path).software
    }
    assert told == written and len(rows) == 4


def test_the_page_has_every_command_that_doctor_gives_on_a_jetson() -> None:
    expected = [remedies.VENV, *remedies.SWAP_FILE, remedies.NO_ZRAM, remedies.NO_DESKTOP]
    expected += ["sudo jetson_clocks", "sudo nvpmodel -m 2", "python3-libnvinfer"]
    expected += [f"'{requirement}'" for requirement in remedies.CUDA_PYTHON.values()]
    assert [command for command in expected if command not in PAGE] == []


def test_host_and_device_are_told_apart() -> None:
    headings = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    sides = [heading.split(":")[0] for heading in headings if ":" in heading]
    assert sides == ["Host", *["Device"] * (len(sides) - 1)] and len(sides) >= 4


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_a_dockerfile_copies_what_is_there(path: Path) -> None:
    """And all that the package is built from; nothing that .dockerignore keeps out."""
    ignored = [
        line
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    copied = [word for words in instructions(path, "COPY") for word in words.split()[:-1]]
    for name in copied:
        assert (ROOT / name).exists(), name
        assert not any(fnmatch(name, pattern) for pattern in ignored), name
    assert set(copied) == {
        "pyproject.toml", "README.md", "LICENSE", "edgespec", "export", "runtime", "configs",
    }  # fmt: skip
    assert {".git", "tests", ".venv"} <= set(ignored)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_a_dockerfile_installs_what_there_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extra in re.findall(r"'\.\[([\w,-]+)\]'", text):
        for name in extra.split(","):
            assert re.search(rf"^{name} = \[", project, re.MULTILINE), name
    platform = "jetpack6" if "6" in path.stem else "jetpack7"
    assert f"'{remedies.CUDA_PYTHON[platform]}'" in text
    assert "--system-site-packages" in text


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_a_dockerfile_stands_on_the_image_that_the_page_names(path: Path) -> None:
    (base,) = instructions(path, "ARG")
    assert instructions(path, "FROM") == ["${BASE}"]
    assert f"`{base.removeprefix('BASE=')}`" in PAGE
    assert f"docker/{path.name}" in PAGE and "Not built by us" in path.read_text(encoding="utf-8")
    known = {"ARG", "FROM", "RUN", "WORKDIR", "COPY", "ENV", "ENTRYPOINT", "CMD"}
    assert {line.split()[0] for line in logical_lines(path)} == known


def test_there_is_one_dockerfile_a_generation() -> None:
    assert [path.stem for path in DOCKERFILES] == ["jetpack6", "jetpack7"]


def logical_lines(path: Path) -> list[str]:
    """Instructions with their continuations, without comments."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def instructions(path: Path, name: str) -> list[str]:
    """What follows each instruction of that name."""
    lines = (line.split(maxsplit=1) for line in logical_lines(path))
    return [rest for word, rest in lines if word == name]
