"""The target on this device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from edgespec.acceptance import Verdict, walk
from edgespec.errors import EngineError
from edgespec.sampling import Sampler
from edgespec.tree import TokenTree
from edgespec_runtime.engines.base import Array, StepSession
from edgespec_runtime.prefill import prefill

Floats = npt.NDArray[np.float32]
BROKEN = "the target's logits are not finite; the weights or the engine are broken"


class LocalVerifier:
    """One request over a target step session.

    With ``features`` the session's second output is ``hidden``, and verdicts carry it.
    """

    def __init__(
        self,
        session: StepSession,
        table: Floats,
        prompt: Callable[[], Floats],
        prompt_ids: Sequence[int],
        sampler: Sampler,
        *,
        features: bool = False,
    ) -> None:
        self._session = session
        self._table = table
        self._prompt = prompt
        self._sampler = sampler
        self._features = features
        self._root = -1  # the last committed token; its row is not in the cache yet
        sampler.observe(prompt_ids)

    @property
    def engine_s(self) -> float:
        return self._session.engine_s

    @property
    def context(self) -> int:
        return self._session.cache.length

    def begin(self) -> Verdict:
        logits, features = prefill(self._session, self._prompt(), features=self._features)
        self._root = self._pick(logits, 0, ())
        self._sampler.observe((self._root,))
        return Verdict((), (self._root,), features)

    def verify(self, tree: TokenTree) -> Verdict:
        session = self._session
        cached, rows = session.cache.length, len(tree) + 1
        mask = np.ones((rows, cached + rows), dtype=np.bool_)
        tree.write_mask(mask[:, cached:])
        positions = [cached, *(cached + depth for depth in tree.depths)]
        embeds = self._table[[self._root, *tree.tokens]]
        logits, *hidden = session.step(embeds, positions, mask)  # [rows, V], [rows, F]

        # The root's own row is still pending, so the token after it is one position further.
        if self._sampler.plain_argmax:
            best = self._best(logits)
            verdict = replace(walk(tree, lambda row, path: best[row]), named=tuple(best))
        else:
            verdict = walk(tree, lambda row, path: self._pick(logits[row], 1 + len(path), path))
        kept = [0, *verdict.rows]
        session.cache.commit(kept)
        self._root = verdict.tokens[-1]
        self._sampler.observe(verdict.tokens)
        return replace(verdict, features=hidden[0][kept]) if hidden else verdict

    def _pick(self, logits: Array, ahead: int, path: Sequence[int]) -> int:
        token = self._sampler.pick(logits, self._session.cache.length + ahead, path)
        if not np.isfinite(logits[token]):
            raise EngineError(BROKEN)
        return token

    def _best(self, logits: Array) -> list[int]:
        """Arg-max of every row at once: what greedy decoding needs, in one call."""
        tokens = logits.argmax(axis=1)
        if not np.isfinite(logits[np.arange(len(tokens)), tokens]).all():
            raise EngineError(BROKEN)
        best: list[int] = tokens.tolist()
        return best
