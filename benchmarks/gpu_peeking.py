"""A draft that knows the answer, so that random weights have rounds that are really accepted.

It proposes what plain decoding said, each token behind a wrong one, and goes astray somewhere:
accepted rows never lie together, so every round moves them in the cache, and a text that is still
the plain one says that rows, masks and positions were right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.gpu_question import Question
from edgespec.acceptance import Verdict
from edgespec.sampling import Sampler
from edgespec.sizing import Eagle2, Growth, Root, Setting, Sizer
from edgespec.tree import ROOT, Candidates
from edgespec_runtime.drafts import Answered, NoDraft
from edgespec_runtime.inputs import VisualInputs
from edgespec_runtime.model import Model
from edgespec_runtime.request import Request
from edgespec_runtime.verifiers.opening import Question as Asked
from edgespec_runtime.verifiers.opening import open_here

DEPTH = 6
POLICY = Eagle2(nodes=2 * DEPTH, depth=DEPTH, top_k=2)


class PeekingDraft(NoDraft):
    """See ``Drafter``."""

    def __init__(self, answer: Sequence[int], vocab: int, seed: int = 0) -> None:
        self._answer = answer
        self._vocab = vocab
        self._rng = np.random.default_rng(seed)
        self._at = 0  # index of the last committed token

    def grow(self, sizer: Sizer, growth: Growth, root: Root) -> Candidates:
        candidates = Candidates()
        right = int(self._rng.integers(0, DEPTH + 1))
        parent = ROOT
        for depth, token in enumerate(self._answer[self._at + 1 : self._at + 1 + DEPTH]):
            if depth >= root.depth_left:
                break
            shift = int(self._rng.integers(1, self._vocab // 2))
            wrong = (token + shift) % self._vocab
            told = token if depth < right else (token + self._vocab // 2) % self._vocab
            candidates.extend(parent, [wrong, told], [-0.1, -0.2])
            parent = len(candidates) - 1
        return candidates

    def foresee(self, chosen: Sequence[int], root: Root, answered: Answered) -> None:
        """The target is here."""

    def commit(self, chosen: Sequence[int], verdict: Verdict) -> None:
        self._at += len(verdict.tokens)


def peeked(
    model: Model, question: Question, plain: Sequence[int], settings: dict[str, Any]
) -> tuple[list[int], float]:
    """The text of a request that is drafted for by somebody who knows ``plain``, and its accepted
    length."""
    vocab = len(model.tables["target"])
    asked = Asked(
        prompt=question.prompt,
        pictures=[question.image],
        visual=VisualInputs(dict(model.graphs), question.pixels, None),
        sampler=Sampler(model.sampling(**settings), vocab),
        max_new_tokens=len(plain),
        max_nodes=POLICY.max_nodes,
        levels=POLICY.levels,
        features=False,
    )
    setting = Setting(prompt_tokens=len(question.ids))
    request = Request(
        open_here(model.steps["target"], model.tables["target"], asked),
        PeekingDraft(plain, vocab),
        POLICY.start(setting),
        model.tokenizer,
        eos_ids=(),
        stop=(),
        max_new_tokens=len(plain),
        setting=setting,
    )
    return [record.token for record in request], request.stats.accepted_length
