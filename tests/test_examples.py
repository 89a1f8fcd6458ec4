"""What examples/ and docs/hybrid.md show a newcomer runs as it is shown."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgespec.cli import main
from edgespec_export.family import sample_image
from tests.support.servers import RunningServer, running_server

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/hybrid.md").read_text(encoding="utf-8")
QUESTION = "Describe this image in detail."


@pytest.fixture(scope="module")
def server(builtin_bundle: Path) -> Iterator[RunningServer]:
    with running_server(builtin_bundle) as running:
        yield running


@pytest.fixture(scope="module")
def said(builtin_bundle: Path) -> str:
    """The target's own text."""
    import edgespec_runtime

    return edgespec_runtime.load(builtin_bundle, threads=1).generate(sample_image(), QUESTION).text


def test_the_program(builtin_bundle: Path, server: RunningServer, said: str) -> None:
    words = [str(builtin_bundle), server.address, str(sample_image()), QUESTION]
    run = [sys.executable, str(ROOT / "examples/hybrid.py")]
    done = subprocess.run([*run, *words], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, said + "\n"), done.stderr
    assert f"verified by {server.address}" in done.stderr
    assert subprocess.run([*run, *words[:2]], capture_output=True).returncode == 1


def test_the_program_without_a_server(
    builtin_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("hybrid_example", ROOT / "examples/hybrid.py")
    assert spec and spec.loader
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    picture = str(sample_image())
    assert example.main(str(builtin_bundle), "127.0.0.1:1", picture, QUESTION, 0.1) == 1
    assert "the text ends early: no server has answered" in capsys.readouterr().err


def test_the_pages_python(builtin_bundle: Path, server: RunningServer, said: str) -> None:
    program, health = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    for name, found in (
        ("127.0.0.1:50051", server.address),
        ("device.bundle", str(builtin_bundle)),
        ("cat.jpg", str(sample_image())),
        ("What is this?", QUESTION),
        ("timeout=3", "timeout=60"),  # a busy machine is no defect
    ):
        program, health = program.replace(name, found), health.replace(name, found)
    for code, expected in ((program, said), (health, "status: SERVING")):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout.startswith(expected), done.stderr


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
@pytest.mark.parametrize(
    ("files", "credentials"),
    [
        (["--tokens-file", "tokens.txt"], ["--token-file", "token.txt"]),
        (
            ["--tls-client-ca", "devices-ca.pem"],
            ["--tls-cert", "device.pem", "--tls-key", "device.key"],
        ),
    ],
)
def test_the_pages_certificates_and_tokens(
    builtin_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    files: list[str],
    credentials: list[str],
) -> None:
    lines = re.findall(r"^    ((?:openssl|echo) .*)$", PAGE, re.MULTILINE)
    assert len(lines) == 8
    monkeypatch.chdir(tmp_path)
    subprocess.run(["bash", "-ec", "\n".join(lines)], check=True, capture_output=True)
    flags = ["--tls-cert", "server.pem", "--tls-key", "server.key", *files]
    here = [word if word.startswith("--") else str(tmp_path / word) for word in flags]
    words = ["generate", "--bundle", str(builtin_bundle), "--prompt", QUESTION, "--threads", "1"]
    words += ["--max-new-tokens", "4", "--tls-ca", "ca.pem"]
    with running_server(builtin_bundle, *here) as running:
        port = running.address.rpartition(":")[2]
        for host in ("127.0.0.1", "localhost"):
            assert main([*words, "--remote", f"{host}:{port}", *credentials]) == 0
            assert f"verified by {host}:{port}" in capsys.readouterr().err
