"""The fixed tree."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgespec.errors import ConfigError
from edgespec.sizing.contract import Setting, Sizer
from edgespec.sizing.policies.shape import Shape, Static


@dataclass(frozen=True)
class FixedTree:
    """As many children below every node as its depth says, best first, all of them verified.

    Source: SpecInfer (Miao et al. 2024), whose expansion configuration <k_1, k_2, ...> is
    ``widths``, written ``4x2x1x1``: four nodes at depth 1, two below each, one below each of those.
    Deviation: children are the draft's best tokens, not draws from it (DESIGN, decision 1).
    """

    widths: str = "4x2x1x1"

    def __post_init__(self) -> None:
        parts = self.widths.split("x") if isinstance(self.widths, str) else []
        if not parts or not all(p.isascii() and p.isdecimal() and int(p) > 0 for p in parts):
            raise ConfigError(
                f"widths is {self.widths!r}; write the children per node of every level, each at "
                "least 1, like 4x2x1x1"
            )

    @property
    def branching(self) -> tuple[int, ...]:
        """Children per node at depths 0, 1, ..."""
        return tuple(map(int, self.widths.split("x")))

    @property
    def top_k(self) -> int:
        return max(self.branching)

    @property
    def levels(self) -> int:
        return len(self.branching)

    @property
    def max_nodes(self) -> int:
        return sum(self._level_sizes())

    @property
    def max_drafted(self) -> int:
        return sum(self._level_sizes()[:-1])

    def _level_sizes(self) -> list[int]:
        widths = self.branching
        return [math.prod(widths[:depth]) for depth in range(1, len(widths) + 1)]

    def start(self, setting: Setting) -> Sizer:
        return Static(self, Shape.of_widths(self.branching))
