"""Bundles with several lowerings and precisions: what is written, chosen and shared."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgespec.bundle import Bundle, read_bundle
from edgespec.cli import main
from edgespec.errors import BundleError, ConfigError
from edgespec.flavour import Flavour
from edgespec_runtime.engines.choice import choose
from tests.support.tiny import write_tiny


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Native first, so that what runs on a CPU is not simply the first."""
    folder = tmp_path_factory.mktemp("flavours")
    target = write_tiny(folder / "target")
    settings = folder / "export.yaml"
    settings.write_text("lowering: [native, ort]\n", encoding="utf-8")
    out = str(folder / "both.bundle")
    assert main(["export", "--target", str(target), "--out", out, "--config", str(settings)]) == 0
    return read_bundle(out)


def test_names() -> None:
    assert Flavour.parse("native:fp16") == Flavour("native", "fp16")
    assert Flavour.parse("portable", "int4") == Flavour("portable", "int4")
    assert str(Flavour("native", "bf16")) == "native:bf16"
    assert Flavour("native", "bf16").label == "native-bf16"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tpu:fp16", "unknown lowering 'tpu'; there are: ort, cuda, native, portable"),
        ("native:fp8", "unknown precision 'fp8'; there are: fp32, fp16"),
        ("native:", "unknown precision ''"),
        ("", "unknown lowering ''"),
    ],
)
def test_names_that_do_not_exist(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Flavour.parse(text)


def test_graphs_of_both_lie_side_by_side(both: Bundle) -> None:
    assert both.manifest.flavours == (Flavour("native"), Flavour("ort"))
    files = [graph.file for graph in both.manifest.graphs if graph.role == "target"]
    assert files == ["target.onnx", "target.ort-fp32.onnx"]
    assert set(both.manifest.parity) == {graph.stem for graph in both.manifest.graphs}


def test_weights_lie_there_once(both: Bundle) -> None:
    assert [name for name in both.manifest.files if name.endswith(".ort-fp32.bin")] == []


def test_one_of_them_is_shown_alone(both: Bundle) -> None:
    alone = both.only(Flavour("ort"))
    assert alone.manifest.flavours == (Flavour("ort"),)
    target = alone.manifest.graph("target")
    assert target is not None and target.file == "target.ort-fp32.onnx"
    assert alone.manifest.files == both.manifest.files
    with pytest.raises(BundleError, match="no graphs of flavour 'native:fp16', only native:fp32"):
        both.only(Flavour("native", "fp16"))


def test_a_cpu_takes_what_is_fastest_there(both: Bundle) -> None:
    choice = choose(both)
    assert choice.flavour == Flavour("ort")
    assert "native:fp32" in choice.why


def test_no_flavour_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = tmp_path / "export.yaml"
    settings.write_text("lowering: []\ntarget: x\nout: y\n", encoding="utf-8")
    assert main(["export", "--config", str(settings)]) == 2
    assert "'x'" in capsys.readouterr().err, "an empty list means the default"
