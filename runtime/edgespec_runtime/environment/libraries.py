"""Shared libraries by name, looked for where the dynamic linker and Python's wheels keep them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from edgespec_runtime.environment.place import Place

USUAL = ("usr/local/cuda/lib64", "usr/local/cuda/targets/*/lib", "usr/lib", "usr/lib64", "lib")


class Libraries:
    """The libraries of a place: paths by file name, the first folder's winning."""

    def __init__(self, place: Place) -> None:
        self._paths: dict[str, Path] = {}
        for folder in _folders(place):
            for path in sorted(folder.glob("*.so*")):
                self._paths.setdefault(path.name, path)

    def __contains__(self, soname: str) -> bool:
        return soname in self._paths

    def version(self, stem: str) -> str:
        """The longest number behind ``stem``.so: "10.3.0" of libnvinfer; "" without the library."""
        pattern = re.compile(re.escape(stem) + r"\.so\.([\d.]+)")
        found = (pattern.fullmatch(name) for name in self._paths)
        return max((match.group(1) for match in found if match), key=len, default="")


def _folders(place: Place) -> Iterator[Path]:
    root = place.root
    if place.live:
        listed = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
        yield from (Path(item) for item in listed if item)
    for conf in sorted(root.glob("etc/ld.so.conf.d/*.conf")):
        for line in place.text(str(conf.relative_to(root))).splitlines():
            if line.startswith("/"):
                yield root / line.strip().lstrip("/")
    for pattern in (*USUAL, f"usr/lib/{place.machine}-linux-gnu"):
        yield from sorted(root.glob(pattern))
    for site in place.sites:  # NVIDIA's wheels: nvidia/cudnn/lib, nvidia/cu13/lib, tensorrt_libs
        yield from sorted(site.glob("nvidia/*/lib"))
        yield from sorted(site.glob("tensorrt*libs"))
