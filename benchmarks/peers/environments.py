"""One virtual environment a peer, made once with pip and found again."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

VERSIONS = Path(__file__).with_name("versions.yaml")
HERE = "here"
WITHOUT, SET = "without ", "set "


class Skipped(Exception):
    """Why a peer takes no part, in one line; the run goes on without it."""


def read_versions(file: Path = VERSIONS) -> dict[str, list[str] | str]:
    """What every environment holds: requirements, or "here" for the driver's own Python."""
    versions: dict[str, list[str] | str] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return versions


@dataclass(frozen=True)
class Steps:
    """What the rows of one environment ask for."""

    packages: list[str]
    unwanted: list[str]
    """To be uninstalled again."""
    variables: dict[str, str]

    @classmethod
    def of(cls, rows: Sequence[str]) -> Steps:
        return cls(
            [row for row in rows if not row.startswith((WITHOUT, SET))],
            [row.removeprefix(WITHOUT) for row in rows if row.startswith(WITHOUT)],
            dict(row.removeprefix(SET).split("=", 1) for row in rows if row.startswith(SET)),
        )


@dataclass(frozen=True)
class Environments:
    """Environments below ``folder``, by name."""

    folder: Path
    versions: Mapping[str, list[str] | str]

    def python(self, name: str) -> Path:
        """The interpreter of an environment, which is made when first asked for. One that another
        list of packages made, or that was not finished, is made anew. Raises Skipped."""
        wanted = self.versions.get(name)
        if wanted is None:
            raise Skipped(f"no versions are listed for '{name}'")
        if isinstance(wanted, str):
            return Path(sys.executable)
        place = self.folder / name
        python, done = place / "bin" / "python", place / "finished"
        if done.is_file() and done.read_text() == digest(wanted):
            return python
        say(f"{name}: making its environment ({', '.join(wanted)})")
        log = self.folder / f"{name}.log"
        run([sys.executable, "-m", "venv", "--clear", str(place)], log)
        pip, steps = [str(python), "-m", "pip"], Steps.of(wanted)
        variables = os.environ | steps.variables
        run([*pip, "install", "--quiet", *steps.packages], log, variables)
        if steps.unwanted:
            run([*pip, "uninstall", "--quiet", "--yes", *steps.unwanted], log)
        done.write_text(digest(wanted))
        return python


def run(command: Sequence[str], log: Path, variables: dict[str, str] | None = None) -> None:
    """Runs a command with its output in ``log``. Raises Skipped with the last line of that."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as out:
        done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, env=variables)
    if code := done.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise Skipped(f"{lines[-1] if lines else f'exit code {code}'} (see {log})")


def digest(packages: Sequence[str]) -> str:
    """Of what an environment was made for."""
    return hashlib.sha256("\n".join([sys.version, *packages]).encode()).hexdigest()


def say(text: str) -> None:
    """A line for the human, on stderr."""
    print(text, file=sys.stderr, flush=True)
