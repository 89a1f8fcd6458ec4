"""What is finished of an export, told in its partial directory: how a killed one is gone on with.

One line of JSON a weight, written once its bytes are. Nothing is believed: a weight is kept where
its place, its size and the sha256 of what lies there are those of the line.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgespec import __version__
from edgespec.bundle import CHUNK, JOURNAL, leftovers
from edgespec.errors import ConfigError

if TYPE_CHECKING:
    from edgespec_export.plan import Plan
    from edgespec_export.request import ExportRequest

Key = tuple[str, str]
"""A weight by name and kind."""
Asked = dict[str, str]
"""What an export depends on."""
WITHOUT = ("out", "overwrite", "parity", "quality", "resume")
"""What of a request no weight depends on."""
FILES = ("draft_vocab", "calibration")
"""``FILE[:N]`` of a request."""


@dataclass(frozen=True)
class Finished:
    """One weight in a file of the partial directory."""

    file: str
    name: str
    kind: str
    offset: int
    size: int
    sha256: str


class Journal:
    """Of one export; goes on with what ``folder`` tells, if it tells anything. Raises OSError."""

    def __init__(self, folder: Path, asked: Asked) -> None:
        self._file = folder / JOURNAL
        known = list(_read(self._file)) if self._file.exists() else []
        self._known = {(f.file, f.name, f.kind): f for f in known}
        for path in folder.iterdir():
            if path.name not in {JOURNAL, *(f.file for f in known)}:
                path.unlink()
        lines = [asked, *map(asdict, self._known.values())]  # not the last one, where it was cut
        fresh = self._file.with_suffix(".new")
        fresh.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
        fresh.replace(self._file)

    def kept(self, file: Path, places: Mapping[Key, tuple[int, int]]) -> set[Key]:
        """Which weights lie in ``file`` already, by their offset and size in it."""
        found = set()
        for key, place in places.items():
            known = self._known.get((file.name, *key))
            if known and place == (known.offset, known.size) and file.exists():
                with file.open("rb") as data:
                    if _sha256(data, *place) == known.sha256:
                        found.add(key)
        return found

    def add(self, file: Path, key: Key, offset: int, content: memoryview) -> None:
        """Tells of a weight that was written."""
        digest = hashlib.sha256(content).hexdigest()
        line = json.dumps(asdict(Finished(file.name, *key, offset, content.nbytes, digest)))
        with self._file.open("ab", buffering=0) as out:
            out.write(f"{line}\n".encode())


def asked_of(request: ExportRequest, plan: Plan) -> Asked:
    """What the weights of a bundle depend on: the request, the versions of what writes them, and
    the files they come from, each by name, size and time of change."""
    asked = {
        field.name: _spelled(getattr(request, field.name))
        for field in fields(request)
        if field.name not in WITHOUT
    }
    asked["target's files"] = _state(plan.target.checkpoint.path)
    if plan.draft:
        asked["draft's files"] = _state(plan.draft.original.checkpoint.path)
    for name in FILES:
        file = Path((getattr(request, name) or "").rpartition(":")[0])
        file = file if file.is_file() else Path(getattr(request, name) or "")
        if file.is_file():
            asked[f"{name}'s file"] = hashlib.sha256(file.read_bytes()).hexdigest()
    tools = {"edgespec": __version__, **{t: version(t) for t in ("numpy", "onnx")}}
    return {**asked, "versions": _spelled(tuple(f"{k} {v}" for k, v in tools.items()))}


def unfinished(out: Path, asked: Asked) -> Path | None:
    """The partial directory of a killed export to ``out``, None where there is none. Raises
    ConfigError where there are some, and all of another request."""
    found = _told(out)
    for folder, told in found.items():
        if told == asked:
            return folder
    if not found:
        return None
    told = next(iter(found.values()))
    differing = sorted(n for n in {*told, *asked} if told.get(n) != asked.get(n))
    raise ConfigError(
        f"--resume: what a killed export to '{out}' left behind is of another request (other "
        f"{', '.join(differing)}); give those again, or leave --resume out to begin anew"
    )


def unfinished_bytes(out: Path) -> int:
    """Of weights that killed exports to ``out`` finished."""
    total = 0
    for folder in _told(out):
        with suppress(OSError):  # another export may sweep it just now
            total += sum(found.size for found in _read(folder / JOURNAL))
    return total


def _told(out: Path) -> dict[Path, Asked]:
    """Partial directories that tell what they are of, the one that went furthest first."""
    found = []
    for folder in leftovers(out):
        with suppress(OSError, ValueError), (folder / JOURNAL).open(encoding="utf-8") as file:
            told = json.loads(file.readline())
            found.append((os.fstat(file.fileno()).st_size, folder, told))
    found.sort(key=lambda one: one[0], reverse=True)
    return {folder: told for _, folder, told in found}


def _read(file: Path) -> Iterable[Finished]:
    """What a journal tells, as far as it is whole."""
    lines = file.read_bytes().split(b"\n")
    for line in lines[1:]:
        try:
            yield Finished(**json.loads(line))
        except (ValueError, TypeError):
            return


def _sha256(data: Any, offset: int, size: int) -> str:
    digest = hashlib.sha256()
    data.seek(offset)
    while size and (chunk := data.read(min(size, CHUNK))):
        digest.update(chunk)
        size -= len(chunk)
    return digest.hexdigest()


def _state(folder: Path) -> str:
    """Of the files of a checkpoint."""
    digest = hashlib.sha256(os.fsencode(folder.resolve()))
    for path in sorted(folder.iterdir()):
        if path.is_file():
            state = path.stat()
            digest.update(f"{path.name} {state.st_size} {state.st_mtime_ns}".encode())
    return digest.hexdigest()


def _spelled(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
