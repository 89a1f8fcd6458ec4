"""What a shared library needs, and which GPUs it holds machine code for; nothing is loaded.

Sources: the System V ABI (program headers, the dynamic section); CUDA's fatbinary format as its
magic number, header and entries can be read from any library that nvcc linked.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

LOAD, DYNAMIC = 1, 2
NEEDED, STRINGS = 1, 5
FATBIN = b"\x50\xed\x55\xba"
PTX, CUBIN = 1, 2


@dataclass(frozen=True)
class Kernels:
    """Compute capabilities as numbers: 87 is 8.7."""

    machine_code: frozenset[int]
    portable: frozenset[int]
    """Of PTX, which the driver compiles for any GPU as new or newer."""

    def run_on(self, capability: str) -> bool:
        """Whether a GPU of that compute capability ("8.7") can execute them: machine code of its
        major version and no newer minor one, or PTX that is no newer."""
        here = int(capability.replace(".", ""))
        same = any(c // 10 == here // 10 and c <= here for c in self.machine_code)
        return same or any(c <= here for c in self.portable)


def needed(path: Path) -> tuple[str, ...]:
    """Names of the libraries that a 64-bit little-endian one is linked with; () for other files,
    and for one that was cut off."""
    with _mapped(path) as data:
        try:
            return tuple(_needed(data)) if data is not None else ()
        except struct.error:
            return ()


def kernels(path: Path) -> Kernels:
    """The GPUs that a library was compiled for; none where it holds no CUDA code."""
    found: dict[int, set[int]] = {PTX: set(), CUBIN: set()}
    with _mapped(path) as data:
        position = data.find(FATBIN) if data is not None else -1
        while data is not None and position >= 0:
            for kind, capability in _entries(data, position):
                found.get(kind, set()).add(capability)
            position = data.find(FATBIN, position + 4)
    return Kernels(frozenset(found[CUBIN]), frozenset(found[PTX]))


def _needed(data: mmap.mmap) -> Iterator[str]:
    if data[:6] != b"\x7fELF\x02\x01":
        return
    segments = tuple(_segments(data))
    dynamic = next((s for s in segments if s.kind == DYNAMIC), None)
    entries = list(_dynamic(data, dynamic)) if dynamic else []
    base = next((_offset(segments, value) for tag, value in entries if tag == STRINGS), None)
    if base is not None:
        yield from (_string(data, base + value) for tag, value in entries if tag == NEEDED)


@dataclass(frozen=True)
class _Segment:
    kind: int
    offset: int
    address: int
    size: int


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap | None]:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data
    except (OSError, ValueError):  # unreadable or empty
        yield None


def _segments(data: mmap.mmap) -> Iterator[_Segment]:
    (start,) = struct.unpack_from("<Q", data, 32)
    width, count = struct.unpack_from("<HH", data, 54)
    for i in range(count):
        kind, _, offset, address, _, size = struct.unpack_from("<IIQQQQ", data, start + i * width)
        yield _Segment(kind, offset, address, size)


def _dynamic(data: mmap.mmap, segment: _Segment) -> Iterator[tuple[int, int]]:
    for at in range(segment.offset, segment.offset + segment.size, 16):
        tag, value = struct.unpack_from("<qQ", data, at)
        if tag == 0:
            return
        yield tag, value


def _offset(segments: tuple[_Segment, ...], address: int) -> int | None:
    """Where in the file an address lies."""
    for s in segments:
        if s.kind == LOAD and s.address <= address < s.address + s.size:
            return address - s.address + s.offset
    return None


def _string(data: mmap.mmap, at: int) -> str:
    return data[at : data.find(b"\0", at)].decode("ascii", "replace")


def _entries(data: mmap.mmap, at: int) -> Iterator[tuple[int, int]]:
    """(kind, compute capability) of a fat binary's entries; nothing if the magic was chance."""
    if at + 16 > len(data):
        return
    version, header, size = struct.unpack_from("<HHQ", data, at + 4)
    at, end = at + header, at + header + size
    if (version, header) != (1, 16) or end > len(data):
        return
    while at + 32 <= end:
        kind, _, head, payload = struct.unpack_from("<HHIQ", data, at)
        (capability,) = struct.unpack_from("<I", data, at + 28)
        if head < 32:
            return
        yield kind, capability
        at += head + payload
