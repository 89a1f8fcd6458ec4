"""Token tables beside the graphs, written piece by piece."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgespec_export.plan import Table
from edgespec_export.precision import encoded
from edgespec_export.quantise.rounding import even_scales, rounded

TYPES = {"fp32": "<f4", "fp16": "<f2", "int8": "|i1"}
"""How numpy spells what a table is stored in."""


def write_table(folder: Path, role: str, table: Table, stored: str) -> None:
    """``role.embed.npy`` [V, H] in fp32, fp16 or int8; the latter with ``role.embed.scale.npy``
    [V], what every row is multiplied with. The runtime looks rows up in float32 (``tables``)."""
    header = {"descr": TYPES[stored], "fortran_order": False, "shape": table.shape}
    scales = []
    with (folder / f"{role}.embed.npy").open("wb") as out:
        np.lib.format.write_array_header_1_0(out, header)
        for piece in table.pieces():
            if stored == "int8":
                own = even_scales(piece)
                scales.append(own[:, 0])
                out.write(rounded(piece, own, 8).data)
            elif stored == "fp16":
                out.write(encoded(piece, "float16", f"{role}.embed").data)
            else:
                out.write(np.ascontiguousarray(piece).data)
    if scales:
        np.save(folder / f"{role}.embed.scale.npy", np.concatenate(scales))
