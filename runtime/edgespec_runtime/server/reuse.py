"""Which rows of a KV cache another request can use: those of the same leading context.

A row depends on the tokens and pictures up to it and on nothing else, sampling included. A context
is told by a code per row: token ids, and for a picture's rows a negative number from its digest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.int64]


def codes_of(ids: Codes, spans: Sequence[tuple[int, int]], digests: Sequence[bytes]) -> Codes:
    """Codes of an expanded prompt [L]; ``spans`` are its pictures' rows, ``digests`` their
    sha256."""
    codes: Codes = ids.copy()
    for (start, end), digest in zip(spans, digests, strict=True):
        codes[start:end] = -1 - (int.from_bytes(digest[:8], "little") >> 1)
    return codes


def common(held: Codes, wanted: Codes) -> int:
    """How many leading rows are the same."""
    length = min(len(held), len(wanted))
    differ = np.flatnonzero(held[:length] != wanted[:length])
    return int(differ[0]) if len(differ) else length
