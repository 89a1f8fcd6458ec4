"""One answer of the target for an open session: its state, its rows, and the work it asks for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgespec.acceptance import Verdict
from edgespec.sampling import Sampler
from edgespec.tree import TokenTree
from edgespec_runtime.engines.base import Array, Ask, StepPool, StepSession
from edgespec_runtime.inputs import splice
from edgespec_runtime.prefill import CHUNK, prefill
from edgespec_runtime.server.contexts import Context
from edgespec_runtime.server.slots import Slot
from edgespec_runtime.server.target import Target
from edgespec_runtime.server.terms import Terms
from edgespec_runtime.verifiers import LocalVerifier
from edgespec_runtime.wire.features import encode
from edgespec_runtime.wire.refusal import Reason, Refusal
from edgespec_runtime.wire.state import SessionState

Floats = npt.NDArray[np.float32]

NOISE_KEPT = 2
"""Positions: the one behind a rejected guess is drawn for again. A server has many sessions."""


@dataclass(frozen=True)
class Outcome:
    """What a piece of an answer's work brought."""

    verdict: Verdict
    features: bytes
    """Of the rows it committed, as they travel."""
    reused: int = 0
    """Rows of context that were cached."""


class Answer:
    """Holds ``slot`` for one epoch. ``start``, ``ask``, ``settle`` and ``spoil`` belong to the
    engine's thread, everything else to the event loop."""

    def __init__(
        self,
        target: Target,
        pool: StepPool,
        slot: Slot,
        state: SessionState,
        prompt_ids: Sequence[int],
        terms: Terms,
    ) -> None:
        """``prompt_ids``: expanded."""
        self.slot, self.state, self.terms = slot, state, terms
        outputs = ("logits", "hidden") if terms.featured else ("logits",)
        self.session: StepSession = pool.open(slot.cache, outputs)
        self._table = target.table
        self._embeds = np.empty((0, target.hidden), dtype=np.float32)
        self._accepted = tuple(state.tokens)
        self._root = -1  # the last committed token; its row is not in the cache yet
        self._verifier = LocalVerifier(
            self.session,
            target.table,
            lambda: self._embeds,
            prompt_ids,
            Sampler(terms.sampling, target.vocab, NOISE_KEPT),
            features=terms.featured,
        )

    @property
    def full(self) -> bool:
        """Whether it has all the tokens that were asked for."""
        return self.state.committed_len >= self.terms.max_new_tokens

    def check_room(self) -> None:
        """Raises Refusal INVALID for a round behind the last token that was asked for."""
        if self.full:
            raise Refusal(
                Reason.INVALID,
                f"the answer has the {self.terms.max_new_tokens} tokens that it was opened for",
            )

    def start(
        self, context: Context, tenant: str, slots: Sequence[Slot]
    ) -> Iterator[Outcome | None]:
        """Takes in the context, a chunk per item; the last item is what came of it.

        Rows are taken over from the slot's own older content or another of the tenant's ``slots``.
        A first open that asks for features has every row fed, since nobody keeps features; one that
        resumes brings none, since the client has those of all that it committed.
        """
        try:
            yield from self._start(context, tenant, slots)
        except Exception:
            self.spoil()
            raise

    def ask(self, tree: TokenTree) -> Ask:
        """What verifying ``tree`` needs of the engine."""
        return self._verifier.ask(tree)

    def settle(self, tree: TokenTree, outputs: Sequence[Array]) -> Outcome:
        """Commits what the engine's answer to ``ask`` accepts."""
        verdict = self._verifier.settle(tree, outputs)
        self.slot.note([self._root, *verdict.tokens[:-1]])
        self._root = verdict.tokens[-1]
        return Outcome(verdict, self._encoded(verdict.features))

    def spoil(self) -> None:
        """Its work failed: the rows may be broken."""
        self.slot.spoil()

    def _start(
        self, context: Context, tenant: str, slots: Sequence[Slot]
    ) -> Iterator[Outcome | None]:
        accepted, cache = self._accepted, self.slot.cache
        featured = self.terms.featured and not accepted
        behind = np.array(accepted[:-1], dtype=np.int64)
        codes = np.concatenate([context.codes, behind])
        # The last row of a prompt names the first token: that one is always fed.
        most = len(codes) if accepted else len(codes) - 1
        reused = self.slot.prepare(tenant, codes, 0 if featured else most, slots)
        self._embeds = self._embedded(context)
        embeds = np.concatenate([self._embeds, self._table[behind]])
        seen: list[Array] = []
        while len(embeds) - cache.length > CHUNK:
            start, end = cache.length, cache.length + CHUNK
            rows, where = embeds[start:end], range(start, end)
            features = prefill(self.session, rows, where, features=self.terms.featured)[1]
            self.slot.note(codes[start:end])
            seen += [features] if featured and features is not None else []
            yield None
        held = cache.length
        verdict = self._verifier.resume(accepted) if accepted else self._verifier.begin()
        self.slot.note(codes[held:])
        self._root = (accepted or verdict.tokens)[-1]
        self._embeds = self._embeds[:0].copy()
        seen += [] if verdict.features is None else [verdict.features]
        yield Outcome(verdict, self._encoded(np.concatenate(seen) if seen else None), reused)

    def _embedded(self, context: Context) -> Floats:
        """The prompt's rows [L, H]."""
        visual = np.stack(context.visual) if context.visual else None
        return splice(context.ids, context.spans, self._table, visual)

    def _encoded(self, features: Array | None) -> bytes:
        return b"" if features is None else encode(features, self.terms.features)
