"""Directories of bundles that are being written: held, published, swept.

Each lies beside the final name, as ``.NAME.partial-XXXX``.
"""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from edgespec.errors import InputError

OLD = ".old"  # ends the name of a bundle that is being replaced
JOURNAL = "export.journal"  # of a partial directory: what is finished (edgespec_export/journal.py)


def leftovers(path: str | Path) -> list[Path]:
    """Partial directories that killed exports to ``path`` left behind."""
    found = _partial(Path(path).expanduser().resolve())
    return [p for p in found if not p.name.endswith(OLD) and not _in_use(p)]


@contextmanager
def held(folder: Path, *, wait: bool) -> Iterator[None]:
    """Marks a partial directory as in use: the kernel drops the lock with the process. Raises
    InputError where another export holds it, unless that is waited for."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: then nothing is ever swept there
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise InputError(f"another export goes on with {folder}; wait for it") from None
        folder.stat()  # raises where the other one has just published it
        yield
    finally:
        os.close(handle)


def _in_use(folder: Path) -> bool:
    with _abandoned(folder) as abandoned:
        return not abandoned


@contextmanager
def _abandoned(folder: Path) -> Iterator[bool]:
    """Whether nobody holds a partial directory; who wants to has to wait for the block's end."""
    with ExitStack() as stack:
        try:
            handle = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            abandoned = True
        except OSError:
            abandoned = False
        yield abandoned


def _remove_abandoned(folder: Path) -> None:
    with _abandoned(folder) as abandoned:
        # Under the lock: an export that has just made it must not begin to write meanwhile.
        if abandoned:
            shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, final: Path) -> None:
    """Renames ``folder`` to ``final``; an old bundle steps aside and comes back if that fails."""
    if not final.exists():
        folder.rename(final)
        return
    old = folder.with_name(folder.name + OLD)
    final.rename(old)
    try:
        folder.rename(final)
    except BaseException:
        old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _partial(final: Path) -> list[Path]:
    return sorted(final.parent.glob(f".{glob.escape(final.name)}.partial-*"))


def sweep(final: Path, keep: bool = False) -> None:
    """Removes partial directories that no living export holds, unless they are to be kept. Where
    an export was killed between its two renames, the old bundle is put back."""
    for stale in _partial(final):
        if not stale.name.endswith(OLD):
            if not keep:
                _remove_abandoned(stale)
            continue
        partial = Path(str(stale)[: -len(OLD)])
        if partial.exists() and _in_use(partial):
            continue
        if final.exists():
            shutil.rmtree(stale, ignore_errors=True)
        else:
            stale.rename(final)
