"""Token trees: what a draft proposes and a target verifies in one forward.

Rows: row 0 is the root (the last committed token, whose logits are still wanted); nodes are rows
1..n in *tree order*: ancestors first, then by cumulative score, depth and index. That one order
serves causal kernels, KV compaction and the mask (DESIGN, decision 2). This module knows nothing of
models, engines or sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

ROOT = -1
"""Parent index of a candidate that hangs directly below the last committed token."""


class Candidates:
    """The arena a draft grows into: every proposed node, parents before children.

    ``scores`` are cumulative log-probabilities (float32 log-softmax values summed in double), so a
    child never scores above its parent and any best-first cut is closed under ancestors.
    """

    __slots__ = ("depths", "families", "parents", "scores", "tokens")

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.depths: list[int] = []
        self.scores: list[float] = []
        self.families: list[int] = []
        """How many children came together, best first, one entry per ``extend``."""

    def __len__(self) -> int:
        return len(self.tokens)

    def extend(self, parent: int, tokens: Sequence[int], logprobs: Sequence[float]) -> None:
        """Adds children of ``parent`` (an index, or ROOT) with their log q given the path."""
        self.families.append(len(tokens))
        base, depth = (0.0, 1) if parent == ROOT else (self.scores[parent], self.depths[parent] + 1)
        for token, logprob in zip(tokens, logprobs, strict=True):
            self.tokens.append(token)
            self.parents.append(parent)
            self.depths.append(depth)
            # A log-softmax can round to a hair above zero; a child must not outrank its parent.
            self.scores.append(base + min(logprob, 0.0))

    def ranked(self, indices: Sequence[int] | None = None) -> list[int]:
        """Indices in tree order: score descending, then depth, then index (EAGLE-2 re-rank)."""
        chosen = range(len(self.tokens)) if indices is None else indices
        scores, depths = self.scores, self.depths
        return sorted(chosen, key=lambda i: (-scores[i], depths[i], i))


@dataclass(frozen=True)
class TokenTree:
    """A verified-in-one-forward tree of ``n`` nodes below the root.

    ``tokens[i]`` and ``parents[i]`` describe row ``i + 1``; ``parents`` are rows, 0 is the root.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    depths: tuple[int, ...]
    """Depth of every node; the root has depth 0 and is not listed."""
    _children: dict[tuple[int, int], int] = field(repr=False, compare=False)

    @staticmethod
    def build(tokens: Sequence[int], parents: Sequence[int]) -> TokenTree:
        """Checks the shape and derives depths. Raises ValueError for a tree that is none."""
        if len(tokens) != len(parents):
            raise ValueError(f"{len(tokens)} tokens but {len(parents)} parents")
        depths = [0]
        children: dict[tuple[int, int], int] = {}
        for row, (token, parent) in enumerate(zip(tokens, parents, strict=True), start=1):
            if not 0 <= parent < row:
                raise ValueError(f"row {row} has parent {parent}; a parent must come before it")
            if (parent, token) in children:
                raise ValueError(f"row {row} repeats token {token} below row {parent}")
            children[parent, token] = row
            depths.append(depths[parent] + 1)
        return TokenTree(tuple(tokens), tuple(parents), tuple(depths[1:]), children)

    @staticmethod
    def select(candidates: Candidates, chosen: Sequence[int]) -> TokenTree:
        """The tree of the ``chosen`` candidate indices, which must be closed under ancestors."""
        if not chosen:
            return EMPTY
        rows = {ROOT: 0}
        parents = []
        for row, index in enumerate(chosen, start=1):
            parent = rows.get(candidates.parents[index])
            if parent is None:
                raise ValueError(f"candidate {index} was chosen without (or before) its parent")
            parents.append(parent)
            rows[index] = row
        return TokenTree.build([candidates.tokens[i] for i in chosen], parents)

    def __len__(self) -> int:
        return len(self.tokens)

    def child(self, row: int, token: int) -> int | None:
        """The row of the child of ``row`` that carries ``token``, if there is one."""
        return self._children.get((row, token))

    def path(self, row: int) -> list[int]:
        """Tokens from below the root down to ``row`` (empty for the root)."""
        tokens = []
        while row:
            tokens.append(self.tokens[row - 1])
            row = self.parents[row - 1]
        return tokens[::-1]

    def write_mask(self, out: npt.NDArray[np.bool_]) -> None:
        """Fills ``out`` [n + 1, n + 1]: row r may attend to itself and its ancestors."""
        out[:] = False
        out[0, 0] = True
        for row, parent in enumerate(self.parents, start=1):
            out[row] = out[parent]
            out[row, row] = True

    def mask(self) -> npt.NDArray[np.bool_]:
        """The ancestor mask, [n + 1, n + 1] bool, root first."""
        out = np.empty((len(self) + 1, len(self) + 1), dtype=np.bool_)
        self.write_mask(out)
        return out


EMPTY = TokenTree.build((), ())
"""The tree of plain decoding: only the root is verified (n = 0)."""
