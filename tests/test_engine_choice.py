"""Which engine and which flavour run a bundle: by name, by what is here, and by what it holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgespec.bundle import Bundle, GraphSpec, read_bundle
from edgespec.cli import main
from edgespec.errors import BundleError, ConfigError, EngineError
from edgespec.flavour import Flavour
from edgespec.nvidia import Gpu
from edgespec_runtime.engines import choice, open_engine
from edgespec_runtime.engines.choice import Choice, choose, flavours_for


def holding(bundle: Bundle, *flavours: str) -> Bundle:
    """``bundle`` as if it held those flavours."""
    target = bundle.manifest.graph("target")
    assert target is not None

    def graph(text: str) -> GraphSpec:
        flavour = Flavour.parse(text)
        assert target is not None
        return replace(target, lowering=flavour.lowering, precision=flavour.precision)

    graphs = tuple(graph(text) for text in flavours)
    return replace(bundle, manifest=replace(bundle.manifest, graphs=graphs))


@pytest.fixture(scope="module")
def bundle(builtin_bundle: Path) -> Bundle:
    return read_bundle(builtin_bundle, check_hashes=False)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with a GPU and an onnxruntime for it."""
    monkeypatch.setattr(choice, "find_gpu", lambda: Gpu("a GPU", "8.7"))
    monkeypatch.setattr(choice, "why_no_cuda", lambda: "")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "find_gpu", lambda: None)


ALL = ("portable:int4", "native:fp32", "native:fp16", "cuda:fp16", "ort:fp32", "ort:fp16")


@pytest.mark.parametrize(
    ("engine", "held", "expected"),
    [
        ("ort", ALL, "ort:fp32"),
        ("ort", ALL[:4], "native:fp32"),
        ("ort-cuda", ALL, "cuda:fp16"),
        ("ort-cuda", ALL[:3], "native:fp16"),
        ("ort-cuda", ("ort:fp16", "portable:fp32"), "portable:fp32"),
        ("ort-cuda", ("ort:fp32", "ort:fp16"), "ort:fp16"),
        ("tensorrt", ALL, "native:fp16"),
        ("ort-tensorrt-rtx", ("cuda:fp16", "portable:int4", "portable:fp16"), "portable:fp16"),
    ],
)
def test_an_engine_gets_the_flavour_that_suits_it(
    bundle: Bundle, engine: str, held: tuple[str, ...], expected: str
) -> None:
    found = choose(holding(bundle, *held), engine)
    assert (found.engine, str(found.flavour)) == (engine, expected)
    assert found.why == f"as asked for; of {', '.join(held)}"


def test_auto_without_a_gpu_is_the_cpu(bundle: Bundle, no_gpu: None) -> None:
    assert choose(bundle) == Choice("ort", Flavour("ort"), "no GPU")
    assert str(choose(bundle)) == "engine ort, flavour ort:fp32: no GPU"
    assert flavours_for() == (Flavour("ort"),)


def test_auto_with_a_gpu_is_cuda_where_the_bundle_has_a_flavour_for_it(
    bundle: Bundle, gpu: None
) -> None:
    found = choose(holding(bundle, "ort:fp32", "native:fp16"))
    assert (found.engine, str(found.flavour)) == ("ort-cuda", "native:fp16")
    found = choose(bundle)
    assert (found.engine, str(found.flavour)) == ("ort", "ort:fp32")
    assert "engine ort-cuda runs none of ort:fp32" in found.why
    assert "--lowering cuda:fp16" in found.why
    assert flavours_for() == (Flavour("cuda", "fp16"),)
    assert flavours_for("tensorrt") == (Flavour("native", "fp16"),)
    assert flavours_for("ort") == (Flavour("ort"),)


def test_auto_with_a_gpu_that_onnxruntime_cannot_use_says_why(
    bundle: Bundle, gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "why_no_cuda", lambda: "install onnxruntime-gpu instead")
    found = choose(holding(bundle, "ort:fp32", "cuda:fp16"))
    assert found.engine == "ort" and found.why.startswith("install onnxruntime-gpu instead; of ")


def test_a_flavour_asked_for_is_the_one(bundle: Bundle, no_gpu: None) -> None:
    held = holding(bundle, *ALL)
    assert str(choose(held, "ort", "portable:int4").flavour) == "portable:int4"
    assert str(choose(held, flavour="native:fp16").flavour) == "native:fp16"
    with pytest.raises(BundleError, match="no graphs of flavour 'portable:fp16'"):
        choose(held, "ort", "portable:fp16")
    with pytest.raises(BundleError, match="engine ort-cuda runs none of ort:fp32; export .*cuda"):
        choose(held, "ort-cuda", "ort:fp32")
    with pytest.raises(ConfigError, match="unknown lowering 'orr'"):
        choose(held, "ort", "orr")


def test_unknown_engines_are_named_with_those_there_are(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="unknown engine 'cuda'; there are: auto, ort, ort-cuda"):
        choose(bundle, "cuda")
    with pytest.raises(ConfigError, match="unknown engine 'auto'"):
        open_engine("auto")


def test_engines_that_were_not_built_say_what_builds_them(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = holding(bundle, "native:fp16")
    with pytest.raises(EngineError, match="name the bundle|cuda"):
        open_engine("tensorrt")
    tensorrt = replace_tensorrt(monkeypatch)
    with pytest.raises(
        EngineError, match=r"no engines of native:fp16 for tensorrt; run: edgespec "
    ):
        choice.built_here(native, "tensorrt", tensorrt)


def replace_tensorrt(monkeypatch: pytest.MonkeyPatch) -> str:
    """As where TensorRT 10.3 is installed; returns the GPU's compute capability."""
    from types import ModuleType

    from edgespec.nvidia import TensorRT

    found = TensorRT("tensorrt", "10.3.0", ModuleType("tensorrt"))
    monkeypatch.setattr(choice, "find_tensorrt", lambda library: found)
    return "8.7"


CPU_ONLY = "has no CUDAExecutionProvider, only .*; install onnxruntime-gpu in place of onnxruntime"


def test_a_provider_that_is_absent_is_an_error_with_what_to_install() -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(EngineError, match=CPU_ONLY):
        open_engine("ort-cuda")
    with pytest.raises(EngineError, match="pip install onnxruntime-ep-nv-tensorrt-rtx"):
        open_engine("ort-tensorrt-rtx")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--engine", "ort-cuda"], 2, "engine ort-cuda runs none of ort:fp32"),
        (["--engine", "tensorrt"], 2, "again with --lowering native:fp16 as well"),
        (["--engine", "ort", "--flavour", "native:fp16"], 2, "no graphs of flavour 'native:fp16'"),
    ],
)
def test_the_command_refuses_in_one_sentence(
    builtin_bundle: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    said: str,
) -> None:
    assert main(["generate", "--bundle", str(builtin_bundle), "--prompt", "Hi", *words]) == code
    out, err = capsys.readouterr()
    assert out == "" and said in err and "Traceback" not in err


def test_a_server_refuses_engines_on_a_gpu(
    builtin_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--bundle", str(builtin_bundle), "--engine", "ort-cuda"]) == 2
    assert "serve with --engine ort" in capsys.readouterr().err
