"""Weights on huge pages: every step reads all of them once, and where pages are of 4 kB a processor
spends a part of that on looking up where they lie.

ONNX Runtime takes its memory from malloc, which asks for no huge pages, so they are made
afterwards: the kernel copies together what is there, 2 MB at a time (``MADV_COLLAPSE``, Linux 6.1).
Older ones are told that it would be welcome, and do it in their own time or not at all.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

HUGE = 2 << 20
"""Bytes of a huge page where other pages are of 4 kB."""
PIECE = 32 * HUGE
"""Bytes a call: other threads that allocate wait for no longer."""
MADV_HUGEPAGE, MADV_COLLAPSE = 14, 25  # of linux/mman.h
MAPS = Path("/proc/self/maps")
PRIVATE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p \S+ \S+ 0 *(?:\[heap\])?$", re.MULTILINE)
"""Memory that belongs to no file."""

Span = tuple[int, int]
"""First address, and the one behind the last."""


@contextmanager
def huge_pages() -> Iterator[None]:
    """What is allocated inside is on huge pages afterwards, as far as the system has them. They
    save time and change no result."""
    before = private_spans()
    yield
    collapse(whole_pages(added(before, private_spans())))


def private_spans() -> list[Span]:
    """This process's own memory, ascending; none where the system does not tell."""
    try:
        maps = MAPS.read_text()
    except OSError:
        return []
    return [(int(start, 16), int(end, 16)) for start, end in PRIVATE.findall(maps)]


def added(before: Sequence[Span], after: Sequence[Span]) -> list[Span]:
    """What of ``after`` lies in no span of ``before``; both ascending and without overlaps."""
    found = []
    for start, end in after:
        for low, high in before:
            if high <= start or low >= end:
                continue
            if low > start:
                found.append((start, low))
            start = high
        if start < end:
            found.append((start, end))
    return found


def whole_pages(spans: Sequence[Span]) -> list[Span]:
    """The huge pages that lie within spans."""
    inner = ((-(-start // HUGE) * HUGE, end // HUGE * HUGE) for start, end in spans)
    return [(start, end) for start, end in inner if start < end]


def collapse(spans: Sequence[Span]) -> int:
    """Makes spans huge pages; returns for how many bytes the kernel did at once."""
    madvise = getattr(ctypes.CDLL(None), "madvise", None)
    if madvise is None:
        return 0
    done = 0
    for start, end in spans:
        for at in range(start, end, PIECE):
            where, size = ctypes.c_void_p(at), ctypes.c_size_t(min(PIECE, end - at))
            madvise(where, size, MADV_HUGEPAGE)
            if madvise(where, size, MADV_COLLAPSE) == 0:
                done += size.value
    return done
