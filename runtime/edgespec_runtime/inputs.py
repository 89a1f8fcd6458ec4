"""From pictures to visual tokens: the vision graphs of a bundle, for the target and for the draft.

The tower runs once per request where draft and target share it; features are computed lazily, so a
plain run never pays for the draft's side.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from edgespec_runtime.engines.base import Graph
from edgespec_runtime.tables import Table

Floats = npt.NDArray[np.float32]
Span = tuple[int, int]


class VisualInputs:
    """Visual tokens of one request's images, computed when first asked for."""

    def __init__(
        self, graphs: dict[str, Graph], pixels: Floats | None, draft_pixels: Floats | None
    ) -> None:
        """``pixels`` [N, 3, h, w]; ``draft_pixels`` only for a draft with a tower of its own."""
        self._graphs = graphs
        self._pixels = pixels
        self._draft_pixels = draft_pixels

    @cached_property
    def _features(self) -> Floats:
        return self._run("vision", "pixel_values", self._pixels)

    @cached_property
    def target(self) -> Floats | None:
        """[N, P, H_target], or None without images."""
        if self._pixels is None:
            return None
        return self._run("projector", "features", self._features)

    @cached_property
    def draft(self) -> Floats | None:
        """[N, P', H_draft] after the compressor, or None without images."""
        if self._pixels is None:
            return None
        features = (
            self._run("draft_vision", "pixel_values", self._draft_pixels)
            if "draft_vision" in self._graphs
            else self._features
        )
        embeds = self._run("draft_projector", "features", features)
        if "compressor" in self._graphs:
            embeds = self._run("compressor", "image_embeds", embeds)
        return embeds

    def _run(self, role: str, name: str, value: Floats | None) -> Floats:
        assert value is not None
        (output,) = self._graphs[role].run({name: value}).values()
        return output


def splice(
    ids: npt.NDArray[np.int64], spans: Sequence[Span], table: Table, visual: Floats | None
) -> Floats:
    """Prompt embeddings [L', H]: text rows from ``table``, every image span from ``visual``.

    A span may be replaced by fewer rows than it is long (a compressed draft prompt).
    """
    parts: list[Floats] = []
    at = 0
    for index, (start, end) in enumerate(spans):
        assert visual is not None
        parts += [table[ids[at:start]], visual[index]]
        at = end
    parts.append(table[ids[at:]])
    return np.concatenate(parts, axis=0)


def spliced_length(ids: npt.NDArray[np.int64], spans: Sequence[Span], per_image: int) -> int:
    """Rows of ``splice`` when every image takes ``per_image`` of them."""
    return len(ids) - sum(end - start for start, end in spans) + per_image * len(spans)
