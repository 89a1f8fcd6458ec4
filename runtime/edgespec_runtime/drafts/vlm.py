"""A stand-alone small LLaVA as drafter (Spec-LLaVA's arrangement).

Its prompt holds the same text and its own, possibly compressed, visual tokens at contiguous
positions of its own. Tree rows it computed while drafting are kept when they are accepted, so only
the tokens it has not seen (the bonus, an unexpanded leaf) are fed again at the next round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from edgespec.acceptance import Verdict
from edgespec.errors import RemoteError
from edgespec.tree import Candidates
from edgespec_runtime.drafts.coupling import Coupling
from edgespec_runtime.drafts.growing import Chain, GrowingDraft, Rows
from edgespec_runtime.engines.base import StepSession
from edgespec_runtime.prefill import prefill
from edgespec_runtime.tables import Table

Floats = npt.NDArray[np.float32]
OUTPUTS = ("topk_logprobs", "topk_ids")
"""What a draft session must be opened with."""


class VlmDraft(GrowingDraft):
    """One request's drafter over a draft step session."""

    def __init__(
        self,
        session: StepSession,
        table: Table,
        prompt: Callable[[], Floats],
        max_positions: int,
        chain: Chain | None = None,
        coupling: Coupling | None = None,
    ) -> None:
        """``prompt`` computes the draft's prompt embeddings [L, H] when they are needed."""
        super().__init__(session, max_positions, chain, coupling)
        self._table = table
        self._prompt = prompt
        self._unseen: list[int] = []  # committed tokens whose rows are not in the cache yet

    @property
    def unseen(self) -> int:
        return len(self._unseen)

    def begin(self, first: Verdict) -> None:
        self._unseen = list(first.tokens)

    def prepare(self) -> None:
        self.prepared = True
        embeds = self._prompt()
        if len(embeds) < self._max_positions:
            prefill(self._session, embeds)
        else:
            self._max_positions = 0  # the prompt alone is too long for the draft: never propose

    def commit(self, chosen: Sequence[int], verdict: Verdict) -> None:
        kept: list[int] = []
        for row in verdict.rows:
            rows = self._rows.get(chosen[row - 1])
            if rows is None:
                break
            kept = rows
        self._session.cache.commit(kept)
        self._unseen += verdict.tokens[len(kept) :]

    # --- going ahead of the target and back (``ahead``)

    @property
    def cached(self) -> int:
        """Committed rows in the cache."""
        return self._session.cache.length

    def first_token(self, context: int) -> int:
        """Takes in the prompt and returns the draft's own first token, ``context`` being the rows
        of the target's prompt."""
        self.prepared = True
        embeds = self._prompt()
        rows = len(embeds)
        if rows >= self._max_positions:
            raise RemoteError("the prompt is too long for the draft to answer it alone")
        prefill(self._session, embeds[:-1])
        noise = self._coupling.rows([context]) if self._coupling else None
        outputs = self._refeed(Rows(embeds[-1:], range(rows - 1, rows)), noise)
        return int(outputs[1][0, 0])

    def next_token(self, context: int) -> int:
        """Feeds the unseen rows; returns the draft's own best token behind them, ``context`` being
        the target's cached rows as a ``Root`` tells them."""
        noise = self._coupling.rows([context + 1]) if self._coupling else None
        tokens = self._refeed(self._take_unseen(), noise)[1]
        return int(tokens[0, 0])

    def rewind(self, cached: int, unseen: Sequence[int]) -> None:
        """Keeps ``cached`` rows, behind which the text goes on with the tokens ``unseen``."""
        cache = self._session.cache
        cache.length, cache.pending = cached, 0
        self._unseen = list(unseen)

    def _next_position(self) -> int:
        return self._session.cache.length + len(self._unseen)

    def _take_unseen(self) -> Rows:
        start, unseen = self._session.cache.length, self._unseen
        self._unseen = []
        return Rows(self._table[unseen], range(start, start + len(unseen)))

    def _beam_rows(self, candidates: Candidates, beam: Sequence[int], position: int) -> Rows:
        depths, tokens = candidates.depths, candidates.tokens
        return Rows(self._table[[tokens[i] for i in beam]], [position + depths[i] for i in beam])
