"""benchmarks/steps.py on a tiny text model: every table's figures, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.steps import main
from benchmarks.steps_sides import shares_of
from edgespec.flavour import Flavour
from edgespec.precisions import Precisions
from edgespec_export.exporter import ExportRequest, export_bundle
from tests.support.texts import TextModel, write_text_model

ROOT = Path(__file__).parent.parent
TINY = ["--contexts", "24,48,600", "--rows", "1,2", "--prompts", "8", "--threads", "1"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_model(tmp_path_factory.mktemp("steps") / "tiny", TextModel())


@pytest.fixture(scope="module")
def bundles(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One of each precision."""
    folder = tmp_path_factory.mktemp("bundles")
    return [exported(checkpoint, folder / name, name) for name in ("fp32", "int8")]


def exported(checkpoint: Path, out: Path, precision: str) -> Path:
    flavours = (Flavour("ort", precision),)
    precisions = Precisions.parse(f"target={precision}")
    export_bundle(ExportRequest(str(checkpoint), out, flavours=flavours, precisions=precisions))
    return out


def test_all_that_is_measured(checkpoint: Path, bundles: list[Path], tmp_path: Path) -> None:
    """In a process of its own, since it sets torch's threads for the whole of one."""
    written, page, work = tmp_path / "steps.json", tmp_path / "steps.md", tmp_path / "work"
    words = [*TINY, "--repeats", "2", "--checkpoint", checkpoint, "--work", work]
    words += ["--json", written, "--markdown", page]
    words += [word for bundle in bundles for word in ("--bundle", bundle)]
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "steps.py", *map(str, words)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert page.read_text() == done.stdout
    told = json.loads(written.read_text())
    assert str(tmp_path.parent) not in written.read_text(), "a machine's path"
    assert not list(work.iterdir()), "profiles are removed"
    assert list(told["sides"]) == ["ort:fp32", "ort:int8", "transformers:fp32"]
    assert told["settings"]["contexts"] == [24, 48] and told["settings"]["curve_context"] == 48
    (left,) = told["settings"]["left_out"]
    assert left.startswith("context 600") and left in done.stdout
    points = [[c, rows] for c in (24, 48) for rows in (1, 8, 16)]
    for name, side in told["sides"].items():
        found = [[step["context"], step["rows"]] for step in side["steps"]]
        assert found == sorted([*points, [48, 2]])
        assert all(step["count"] == 6 and step["best_ms"] <= step["ms"] for step in side["steps"])
        shares = [s["attention"] for s in side["steps"] if s["rows"] != 2]
        ours = name != "transformers:fp32"
        assert all(0 < share < 1 if ours else share is None for share in shares)
        assert [at["tokens"] for at in side["first_token"]] == [8]
        assert ("bound" in side) == ours
    assert done.stdout.count("Slower than transformers:fp32: ") == 1


def test_the_bound_counts_weights_and_cached_rows(
    bundles: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By hand: two layers, two key-value heads of 16 numbers, keys and values in float32."""
    written = tmp_path / "steps.json"
    words = ["--bundle", str(bundles[0]), *TINY, "--repeats", "1", "--json", str(written)]
    assert main([*words, "--small-pages"]) == 0
    told = json.loads(written.read_text())
    assert list(told["sides"]) == ["ort:fp32", "ort:fp32, small pages"]
    side = told["sides"]["ort:fp32"]
    stored = (bundles[0] / "target.bin").stat().st_size
    assert side["weight_bytes"] == pytest.approx(stored, rel=0.1)
    for at in side["bound"]:
        assert at["bytes"] - side["weight_bytes"] == at["context"] * 2 * 2 * 2 * 16 * 4
        step = next(s for s in side["steps"] if (s["context"], s["rows"]) == (at["context"], 1))
        assert at["bound_ms"] == pytest.approx(at["bytes"] / told["read"]["gb_s"] / 1e6)
        assert at["reached"] == pytest.approx(at["bound_ms"] / step["ms"])
    assert "transformers" not in capsys.readouterr().out.split("\n\n", 1)[1]


def test_shares_are_of_the_nodes_of_each_run() -> None:
    """Runs overlap nothing; what else a profile holds counts for neither side."""

    def node(at: int, took: int, kind: str, name: str = "a_kernel_time") -> dict[str, object]:
        return {"cat": "Node", "name": name, "ts": at, "dur": took, "args": {"op_name": kind}}

    runs: list[dict[str, object]] = [
        {"cat": "Session", "name": "model_run", "ts": at, "dur": 90, "args": {}} for at in (200, 0)
    ]
    first = [node(1, 30, "MatMul"), node(40, 10, "GroupQueryAttention")]
    second = [node(200, 20, "Attention"), node(240, 20, "Softmax")]
    aside = node(50, 1000, "Attention", "a_fence_before")
    assert shares_of([*second, *runs, aside, *first]) == [0.25, 0.5]


def test_what_it_refuses(
    bundles: list[Path], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*words: str | os.PathLike[str]) -> str:
        assert main([*map(str, words), *TINY]) == 2
        return capsys.readouterr().err

    assert str(checkpoint) in refused("--bundle", checkpoint)
    twice = refused("--bundle", bundles[0], "--bundle", bundles[0])
    assert "names one twice" in twice
    other = write_text_model(tmp_path / "other", TextModel(layers=1), seed=1)
    foreign = exported(other, tmp_path / "foreign", "fp32")
    assert "another model" in refused("--bundle", bundles[0], "--bundle", foreign)
    assert "no config.json" in refused("--bundle", bundles[0], "--checkpoint", tmp_path)
    assert "1 layers" in refused("--bundle", bundles[0], "--checkpoint", other)
    below = checkpoint / "config.json" / "work"
    assert "cannot be made" in refused("--bundle", bundles[0], "--work", below)
    with pytest.raises(SystemExit) as ended:
        main(["--bundle", str(bundles[0]), "--contexts", "0"])
    assert ended.value.code == 2 and "'0' is no whole number" in capsys.readouterr().err
    assert main(["--bundle", str(bundles[0]), "--contexts", "512"]) == 2
    assert "name one of at most 496" in capsys.readouterr().err
