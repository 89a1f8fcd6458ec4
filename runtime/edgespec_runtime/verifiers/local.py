"""The target on this device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import isfinite

import numpy as np
import numpy.typing as npt

from edgespec.acceptance import Verdict, walk
from edgespec.errors import EngineError
from edgespec.sampling import Sampler
from edgespec.tree import TokenTree
from edgespec_runtime.engines.base import Array, Ask, StepSession
from edgespec_runtime.prefill import prefill
from edgespec_runtime.tables import Table
from edgespec_runtime.verifiers.base import Meanwhile

Floats = npt.NDArray[np.float32]
BROKEN = "the target's logits are not finite; the weights or the engine are broken"


class LocalVerifier:
    """One request over a target step session.

    The session's first output is ``logits``; where it is ``named``, the first two are ``best_ids``
    and ``best_logits``, the graph's own arg-max, which greedy verification needs nothing beside.
    With ``features`` the last output is ``hidden``, and verdicts carry it. ``exact``: an
    odd number of rows is given one more, whose result nobody reads: engines have other kernels for
    single rows, also for one that is left over when they take rows by twos, and with rounded
    weights those may choose another token than the others do.
    """

    def __init__(
        self,
        session: StepSession,
        table: Table,
        prompt: Callable[[], Floats],
        prompt_ids: Sequence[int],
        sampler: Sampler,
        *,
        features: bool = False,
        named: bool = False,
        exact: bool = False,
    ) -> None:
        self._session = session
        self._table = table
        self._prompt = prompt
        self._sampler = sampler
        self._features = features
        self._named = named
        self._exact = exact
        self._prompt_length = len(prompt_ids)
        self._root = -1  # the last committed token; its row is not in the cache yet
        sampler.observe(prompt_ids)

    @property
    def engine_s(self) -> float:
        return self._session.engine_s

    @property
    def context(self) -> int:
        return self._session.cache.length

    def begin(self) -> Verdict:
        """See ``Verifier.begin``. Leading rows that the cache holds already, all but the last of
        the prompt at most, are not fed again; features are those of the fed rows."""
        outputs, features = self._feed(self._prompt(), features=self._features)
        self._root = self._best(outputs)[0] if self._named else self._pick(outputs[0][0], 0, ())
        self._sampler.observe((self._root,))
        return Verdict((), (self._root,), features)

    def resume(self, accepted: Sequence[int]) -> Verdict:
        """Takes up an answer of which ``accepted`` tokens (at least one) are known, in place of
        ``begin``. The cache may hold leading rows of the prompt and of ``accepted`` but its last
        already. The verdict names no token, and has no features: they came with the tokens."""
        behind = self._table[list(accepted[:-1])]
        known = self._session.cache.length >= self._prompt_length
        start = self._prompt_length if known else 0
        embeds = behind if known else np.concatenate([self._prompt(), behind])
        self._feed(embeds, start)
        self._root = accepted[-1]
        self._sampler.observe(accepted)
        return Verdict((), ())

    def _feed(
        self, embeds: Floats, start: int = 0, features: bool = False
    ) -> tuple[list[Array], Array | None]:
        """Commits what the cache lacks of the context's rows ``embeds``, which count from row
        ``start``."""
        cached = self._session.cache.length
        where = range(cached, start + len(embeds))
        return prefill(self._session, embeds[cached - start :], where, features=features)

    def verify(self, tree: TokenTree, meanwhile: Meanwhile | None = None) -> Verdict:
        ask = self.ask(tree)
        return self.settle(tree, self._session.step(ask.embeds, ask.positions, ask.mask))

    def close(self) -> None:
        """Nothing is held elsewhere."""

    def ask(self, tree: TokenTree) -> Ask:
        """What verifying ``tree`` needs of the engine: for one step, or a part of a batch."""
        cached, asked = self._session.cache.length, len(tree) + 1
        spare = asked % 2 if self._exact else 0
        mask = np.ones((asked + spare, cached + asked + spare), dtype=np.bool_)
        if len(mask) == 1:  # plain decoding; what numpy need not do is time, as caches are cold
            return Ask(self._table[self._root : self._root + 1], [cached], mask)
        tree.write_mask(mask[:asked, cached : cached + asked])
        mask[:asked, cached + asked :] = False
        tokens = [self._root, *tree.tokens, *[self._root] * spare]
        positions = [cached, *(cached + depth for depth in tree.depths), *[cached] * spare]
        return Ask(self._table[tokens], positions, mask)

    def settle(self, tree: TokenTree, outputs: Sequence[Array]) -> Verdict:
        """Walks ``tree`` by the engine's answer to ``ask`` (the session's outputs, of all rows,
        which are pending in the cache), and commits what is accepted."""
        session = self._session
        # The root's own row is still pending, so the token after it is one position further.
        if self._sampler.plain_argmax:
            best = self._best(outputs)[: len(tree) + 1]
            verdict = walk(tree, lambda row, path: best[row], named=tuple(best))
        else:
            logits = outputs[0]
            verdict = walk(tree, lambda row, path: self._pick(logits[row], 1 + len(path), path))
        kept = [0, *verdict.rows]
        session.cache.commit(kept)
        self._root = verdict.tokens[-1]
        self._sampler.observe(verdict.tokens)
        return replace(verdict, features=outputs[-1][kept]) if self._features else verdict

    def _pick(self, logits: Array, ahead: int, path: Sequence[int]) -> int:
        token = self._sampler.pick(logits, self._session.cache.length + ahead, path)
        if not np.isfinite(logits[token]):
            raise EngineError(BROKEN)
        return token

    def _best(self, outputs: Sequence[Array]) -> list[int]:
        """Arg-max of every row: all that greedy decoding needs."""
        if self._named:
            best: list[int] = outputs[0].tolist()
            values = outputs[1].tolist()
        else:
            best = [int(row.argmax()) for row in outputs[0]]
            values = [row[token] for row, token in zip(outputs[0], best, strict=True)]
        if not all(map(isfinite, values)):
            raise EngineError(BROKEN)
        return best
