"""Where plans are written: a hidden sibling of the final folder, renamed when all are there.

The sibling survives an interruption, so that the next call builds only what is missing.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from edgespec.bundle import Bundle, file_sha256
from edgespec.engines import INDEX, BuiltEngines, Plan, is_of, parse_engines, write_index
from edgespec.errors import BundleError, InputError

PARTIAL = ".partial"
OLD = ".old"


class Workshop:
    """The folder in which one set of engines comes to be."""

    def __init__(self, bundle: Bundle, wanted: BuiltEngines) -> None:
        self._bundle = bundle
        self._wanted = wanted
        self.final = wanted.folder
        self.folder = self.final.with_name(f".{self.final.name}{PARTIAL}")

    @property
    def plans(self) -> tuple[Plan, ...]:
        """What is built so far."""
        return self._wanted.plans

    def take_over(self, overwrite: bool) -> None:
        """Keeps the plans, of an interrupted build or of a finished one, that still fit: same
        graphs, same options. Raises InputError where finished engines have other options."""
        self._put_back()
        if overwrite:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        if overwrite:
            return
        finished = _read(self.final)
        if finished and not self._fits(finished):
            raise InputError(
                f"{self.final} holds engines built with other options: {_options(finished)}; "
                "give those, or add --overwrite"
            )
        for built in filter(None, (finished, _read(self.folder))):
            if self._fits(built):
                for plan in built.plans:
                    self._keep(built.folder, plan)
        self._write()

    def draft(self, plan_file: str) -> Path:
        """Where a plan is to be written before it is added."""
        return self.folder / f"{plan_file}{PARTIAL}"

    def add(self, plan: Plan) -> Plan:
        """Takes over the plan that was written to ``draft``. Returns it with size and hash."""
        path = self.folder / plan.file
        self.draft(plan.file).replace(path)
        made = replace(plan, size=path.stat().st_size, sha256=file_sha256(path))
        self._insert(made)
        self._write()
        return made

    def publish(self) -> BuiltEngines:
        """Renames the folder to its final name; one that was there before is replaced."""
        for stray in self.folder.glob(f"*{PARTIAL}"):
            stray.unlink()
        old = self.final.with_name(f".{self.final.name}{OLD}")
        if self.final.exists():
            self.final.rename(old)
        self.folder.rename(self.final)
        shutil.rmtree(old, ignore_errors=True)
        return self._wanted

    def _put_back(self) -> None:
        """Undoes the first of two renames between which a build was killed."""
        old = self.final.with_name(f".{self.final.name}{OLD}")
        if old.exists():
            if self.final.exists():
                shutil.rmtree(old)
            else:
                old.rename(self.final)

    def _fits(self, built: BuiltEngines) -> bool:
        return replace(built, folder=self.final, plans=()) == replace(self._wanted, plans=())

    def _keep(self, folder: Path, plan: Plan) -> None:
        source, here = folder / plan.file, self.folder / plan.file
        if not is_of(self._bundle, plan) or not source.is_file():
            return
        if source.stat().st_size != plan.size or file_sha256(source) != plan.sha256:
            return
        if source != here:
            here.unlink(missing_ok=True)
            with suppress(OSError):
                os.link(source, here)
            if not here.exists():  # a file system without hard links
                shutil.copyfile(source, here)
        self._insert(plan)

    def _insert(self, plan: Plan) -> None:
        others = tuple(p for p in self._wanted.plans if p.role != plan.role)
        self._wanted = replace(self._wanted, plans=(*others, plan))

    def _write(self) -> None:
        write_index(self._wanted, self.folder)


@contextmanager
def sole_builder(bundle: Bundle, folder: Path) -> Iterator[None]:
    """Keeps a second build away from the same engines. Raises InputError if there is one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder.parent, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another `edgespec build` is at work in {bundle.path}; wait for its end"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(handle)


def _read(folder: Path) -> BuiltEngines | None:
    """What a folder holds by its index; None where it has none that can be read."""
    if not (folder / INDEX).is_file():
        return None
    try:
        return parse_engines(folder)
    except BundleError:
        return None


def _options(built: BuiltEngines) -> str:
    """The part of the rebuild command that tells its options."""
    words = [f"--context {built.context}", f"--max-rows {built.max_rows}"]
    words += [f"--prefill-rows {built.prefill_rows}", f"--profiles {','.join(built.profiles)}"]
    words += [f"--{flag}" for flag in built.flags]
    return " ".join(words)
