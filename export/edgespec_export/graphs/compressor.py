"""Compressors: graphs that shorten the draft's visual tokens. The target's are never touched."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgespec.errors import ConfigError
from edgespec_export.builder import GraphBuilder
from edgespec_export.lowerings import Lowering


@dataclass(frozen=True)
class Compressor:
    """A parsed ``--compressor``: the kind and how many visual tokens become one."""

    kind: str
    ratio: int

    @property
    def side(self) -> int:
        """Window side of two-dimensional pooling."""
        return math.isqrt(self.ratio)


def parse_compressor(text: str) -> Compressor:
    """``"pool:4"`` -> 2 x 2 average pooling. Raises ConfigError for what is not built."""
    kind, _, ratio = text.partition(":")
    if kind != "pool" or not ratio.isdigit() or math.isqrt(int(ratio)) ** 2 != int(ratio):
        raise ConfigError(
            f"compressor '{text}' is not understood; write pool:N with N a square (pool:4 averages "
            "2 x 2 neighbours)"
        )
    if int(ratio) < 4:
        raise ConfigError("a pooling ratio below 4 compresses nothing; leave --compressor out")
    return Compressor(kind, int(ratio))


def build_pool(
    compressor: Compressor, grid: int, width: int, lowering: Lowering, name: str = "compressor"
) -> GraphBuilder:
    """``image_embeds`` [N, grid^2, H] -> ``compressed`` [N, ceil(grid / side)^2, H].

    Average over side x side windows of the patch grid; where the side does not divide the grid,
    the windows at the right and lower edge are smaller and average what they hold.
    """
    side = compressor.side
    if side > grid:
        raise ConfigError(f"pool:{compressor.ratio} is larger than the {grid} x {grid} patch grid")
    out = -(-grid // side)
    b = GraphBuilder(name, lowering.opset)
    x = b.input("image_embeds", "float32", ["N", grid * grid, width])
    x = b.node("Transpose", x, perm=[0, 2, 1])
    x = b.node("Reshape", x, b.constant([0, width, grid, grid]))
    window = [side, side]
    padding = out * side - grid
    x = b.node("AveragePool", x, kernel_shape=window, strides=window, pads=[0, 0, padding, padding])
    x = b.node("Reshape", x, b.constant([0, width, out * out]))
    x = b.node("Transpose", x, perm=[0, 2, 1])
    b.output(x, "compressed", "float32", ["N", out * out, width])
    return b
