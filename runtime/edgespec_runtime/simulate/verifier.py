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
from edgespec_runtime.simulate.network import Network
from edgespec_runtime.simulate.oracle import Oracle
from edgespec_runtime.verifiers import Meanwhile


class ReplayVerifier:
    """One replay's target."""

    engine_s = 0.0

    def __init__(
        self,
        line: Line,
        oracle: Oracle,
        meter: Meter,
        network: Network | None = None,
        *,
        named: bool,
    ) -> None:
        """``network``: the way to it, where it runs elsewhere; ``named``: whether verdicts tell the
        target's token at every node."""
        self._line = line
        self._oracle = oracle
        self._meter = meter
        self._network = network
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
        away_ms = self._network.rtt_ms if self._network else 0.0
        self._meter.clock.ms += away_ms
        verdict = Verdict((), (self._line.tokens[0],), away_ms=away_ms)
        return self._with_features(verdict, self._line.prompt_tokens)

    def close(self) -> None:
        """Nothing is held elsewhere."""

    def verify(self, tree: TokenTree, meanwhile: Meanwhile | None = None) -> Verdict:
        clock, context = self._meter.clock, self.context
        verdict = self._walked(tree)
        started = clock.ms
        self._meter.verification(len(tree) + 1, context, len(verdict.tokens))
        if self._network is not None:
            verdict = replace(verdict, away_ms=self._wait(clock.ms - started, meanwhile))
        return verdict

    def _walked(self, tree: TokenTree) -> Verdict:
        """What the target says, committed; takes no time."""
        root = self._root

        def pick(row: int, path: Sequence[int]) -> int:
            return self._oracle.following(root, path)

        verdict = walk(tree, pick)
        if self._named:
            verdict = replace(verdict, named=self._everywhere(tree))
        self._root += len(verdict.tokens)
        self.rounds += 1
        return self._with_features(verdict, len(verdict.tokens))

    def _wait(self, server_ms: float, meanwhile: Meanwhile | None) -> float:
        """The way there and back, the server's time being over; what the draft does in both takes
        none, unless it takes longer. Returns the milliseconds beyond the server's."""
        assert self._network is not None
        clock = self._meter.clock
        answer = clock.ms + self._network.request_ms(1)
        clock.ms -= server_ms
        started = clock.ms
        if meanwhile is not None:
            meanwhile(lambda: clock.ms >= answer)
        clock.ms = max(clock.ms, answer)
        return clock.ms - started - server_ms

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
