"""Where things are looked for: this machine, or a recorded tree of another."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from edgespec_runtime.profiling.telemetry.sysfs import text

HERE = Path("/")


@dataclass(frozen=True)
class Place:
    """A file system and a Python in it."""

    root: Path
    """Where /etc, /proc, /sys, /usr and /var lie."""
    sites: tuple[Path, ...]
    """Folders of Python packages, in the order of imports."""
    prefix: Path
    """Of the Python: its virtual environment's folder, or the system's."""
    python: str
    """Its version: "3.10.12"."""
    machine: str
    """Kind of processor as ``uname -m`` has it."""

    @classmethod
    def here(cls) -> Place:
        """This machine and the Python that runs this."""
        sites = tuple(Path(item) for item in sys.path if item and Path(item).is_dir())
        return cls(HERE, sites, Path(sys.prefix), platform.python_version(), platform.machine())

    @property
    def live(self) -> bool:
        """Whether drivers and programs may be asked, besides files."""
        return self.root == HERE

    def text(self, name: str) -> str:
        """A file's text; "" where there is none that can be read."""
        return text(self.root / name) or ""

    @property
    def virtual(self) -> bool:
        """Whether the Python is one of a virtual environment."""
        return (self.prefix / "pyvenv.cfg").is_file()

    @property
    def sees_system(self) -> bool:
        """Whether it sees the packages of the system's Python."""
        if not self.virtual:
            return True
        lines = (text(self.prefix / "pyvenv.cfg") or "").lower().splitlines()
        return any(line.replace(" ", "") == "include-system-site-packages=true" for line in lines)
