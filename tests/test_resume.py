"""Exports that were killed, and what goes on with them: `edgespec export --resume`."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgespec.bundle import JOURNAL, MANIFEST, read_bundle, write_bundle
from edgespec.cli import main
from edgespec.errors import ConfigError, InputError
from edgespec.flavour import Flavour
from edgespec_export import weights
from edgespec_export.exporter import ExportRequest, export_bundle
from tests.support.tiny import tiny_config, write_json, write_tiny

FLAVOURS = (Flavour("ort", "int4"), Flavour("ort", "fp32"))
DYING = """
    import os, resource, signal, sys
    from dataclasses import replace
    from pathlib import Path
    from edgespec.errors import InputError
    from edgespec.flavour import Flavour
    from edgespec_export import weights
    from edgespec_export.exporter import ExportRequest, export_bundle
    from edgespec_export.journal import Journal

    target, out, where, number, resume = sys.argv[1:]
    flavours = Flavour("ort", "int4"), Flavour("ort", "fp32")
    request = ExportRequest(target, Path(out), flavours=flavours, resume=bool(int(resume)))
    written = []

    def die(self, file, key, offset, content):
        written.append(key)
        if where == "between" and len(written) == int(number):
            os.kill(os.getpid(), signal.SIGKILL)
        add(self, file, key, offset, content)

    def die_inside(out, array, *more):
        written.append(array)
        if len(written) == int(number):
            out.write(array.data.cast("B")[: array.nbytes // 2])
            out.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        append(out, array, *more)

    add, append = Journal.add, weights._append
    if where == "between":
        Journal.add = die
    elif where == "inside":
        weights._append = die_inside
    elif where == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(number),) * 2)
    try:
        export_bundle(request)
    except InputError as error:
        sys.exit(str(error))
"""


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose every layer divides into blocks of int4."""
    sizes = {"intermediate_size": 96, "head_dim": 16}
    config = tiny_config(text_extra=sizes)
    return write_tiny(tmp_path_factory.mktemp("checkpoints") / "target", config)


@pytest.fixture(scope="module")
def whole(target: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bundle, exported in one go."""
    out = tmp_path_factory.mktemp("bundles") / "b"
    export_bundle(request(target, out))
    return contents(out)


def request(target: Path, out: Path, **more: Any) -> ExportRequest:
    return ExportRequest(str(target), out, flavours=FLAVOURS, **more)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def dying(
    target: Path, out: Path, where: str, number: int, *, resume: bool = False
) -> tuple[int, str]:
    """Exports in another process that comes to grief; returns its exit code and what it said."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    words = [str(target), str(out), where, str(number), str(int(resume))]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(DYING), *words],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    return done.returncode, done.stderr


def killed(target: Path, out: Path, where: str, number: int, *, resume: bool = False) -> Path:
    """The same, killed; returns what it left."""
    code, _ = dying(target, out, where, number, resume=resume)
    assert code == -signal.SIGKILL
    assert not out.exists()
    (partial,) = out.parent.glob(f".{out.name}.partial-*")
    return partial


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the weights that exports in this process compute."""
    found: list[str] = []
    loaded = weights._loaded

    def noted(name: str, weight: weights.Weight) -> weights.Array:
        found.append(name)
        return loaded(name, weight)

    monkeypatch.setattr(weights, "_loaded", noted)
    return found


@pytest.mark.parametrize("where", ["between", "inside"])
@pytest.mark.parametrize("number", [1, 13, 25])
def test_a_resumed_bundle_is_that_of_one_go(
    target: Path,
    whole: dict[str, bytes],
    tmp_path: Path,
    computed: list[str],
    where: str,
    number: int,
) -> None:
    partial = killed(target, tmp_path / "b", where, number)
    finished = (partial / JOURNAL).read_text().splitlines()[1:]
    assert len(finished) == number - 1
    names = [json.loads(line)["name"] for line in finished]
    told: list[str] = []
    export_bundle(request(target, tmp_path / "b", resume=True), tell=told.append)
    assert contents(tmp_path / "b") == whole
    assert [p.name for p in tmp_path.iterdir()] == ["b"]
    read_bundle(tmp_path / "b")
    assert told == [f"going on in {partial}"]
    assert not set(names) & set(computed)


def test_killed_again_and_again(target: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "b"
    sizes = []
    for _ in range(3):
        partial = killed(target, out, "inside", 8, resume=True)
        sizes.append(len((partial / JOURNAL).read_text().splitlines()))
    assert sizes == [8, 15, 22]
    export_bundle(request(target, out, resume=True))
    assert contents(out) == whole


def damage_bytes(partial: Path) -> None:
    data = partial / "target.bin"
    changed = bytearray(data.read_bytes())
    changed[len(changed) // 2] ^= 1
    data.write_bytes(changed)


def damage_length(partial: Path) -> None:
    with (partial / "target.bin").open("ab") as data:
        data.write(b"x" * 12345)


def damage_cut(partial: Path) -> None:
    os.truncate(partial / "target.bin", 5000)


def damage_gone(partial: Path) -> None:
    (partial / "vision.bin").unlink()


def damage_journal(partial: Path) -> None:
    journal = partial / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-30])


def damage_stranger(partial: Path) -> None:
    (partial / "holiday.jpg").write_bytes(b"")
    (partial / MANIFEST).write_text("{}")


@pytest.mark.parametrize(
    "damage",
    [damage_bytes, damage_length, damage_cut, damage_gone, damage_journal, damage_stranger],
)
def test_what_does_not_match_is_written_anew(
    target: Path, whole: dict[str, bytes], tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    damage(killed(target, tmp_path / "b", "between", 25))
    export_bundle(request(target, tmp_path / "b", resume=True))
    assert contents(tmp_path / "b") == whole


def test_another_request_is_refused_by_name(target: Path, tmp_path: Path) -> None:
    partial = killed(target, tmp_path / "b", "between", 20)
    before = contents(partial)
    asked = request(target, tmp_path / "b", resume=True)
    with pytest.raises(ConfigError, match=r"of another request \(other flavours\); give those"):
        export_bundle(replace(asked, flavours=FLAVOURS[1:]))
    with pytest.raises(ConfigError, match=r"\(other sessions\)"):
        export_bundle(replace(asked, sessions=2))
    assert contents(partial) == before


def test_a_checkpoint_that_changed_is_another_request(tmp_path: Path) -> None:
    config = tiny_config(text_extra={"intermediate_size": 96, "head_dim": 16})
    target = write_tiny(tmp_path / "t", config)
    killed(target, tmp_path / "b", "between", 20)
    write_tiny(target, config, seed=1)
    with pytest.raises(ConfigError, match=r"\(other target's files\)"):
        export_bundle(request(target, tmp_path / "b", resume=True))
    export_bundle(request(target, tmp_path / "b"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "t"]


def test_questions_that_changed_are_another_request(target: Path, tmp_path: Path) -> None:
    ids = {"vocab_size": 96, "tokens_seen": 9, "ids": [2, 5], "counts": [1, 1]}
    words = tmp_path / "words.json"
    asked = request(target, tmp_path / "b", draft=str(target), draft_vocab=str(words), resume=True)
    write_json(words, ids)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgespec_export.exporter._write_json", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            export_bundle(asked)
    write_json(words, {**ids, "ids": [2, 6]})
    with pytest.raises(ConfigError, match=r"\(other draft_vocab's file\)"):
        export_bundle(asked)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_an_interrupted_export_keeps_what_is_finished_if_asked(
    target: Path, whole: dict[str, bytes], tmp_path: Path, computed: list[str]
) -> None:
    asked = request(target, tmp_path / "b", resume=True)
    told: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgespec_export.exporter._write_json", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            export_bundle(asked, tell=told.append)
    assert told == ["nothing to resume; beginning anew"]
    kept = set(computed)
    computed.clear()
    export_bundle(asked)
    assert contents(tmp_path / "b") == whole
    assert "head.weight" in kept and "head.weight" not in computed


def test_a_full_disk_keeps_what_is_finished_if_asked(
    target: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "b"
    code, said = dying(target, out, "limit", 90000, resume=True)
    assert code == 1 and said.strip().endswith(
        "failed: File too large; what is finished is kept, give --resume again to go on with it"
    )
    (partial,) = tmp_path.iterdir()
    assert len((partial / JOURNAL).read_text().splitlines()) > 2
    export_bundle(request(target, out, resume=True))
    assert contents(out) == whole


def test_without_the_flag_it_is_swept_and_said(
    target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed(target, tmp_path / "b", "between", 25)
    assert main(["export", "--target", str(target), "--out", str(tmp_path / "b")]) == 0
    said = capsys.readouterr().err
    assert "removed 0." in said and "MB of weights that a killed export" in said
    assert "--resume goes on with them instead" in said
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_the_command_resumes(
    target: Path, whole: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    partial = killed(target, tmp_path / "b", "between", 25)
    words = ["export", "--target", str(target), "--out", str(tmp_path / "b"), "--resume"]
    assert main(words) == 2
    assert "of another request (other flavours)" in capsys.readouterr().err
    assert main([*words, "--lowering", "ort:int4", "--lowering", "ort"]) == 0
    assert f"going on in {partial}" in capsys.readouterr().err
    assert contents(tmp_path / "b") == whole


def test_a_bundle_that_is_there_is_not_resumed_over(target: Path, tmp_path: Path) -> None:
    export_bundle(request(target, tmp_path / "b"))
    with pytest.raises(InputError, match="already exists"):
        export_bundle(request(target, tmp_path / "b", resume=True))


def test_nobody_goes_on_where_another_does(tmp_path: Path) -> None:
    partial = tmp_path / ".b.partial-x"
    partial.mkdir()
    handle = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another export goes on with"):
            with write_bundle(tmp_path / "b", keep=True, partial=partial):
                pass
    finally:
        os.close(handle)
    assert partial.is_dir()
