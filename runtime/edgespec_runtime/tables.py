"""A bundle's token tables: rows of float32, whatever they are stored in."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgespec.bundle import Bundle

Floats = npt.NDArray[np.float32]


class Table(Protocol):
    """What every token enters a decoder as."""

    @property
    def shape(self) -> tuple[int, ...]:
        """[V, H]."""

    def __len__(self) -> int: ...

    def __getitem__(self, ids: Any, /) -> Any:
        """[n, H] float32 of n token ids, [H] of one."""


class StoredTable:
    """A table of float16, or of int8 with a scale for each row."""

    def __init__(self, rows: npt.NDArray[Any], scales: Floats | None = None) -> None:
        self._rows = rows
        self._scales = scales
        self.shape: tuple[int, ...] = rows.shape

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, ids: Any, /) -> Floats:
        found: Floats = self._rows[ids].astype(np.float32)
        if self._scales is not None:
            found *= self._scales[ids][..., None]
        return found


def open_table(bundle: Bundle, role: str) -> Table:
    """The token table of "target" or "draft", memory-mapped."""
    # Plain views of the mapped files: numpy's memmap class makes every lookup slower.
    rows = np.asarray(np.load(bundle.file(f"{role}.embed.npy"), mmap_mode="r"))
    if rows.dtype == np.float32:
        return rows
    scales = f"{role}.embed.scale.npy"
    if scales not in bundle.manifest.files:
        return StoredTable(rows)
    return StoredTable(rows, np.load(bundle.file(scales)))
