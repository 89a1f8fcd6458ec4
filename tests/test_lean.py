"""The fences: the runtime stands alone, is quick to import, and shows the names it promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import edgespec
import edgespec_runtime

HEAVY = ("torch", "transformers", "onnx", "safetensors", "huggingface_hub", "edgespec_export")
ROOT = Path(__file__).parent.parent


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)


def blocked(names: tuple[str, ...]) -> str:
    return "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in names)


def test_runtime_works_without_heavy_packages(builtin_bundle: Path) -> None:
    code = blocked(HEAVY) + (
        "import edgespec_runtime\n"
        f"model = edgespec_runtime.load({str(builtin_bundle)!r})\n"
        "print(len(model.generate(None, 'hello', max_new_tokens=3).token_ids))\n"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert 1 <= int(result.stdout) <= 3


def test_bench_runs_with_a_bundle_alone(builtin_bundle: Path, tmp_path: Path) -> None:
    """On a device there is neither the exporter nor, without --plot, matplotlib."""
    data = tmp_path / "own.jsonl"
    data.write_text('{"id": 1, "turns": ["hello"], "category": "text"}')
    words = ["bench", "--bundle", str(builtin_bundle), "--data", str(data), "--repeats", "1"]
    words += ["--max-new-tokens", "3", "--json"]
    code = blocked((*HEAVY, "matplotlib")) + f"from edgespec.cli import main\nmain({words!r})\n"
    result = run_python(code)
    assert result.returncode == 0 and '"exact_match": 1' in result.stdout, result.stderr


def test_profile_runs_with_a_bundle_alone(builtin_bundle: Path) -> None:
    words = ["profile", "--bundle", str(builtin_bundle), "--json", "--quick", "--threads", "1"]
    words += ["--max-nodes", "1", "--max-context", "32"]
    code = blocked((*HEAVY, "matplotlib")) + f"from edgespec.cli import main\nmain({words!r})\n"
    result = run_python(code)
    assert result.returncode == 0 and '"kind": "measured"' in result.stdout, result.stderr


def test_importing_the_runtime_loads_no_engine_and_no_heavy_package() -> None:
    code = "import sys, edgespec_runtime\nprint(' '.join(sys.modules))"
    loaded = set(run_python(code).stdout.split())
    unwanted = {*HEAVY, "numpy", "onnxruntime", "tokenizers", "jinja2", "PIL", "yaml", "tqdm"}
    assert not loaded & unwanted


def test_env_and_doctor_need_no_engine(builtin_bundle: Path) -> None:
    """They are what one turns to where nothing is installed, and they load no engine to look at."""
    unloaded = ("onnxruntime", "tensorrt", "tensorrt_rtx", "cuda", "grpc", "tokenizers", "PIL")
    for words in (["env"], ["doctor", "--bundle", str(builtin_bundle)]):
        code = blocked((*HEAVY, *unloaded)) + f"from edgespec.cli import main\nmain({words!r})\n"
        result = run_python(code)
        assert result.returncode == 0 and result.stdout, result.stderr


def test_settings_of_a_remote_target_need_no_package() -> None:
    names = ("grpc", "google.protobuf", "numpy", "onnxruntime")
    code = blocked(names) + (
        "from edgespec_runtime.remote import RemoteSettings\n"
        "print(RemoteSettings(('127.0.0.1:1',)).endpoints)\n"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr


def test_help_needs_no_optional_package() -> None:
    names = (*HEAVY, "onnxruntime", "tokenizers", "jinja2", "PIL", "tqdm", "matplotlib")
    for command in (
        "",
        "export",
        "generate",
        "serve",
        "profile",
        "bench",
        "frequencies",
        "demo",
        "env",
        "doctor",
    ):
        words = [*command.split(), "--help"]
        code = blocked(names) + f"from edgespec.cli import main\nmain({words!r})\n"
        result = run_python(code)
        assert result.returncode == 0, result.stderr
        assert "usage: edgespec" in result.stdout


@pytest.mark.parametrize("command", ["generate", "export"])
def test_a_missing_extra_is_named(command: str, tmp_path: Path, builtin_bundle: Path) -> None:
    words = {
        "generate": ["generate", "--bundle", str(builtin_bundle), "--prompt", "x"],
        "export": ["export", "--target", "x", "--out", str(tmp_path / "b")],
    }[command]
    names = ("onnxruntime",) if command == "generate" else ("onnx",)
    code = blocked(names) + f"from edgespec.cli import main\nsys.exit(main({words!r}))\n"
    result = run_python(code)
    assert result.returncode == 2
    assert "pip install 'edgespec[" in result.stderr and "Traceback" not in result.stderr


def test_ruff_fence_bites(tmp_path: Path) -> None:
    """The banned imports are found even inside a function."""
    inside = ROOT / "runtime" / "edgespec_runtime" / "_fence_probe.py"
    source = "def probe() -> None:\n    import torch  # noqa: F401\n"
    result = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--stdin-filename", str(inside), "-"],
        input=source,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert "TID251" in result.stdout


def test_public_names() -> None:
    assert edgespec_runtime.__all__ == ["Generation", "Model", "Record", "Stats", "load"]
    assert edgespec.__version__ == "0.1.0"
