"""``optimum-cli export edgespec``: optimum's option names, a bundle in its output directory."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

from edgespec.bundle import read_bundle
from edgespec.cli import build_parser
from edgespec_export.optimum_command import RENAMED, add_flags, run
from tests.support.zoo import Zoo

ROOT = Path(__file__).parent.parent
PATH = os.pathsep.join(str(ROOT / part) for part in ("", "export", "runtime"))


def has_optimum() -> bool:
    """By its metadata: edgespec's own part of the namespace is always there."""
    try:
        return bool(version("optimum"))
    except PackageNotFoundError:
        return False


needs_optimum = pytest.mark.skipif(not has_optimum(), reason="optimum is not installed")


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return parser.parse_args(words)


def optimum_cli(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "optimum.commands.optimum_cli", *words]
    known = {**os.environ, "PYTHONPATH": PATH}
    return subprocess.run(command, capture_output=True, text=True, env=known)


@pytest.fixture(scope="module")
def exported(zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny target and its draft, through the command's function."""
    out = tmp_path_factory.mktemp("optimum") / "out"
    target, draft = zoo.checkpoint("mha"), zoo.checkpoint("mha", "shared")
    words = ["-m", str(target), "--task", "image-text-to-text", "--dtype", "fp32"]
    assert run(parsed(*words, "--draft", str(draft), "--compressor", "pool:4", str(out))) == 0
    return out


def test_flags_are_those_of_export_under_optimums_names() -> None:
    words = parsed("-m", "a", "b", "--dtype", "fp16", "--draft", "c", "--overwrite")
    assert (words.model, words.output, words.precision) == ("a", "b", "fp16")
    assert (words.draft, words.overwrite, words.task) == ("c", True, "auto")
    assert parsed("--model", "a", "b").precision == "fp32"
    own = {action.dest for action in build_parser()[1]["export"]._actions}
    assert own - set(RENAMED) <= set(vars(words))


def test_output_is_a_bundle_with_the_targets_configs(exported: Path, zoo: Zoo) -> None:
    bundle = read_bundle(exported)
    assert {"target", "draft", "compressor"} <= {graph.role for graph in bundle.manifest.graphs}
    source = zoo.checkpoint("mha")
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        assert name in bundle.manifest.files
        assert (exported / name).read_bytes() == (source / name).read_bytes()
    assert "config.json" not in read_bundle(zoo.bundle("mha")).manifest.files


def test_transformers_reads_the_output(exported: Path, zoo: Zoo) -> None:
    import transformers

    hf: Any = transformers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' deprecations are not the subject
        config = hf.AutoConfig.from_pretrained(exported)
        processor = hf.AutoProcessor.from_pretrained(exported)
        wanted = hf.AutoProcessor.from_pretrained(zoo.checkpoint("mha"))
    assert config.model_type == "llava"
    text = "<image> what is this?"
    ours, theirs = (p.tokenizer(text)["input_ids"] for p in (processor, wanted))
    assert ours == theirs
    picture = zoo.picture("mha", 3)
    pixels = [p.image_processor(picture)["pixel_values"][0].tolist() for p in (processor, wanted)]
    assert pixels[0] == pixels[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--task", "text-generation"], "task 'text-generation' is not exported by edgespec"),
        (["--dtype", "fp7"], "fp7"),
        (["--compressor", "pool:4"], "--compressor is about the draft"),
    ],
)
def test_mistakes(
    words: list[str], said: str, zoo: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(parsed("-m", str(zoo.checkpoint("mha")), str(tmp_path / "out"), *words)) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_namespace_stays_a_namespace() -> None:
    """An __init__.py anywhere in it would hide optimum's own modules."""
    files = {p.relative_to(ROOT / "export").as_posix() for p in ROOT.glob("export/optimum/**/*.py")}
    assert files == {"optimum/commands/register/register_edgespec.py"}


@needs_optimum
def test_optimum_finds_the_command(zoo: Zoo, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["export", "edgespec", "-m", str(zoo.checkpoint("mha")), "--json", str(out)]
    result = optimum_cli(*words)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["bundle"] == str(out)
    assert read_bundle(out).manifest.graph("target") is not None
    again = optimum_cli(*words)
    assert again.returncode == 2 and "already exists" in again.stderr
    assert "Traceback" not in again.stderr


@needs_optimum
def test_optimum_itself_still_works_and_nothing_heavy_is_loaded_for_help() -> None:
    shown = optimum_cli("export", "--help")
    assert shown.returncode == 0 and "edgespec" in shown.stdout, shown.stderr
    assert optimum_cli("env").returncode == 0
    code = (
        "import sys\n"
        "from optimum.commands import optimum_cli\n"
        "sys.argv = ['optimum-cli', 'export', 'edgespec', '--help']\n"
        "try:\n    optimum_cli.main()\nexcept SystemExit:\n    pass\n"
        "print('LOADED', *sorted(sys.modules))\n"
    )
    known = {**os.environ, "PYTHONPATH": PATH}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=known)
    assert "--dtype" in result.stdout, result.stderr
    loaded = set(result.stdout.split("LOADED")[1].split())
    assert not loaded & {"torch", "transformers", "onnx", "onnxruntime", "numpy", "safetensors"}
