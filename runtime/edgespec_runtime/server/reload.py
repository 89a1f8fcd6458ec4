"""Files that may change while a server runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from edgespec.errors import InputError

T = TypeVar("T")
Stamp = tuple[tuple[int, int, int] | None, ...]


class Reloaded(Generic[T]):
    """What ``read`` makes of some files, made anew when one of them has changed.

    A change that ``read`` refuses (InputError) is told to ``complain`` once, and the last good
    value stays. Safe to use from several threads; looking costs one ``stat`` per file.
    """

    def __init__(
        self, paths: Sequence[Path], read: Callable[[], T], complain: Callable[[str], None]
    ) -> None:
        """Raises InputError where the files are no good to begin with."""
        self._paths = paths
        self._read = read
        self._complain = complain
        self._lock = threading.Lock()
        self._stamp = self._look()
        self._value = read()

    def value(self) -> T:
        """The newest good value."""
        return self.fresh()[0]

    def fresh(self) -> tuple[T, bool]:
        """The same, and whether it was made in this call."""
        with self._lock:
            stamp = self._look()
            if stamp == self._stamp:
                return self._value, False
            self._stamp = stamp
            try:
                self._value = self._read()
            except InputError as error:
                self._complain(str(error))
                return self._value, False
            return self._value, True

    def _look(self) -> Stamp:
        return tuple(_stamp(path) for path in self._paths)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
