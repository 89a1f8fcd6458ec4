"""Rounds by rote: a growth, then a verification, as decoding has them.

In a real round the draft's weights are cold because the target has just run, and the other way
round. So draft calls are clocked behind a verification, and verifications behind a growth. Those of
a single row are plain decoding, where nothing is drafted: they are clocked behind another one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from time import perf_counter
from typing import TypeVar

import numpy as np

from edgespec.sizing import Growth, Root
from edgespec.tree import TokenTree
from edgespec_runtime.model import Model
from edgespec_runtime.profiling.measuring.rigs import DraftRig, Source, TargetRig
from edgespec_runtime.profiling.measuring.samples import Samples
from edgespec_runtime.profiling.measuring.scripts import (
    ENDLESS,
    Script,
    caterpillar,
    clock_growth,
    ramp,
)
from edgespec_runtime.profiling.measuring.sizes import SEGMENTS, Sizes

T = TypeVar("T")
DEPTH = 4
"""Draft steps of a round beyond its first call."""
CALLS = {
    Growth.STEPS: ("draft_first", "draft_step"),
    Growth.CHAIN: ("chain_first", "chain_next"),
}
"""Operations of the root's call and of the further ones."""


@dataclass(frozen=True)
class Growing:
    """A growth over ``context`` rows of the draft that takes in ``unseen`` rows first."""

    context: int
    unseen: int
    script: Script


@dataclass(frozen=True)
class Round:
    """One round; without a growth where the bundle has no draft, or one row is verified."""

    growing: Growing | None
    context: int
    rows: int


class RoundBench:
    """Runs rounds by rote and clocks their calls."""

    def __init__(self, model: Model, sizes: Sizes, source: Source) -> None:
        self._sizes, self._source = sizes, source
        self._steps = model.draft.chain_steps if model.draft else 0
        # As many steps as deal out every width, and no fewer than trees usually have.
        depth = self._depth = max(DEPTH, -(-len(sizes.widths) // max(len(sizes.unseen), 1)))
        self._target = TargetRig(model, source, sizes.contexts, sizes.rows[-1])
        self._draft: DraftRig | None = None
        if model.draft:
            # The widest of every script, and as much again for what its ramps may take.
            room = sizes.unseen[-1] + max(2 * depth * sizes.widths[-1], SEGMENTS * self._steps)
            self._draft = DraftRig(model, source, sizes.draft_contexts, room)

    def deal(self, rng: np.random.Generator) -> list[list[Round]]:
        """One pass: every verification and every growth at least once. Rounds that follow each
        other are of one context, as a request's are; all orders are new every time."""
        sizes = self._sizes
        count = max(len(sizes.contexts), len(sizes.draft_contexts))
        return _shuffled([self._group(index, rng) for index in range(count)], rng)

    def _group(self, index: int, rng: np.random.Generator) -> list[Round]:
        """The rounds of one context of the target and the one of the draft that belongs to it."""
        sizes = self._sizes
        context = sizes.contexts[min(index, len(sizes.contexts) - 1)]
        trees = _shuffled([rows for rows in sizes.rows if rows > 1], rng)
        growths: list[Growing | None] = [None]
        if sizes.draft_contexts:
            own = sizes.draft_contexts[min(index, len(sizes.draft_contexts) - 1)]
            growths = [*_shuffled(list(self._growths(own, rng)), rng)]
        count = max(len(trees), len(growths))
        rounds = [
            Round(growing, context, rows)
            for growing, rows in zip(islice(cycle(growths), count), cycle(trees), strict=False)
        ]
        return _shuffled([*rounds, Round(None, context, 1)], rng)

    def run(self, planned: Round, samples: Samples) -> None:
        """Clocks one round."""
        growing = planned.growing
        tokens = self._source.different(planned.rows - 1)
        tree = caterpillar(tokens)
        if growing is not None:
            assert self._draft is not None
            drafter = self._draft.at(growing.context, growing.unseen)
            root = Root(ENDLESS, growing.context, growing.unseen, True, 1)
            first, further = CALLS[growing.script.growth]
            calls = clock_growth(drafter, growing.script, root)
            samples.add(first, *calls[0], growing.context)
            for rows, ms in calls[1:]:
                if rows in self._sizes.widths:  # else it only made room for a wider one
                    samples.add(further, rows, ms, growing.context)
        ms = self._verify(planned.context, tree)
        if not tokens:
            ms = self._verify(planned.context, tree)
        samples.add("verify", planned.rows, ms, planned.context)

    def _verify(self, context: int, tree: TokenTree) -> float:
        verifier = self._target.at(context)
        started = perf_counter()
        verifier.verify(tree)
        return (perf_counter() - started) * 1e3

    def _growths(self, context: int, rng: np.random.Generator) -> Iterator[Growing]:
        """Every count of unseen rows with both kinds of growth. A draft warms up from call to call
        of a round, so steps are clocked in rounds as deep as trees are, every width early and late
        in turn."""
        sizes, depth = self._sizes, self._depth
        count = -(-len(sizes.unseen) * depth // len(sizes.widths))
        widths = [w for _ in range(count) for w in _shuffled(sizes.widths, rng)]
        for i, unseen in enumerate(_shuffled(sizes.unseen, rng)):
            calls = ramp(widths[i * depth : (i + 1) * depth], sizes.top_k)
            yield Growing(context, unseen, Script(Growth.STEPS, calls, sizes.top_k))
            if self._steps:
                tips = (1,) * (SEGMENTS - 1)
                yield Growing(context, unseen, Script(Growth.CHAIN, tips, sizes.top_k))


def _shuffled(items: Sequence[T], rng: np.random.Generator) -> list[T]:
    return [items[i] for i in rng.permutation(len(items))]
