"""Huge pages: which memory is new, whole pages of it, and that the kernel makes them."""

from __future__ import annotations

import json
import mmap
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgespec_runtime.engines import huge_pages
from edgespec_runtime.engines.huge_pages import HUGE, Span, added, collapse, private_spans

spans = st.lists(st.integers(0, 40), unique=True, max_size=10).map(
    lambda ends: list(zip(sorted(ends)[::2], sorted(ends)[1::2], strict=False))
)


def places(found: list[Span]) -> list[int]:
    return [place for start, end in found for place in range(start, end)]


@given(before=spans, after=spans)
def test_what_is_new_is_what_was_in_no_span_before(before: list[Span], after: list[Span]) -> None:
    assert places(added(before, after)) == sorted(set(places(after)) - set(places(before)))


def test_only_whole_pages_are_touched() -> None:
    found = huge_pages.whole_pages(
        [(1, 3 * HUGE + 5), (4 * HUGE, 5 * HUGE), (7 * HUGE + 1, 8 * HUGE)]
    )
    assert found == [(HUGE, 3 * HUGE), (4 * HUGE, 5 * HUGE)]


def huge_kb(address: int) -> int:
    """Of the mapping that holds ``address``: kilobytes on huge pages."""
    found = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            found = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif found and line.startswith("AnonHugePages:"):
            return int(line.split()[1])
    raise LookupError(hex(address))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/smaps, which Linux alone has")
def test_the_kernel_makes_them_and_nothing_is_lost() -> None:
    before = private_spans()
    with mmap.mmap(-1, 4 * HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_NOHUGEPAGE)  # as malloc's memory where nobody asks for them
        numbers = np.frombuffer(memory, dtype=np.int64)
        numbers[:] = np.arange(len(numbers))
        start = numbers.ctypes.data
        assert huge_kb(start) == 0
        new = huge_pages.whole_pages(added(before, private_spans()))
        mine = [span for span in new if span[0] < start + len(memory) and span[1] > start]
        done = collapse(mine)
        if done:  # a kernel from 6.1 on, with memory in one piece
            # What lies before the first whole page is a mapping of its own from now on.
            assert huge_kb(mine[0][0]) >= done >> 10 > 0
        assert (numbers == np.arange(len(numbers))).all()
        del numbers
    assert collapse(mine) == 0, "what was given back is no error"


def test_where_the_system_does_not_tell_nothing_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huge_pages, "MAPS", tmp_path / "maps")
    asked: list[list[Span]] = []
    monkeypatch.setattr(huge_pages, "collapse", asked.append)
    with huge_pages.huge_pages():
        kept = np.ones(HUGE)
    assert asked == [[]] and kept.all()


PROGRAM = """
import json, sys, edgespec_runtime
from edgespec_runtime.engines import huge_pages

asked, collapse = [], huge_pages.collapse
huge_pages.collapse = lambda spans: asked.append(sum(e - s for s, e in spans)) or collapse(spans)
model = edgespec_runtime.load(sys.argv[1], engine="ort", threads=1, huge_pages=sys.argv[2] == "yes")
said = model.generate([], "What is a circle?", max_new_tokens=24)
print(json.dumps([asked, said.token_ids]))
"""


def test_weights_are_on_them_and_texts_the_same(builtin_bundle: Path) -> None:
    """In processes of their own: memory that malloc has left over from before is not new."""
    told = {}
    for wanted in ("no", "yes"):
        words = [sys.executable, "-c", PROGRAM, str(builtin_bundle), wanted]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        told[wanted] = json.loads(done.stdout)
    assert told["no"][0] == [] and told["no"][1] == told["yes"][1]
    weights = (builtin_bundle / "target.bin").stat().st_size
    assert sum(told["yes"][0]) > 0.5 * weights
