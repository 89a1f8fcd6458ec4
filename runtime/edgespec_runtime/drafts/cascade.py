"""Two drafters, one tree: a model's nodes and, beside and below them, those of n-grams.

The policy's ``choose`` sees all of them and cuts them under its one budget. ``policy.top_k`` bounds
what each part proposes below a node, so a node can have twice as many children here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgespec.acceptance import Verdict
from edgespec.sizing import Growth, Root, Sizer
from edgespec.tree import ROOT, Candidates
from edgespec_runtime.drafts.base import Answered, Drafter
from edgespec_runtime.drafts.ngram import NgramDraft

TINY = 1e-9
"""Stands for a probability that float32 says is zero."""


class CascadeDraft:
    """One request's drafter: the model's arena, filled up with n-grams."""

    def __init__(self, model_draft: Drafter, ngram_draft: NgramDraft) -> None:
        self._model = model_draft
        self._ngram = ngram_draft

    @property
    def model(self) -> Drafter:
        """The part with a model."""
        return self._model

    @property
    def engine_s(self) -> float:
        return self._model.engine_s

    @property
    def prepared(self) -> bool:
        return self._model.prepared

    @property
    def unseen(self) -> int:
        return self._model.unseen

    @property
    def ready(self) -> int:
        return self._model.ready

    @property
    def calls(self) -> tuple[int, ...]:
        return self._model.calls

    def begin(self, first: Verdict) -> None:
        self._model.begin(first)
        self._ngram.begin(first)

    def prepare(self) -> None:
        self._model.prepare()
        self._ngram.prepare()

    def grow(self, sizer: Sizer, growth: Growth, root: Root) -> Candidates:
        # The model grows alone and first: its beams must see no foreign node.
        candidates = self._model.grow(sizer, growth, root)
        # Those of n-grams without a floor: beside the model's, paths become likelier.
        merge(candidates, self._ngram.paths(sizer.policy, root))
        return candidates

    def foresee(self, chosen: Sequence[int], root: Root, answered: Answered) -> None:
        self._model.foresee(chosen, root, answered)  # a look-up takes no time worth saving

    def commit(self, chosen: Sequence[int], verdict: Verdict) -> None:
        # Indices from behind the model's own are n-grams' to it: candidates it never expanded.
        self._model.commit(chosen, verdict)
        self._ngram.commit(chosen, verdict)


def merge(arena: Candidates, extra: Candidates) -> None:
    """Adds the nodes of ``extra`` to ``arena``, whose own keep their indices.

    A node is the same in both if its path is; it gets the better of its two log-probabilities given
    its parent. One that is new beside nodes of ``arena`` gets no more than those leave it: n-grams
    speak where the model is silent or unsure, and do not shout it down where it is sure. Scores are
    then summed up along their paths: a sum of what is never above zero cannot lift a child over its
    parent.
    """
    logprobs = _given_parent(arena)
    known = {key: i for i, key in enumerate(zip(arena.parents, arena.tokens, strict=True))}
    left = _left_over(arena.parents, logprobs)
    places = {ROOT: ROOT}
    for i, logprob in enumerate(_given_parent(extra)):
        parent, token = places[extra.parents[i]], extra.tokens[i]
        place = known.get((parent, token))
        if place is None:
            place = len(arena)
            logprobs.append(min(logprob, left.get(parent, 0.0)))
            arena.extend(parent, [token], [logprobs[place]])
        else:
            logprobs[place] = max(logprobs[place], logprob)
        places[i] = place
    for i, parent in enumerate(arena.parents):  # parents come first, so theirs are final
        arena.scores[i] = logprobs[i] + (arena.scores[parent] if parent != ROOT else 0.0)


def _left_over(parents: Sequence[int], logprobs: Sequence[float]) -> dict[int, float]:
    """Of every node with children: the log of the most that a token which is none of them can have.

    Children are a model's best: another token has no more than the least of them, and no more than
    what all of them leave of 1.
    """
    mass: dict[int, float] = {}
    least: dict[int, float] = {}
    for parent, logprob in zip(parents, logprobs, strict=True):
        p = math.exp(logprob)
        mass[parent] = mass.get(parent, 0.0) + p
        least[parent] = min(least.get(parent, 1.0), p)
    return {parent: math.log(max(min(1.0 - mass[parent], least[parent]), TINY)) for parent in mass}


def _given_parent(candidates: Candidates) -> list[float]:
    """Every node's log-probability given its parent: the difference of their scores."""
    scores, parents = candidates.scores, candidates.parents
    return [
        score if parent == ROOT or score == -math.inf else score - scores[parent]
        for score, parent in zip(scores, parents, strict=True)
    ]
