"""`edgespec build` from end to end, with TensorRT-RTX and without a GPU."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from edgespec import nvidia
from edgespec.bundle import read_bundle
from edgespec.cli import main
from edgespec.engines import read_engines
from edgespec.errors import EngineError
from edgespec.flavour import Flavour
from edgespec_export.exporter import ExportRequest, export_bundle
from edgespec_export.tensorrt import isolated
from edgespec_export.tensorrt.isolated import Job, run_job
from edgespec_export.tensorrt.network import Settings
from tests.support.gate import CAPABILITIES
from tests.support.tiny import write_tiny

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None,
    reason="TensorRT-RTX is installed on Linux x86-64",
)
FLAVOURS = ("ort:fp32", "native:fp16", "portable:fp16")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("build")
    target = write_tiny(folder / "target")
    flavours = tuple(Flavour.parse(name) for name in FLAVOURS)
    export_bundle(ExportRequest(target=str(target), out=folder / "b", flavours=flavours))
    return folder / "b"


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "b"))


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["build", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@needs_rtx
def test_engines_are_built_once_and_kept(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--bundle", str(bundle), "--compute-capability", "8.6", "8.9", "--json"]
    words += ["--context", "64", "--max-rows", "8", "--role", "projector", "--role", "target"]
    code, out, err = run(capsys, *words)
    assert code == 0, err
    result = json.loads(out)
    assert result["flavour"] == "native:fp16" and result["compute_capabilities"] == ["8.6", "8.9"]
    assert (result["context"], result["capacity"], result["max_rows"]) == (64, 128, 8)
    assert [plan["role"] for plan in result["plans"]] == ["projector", "target"]
    assert not any(plan["kept"] for plan in result["plans"])
    (built,) = read_engines(read_bundle(bundle))
    assert built.tag == Path(result["engines"]).name and "-sm86+sm89-native-fp16" in built.tag
    assert built.device is None and built.plan("target")
    assert [p.name for p in built.plans[1].profiles] == ["prefill", "tree"]

    before = built.path("target").stat().st_ino
    code, out, err = run(capsys, *words)
    assert code == 0 and all(plan["kept"] for plan in json.loads(out)["plans"])
    assert built.path("target").stat().st_ino == before  # the very same file
    code, out, err = run(capsys, *words[:-4], "--role", "vision")
    assert code == 0 and [p["kept"] for p in json.loads(out)["plans"]] == [True, True, False]
    code, out, err = run(capsys, "--bundle", str(bundle), "--compute-capability", "8.6", "8.9")
    assert code == 2 and "other options: --context 64 --max-rows 8" in err


@needs_rtx
def test_what_was_interrupted_goes_on(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgespec_export.tensorrt import build

    def fails_at_target(job: Job, tell: object) -> bool:
        if job.role == "target":
            raise KeyboardInterrupt
        return run_job(job)

    words = ["--bundle", str(bundle), "--compute-capability", "8.6", "--role", "projector"]
    words += ["--role", "target", "--json"]
    monkeypatch.setattr(build, "run_job", fails_at_target)
    assert run(capsys, *words)[0] == 130
    assert read_engines(read_bundle(bundle)) == ()
    monkeypatch.undo()
    code, out, err = run(capsys, *words)
    assert code == 0, err
    assert [(p["role"], p["kept"]) for p in json.loads(out)["plans"]] == [
        ("projector", True), ("target", False),
    ]  # fmt: skip


@needs_rtx
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no NVIDIA GPU is found"),
        (["--compute-capability", "8.7"], "builds for 7.5, 8.0, 8.6, 8.9, 12.0, 12.1"),
        (["--compute-capability", "8.6", "--timing-cache", "times"], "times nothing"),
        (["--compute-capability", "8.6", "--strip"], "it wants a GPU for this"),
        (["--flavour", "ort:fp32"], "ONNX Runtime's alone"),
        (["--flavour", "native:int4"], "holds no graphs of flavour 'native:int4'"),
        (["--role", "draft"], "the bundle's graphs are vision, projector, target"),
        (["--library", "trt"], "there are: auto, tensorrt, tensorrt_rtx"),
        (["--library", "tensorrt"], "--system-site-packages"),
        (["--profiles", "single"], "single may be left out"),
        (["--context", "1000"], "more than the model's 128 positions"),
    ],
)
def test_what_cannot_be_built_is_said(
    bundle: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    words: list[str],
    said: str,
) -> None:
    from edgespec_export.tensorrt import build

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(build, "find_gpu", lambda: None)
    if "tensorrt" in words:
        monkeypatch.setitem(sys.modules, "tensorrt", None)
    code, out, err = run(capsys, "--bundle", str(bundle), *words)
    assert code in (1, 2) and out == "" and said in err
    assert read_engines(read_bundle(bundle)) == ()


@needs_rtx
def test_a_gpu_is_built_for_without_being_named(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a machine with a GPU only what it says of itself is not real here."""
    from edgespec_export.tensorrt import build

    monkeypatch.setattr(build, "find_gpu", lambda: nvidia.Gpu("RTX A2000", "8.6"))
    code, out, err = run(capsys, "--bundle", str(bundle), "--role", "projector", "--json")
    result = json.loads(out)
    assert (result["device"], result["compute_capabilities"]) == ("RTX A2000", ["8.6"])


def test_a_missing_tensorrt_is_said_with_how_to_get_one(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for names in nvidia.LIBRARIES.values():
        for name in names:
            monkeypatch.setitem(sys.modules, name, None)
    code, _, err = run(capsys, "--bundle", str(bundle))
    assert code == 1 and "TensorRT cannot be imported" in err
    assert "nvidia-jetpack" in err and "tensorrt-rtx-cu13-libs" in err
    code, _, err = run(capsys, "--bundle", str(bundle), "--parse-only")
    assert code == 1 and "TensorRT cannot be imported" in err
    words = ["--bundle", str(bundle), "--parse-only", "--flavour", "portable:fp16", "--json"]
    code, out, _ = run(capsys, *words)
    found = json.loads(out)
    assert code == 0 and found["accepted"]
    assert {row["by"] for row in found["graphs"]} == {"operator table of TensorRT 10.3"}


@needs_rtx
def test_parse_only_builds_nothing(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--bundle", str(bundle), "--parse-only")
    assert code == 0 and out.count("accepted") == 3 and not (bundle / "engines").exists()
    words = ["--bundle", str(bundle), "--parse-only", "--flavour", "portable:fp16"]
    code, out, _ = run(capsys, *words)
    assert code == 0 and out.count("accepted") == 6


def job(bundle: Path, out: Path) -> Job:
    return Job(bundle, Flavour("native", "fp16"), "target", {}, (), "tensorrt_rtx", Settings(), out)


def crash(connection: object, job: Job) -> None:
    os.kill(os.getpid(), int(job.role))


@pytest.mark.parametrize(
    ("number", "said"),
    [(signal.SIGKILL, "as it is when memory runs out"), (signal.SIGSEGV, "crashed .SIGSEGV.")],
)
def test_a_compiler_that_dies_is_survived(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    monkeypatch.setattr(isolated, "_work", crash)
    from dataclasses import replace

    with pytest.raises(EngineError, match=said):
        run_job(replace(job(bundle, tmp_path / "plan"), role=str(int(number))))


@needs_rtx
def test_a_refusal_comes_back_from_the_process_as_it_is(bundle: Path, tmp_path: Path) -> None:
    """Without a static capacity TensorScatter is not parsed."""
    with pytest.raises(EngineError, match=r"node 'TensorScatter_\d+' \(TensorScatter\)"):
        run_job(job(bundle, tmp_path / "plan"))
    assert not (tmp_path / "plan").exists()


def compiling(caller: int) -> bool:
    """Whether a process that ``caller`` started has come to TensorRT."""
    for process in psutil.Process(caller).children():
        with suppress(OSError):  # it has just ended
            if "tensorrt" in Path(f"/proc/{process.pid}/maps").read_text():
                return True
    return False


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_process_is_deaf_to_ctrl_c_before_its_first_line() -> None:
    """Else Ctrl-C, which reaches both, would find it in its imports: a traceback beside ours."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    isolated._start(process)
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
        blocked = next(line for line in status.splitlines() if line.startswith("SigBlk:"))
        assert int(blocked.split()[1], 16) >> (signal.SIGINT - 1) & 1
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    finally:
        process.terminate()
        process.join()


def test_ctrl_c_is_heeded_behind_the_start_whichever_thread_takes_it() -> None:
    """Amid it the process would be left without what it is to do: a traceback beside ours."""
    pressed, started = threading.Event(), []

    def press() -> None:  # in a thread that Ctrl-C is not blocked in
        pressed.wait()
        signal.raise_signal(signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()

    class Process(multiprocessing.Process):
        def start(self) -> None:
            pressed.set()
            thread.join()
            started.append(self)

    with pytest.raises(KeyboardInterrupt):
        isolated._start(Process())
    assert started


@needs_rtx
@pytest.mark.slow
def test_ctrl_c_ends_the_build_and_its_process(bundle: Path) -> None:
    """In the first build, or in its import of TensorRT; for so many GPUs that it is not over before
    Ctrl-C is pressed."""
    words = [sys.executable, "-m", "edgespec", "build", "--bundle", str(bundle)]
    words += ["--compute-capability", *CAPABILITIES]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not compiling(process.pid):
        assert process.poll() is None, "it ended before it began"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in err
    deadline = time.monotonic() + 120
    while alive(process.pid):  # multiprocessing's own helper ends a moment later
        assert time.monotonic() < deadline, "somebody of its group is left"
        time.sleep(0.05)
    assert read_engines(read_bundle(bundle)) == ()


def test_the_release_of_jetson_linux_is_read(tmp_path: Path) -> None:
    release = tmp_path / "nv_tegra_release"
    assert nvidia.l4t_release(release) is None
    release.write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aa")
    assert nvidia.l4t_release(release) == "R36.4.3"
