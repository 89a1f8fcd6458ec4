"""The target of a recorded answer: it says what it said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edgespec.acceptance import Verdict, walk
from edgespec.tree import TokenTree
from edgespec_runtime.simulate.clock import Meter
from edgespec_runtime.simulate.draft import wants_features
from edgespec_runtime.simulate.lines import Line
from edgespec_runtime.simulate.oracle import Oracle
from edgespec_runtime.verifiers import Meanwhile


class ReplayVerifier:
    """One replay's target."""

    engine_s = 0.0

    def __init__(self, line: Line, oracle: Oracle, meter: Meter, *, named: bool) -> None:
        """``named``: whether verdicts tell the target's token at every node."""
        self._line = line
        self._oracle = oracle
        self._meter = meter
        self._named = named
        self._features = wants_features(line)
        self._root = 0  # index of the last committed token
        self.rounds = 0
        """Verifications so far."""

    @property
    def context(self) -> int:
        return self._line.prompt_tokens + self._root

    def begin(self) -> Verdict:
        self._meter.prompt(self._line.prompt_tokens, self._line.images)
        verdict = Verdict((), (self._line.tokens[0],))
        return self._with_features(verdict, self._line.prompt_tokens)

    def close(self) -> None:
        """Nothing is held elsewhere."""

    def verify(self, tree: TokenTree, meanwhile: Meanwhile | None = None) -> Verdict:
        root = self._root

        def pick(row: int, path: Sequence[int]) -> int:
            return self._oracle.following(root, path)

        verdict = walk(tree, pick)
        self._meter.verification(len(tree) + 1, self.context, len(verdict.tokens))
        if self._named:
            verdict = replace(verdict, named=self._everywhere(tree))
        self._root += len(verdict.tokens)
        self.rounds += 1
        return self._with_features(verdict, len(verdict.tokens))

    def _everywhere(self, tree: TokenTree) -> tuple[int, ...]:
        """The target's token at every row."""
        paths: list[tuple[int, ...]] = [()]
        for token, parent in zip(tree.tokens, tree.parents, strict=True):
            paths.append((*paths[parent], token))
        return tuple(self._at(path) for path in paths)

    def _at(self, path: tuple[int, ...]) -> int:
        if self._oracle.on_path(self._root, path):
            return self._oracle.following(self._root, path)
        return self._oracle.children(self._root, path).named

    def _with_features(self, verdict: Verdict, rows: int) -> Verdict:
        if not self._features:
            return verdict
        return replace(verdict, features=np.zeros((rows, 1), dtype=np.float32))
