"""A feature-level draft: EAGLE and its kin, fed with the target's features.

Row i of its sequence holds the embedding of token i + 1 and the target's feature of token i, at
position i (section 1 of the facts). Committed rows are always made of true features; the rows of a
drafted tree feed on the draft's own outputs and are thrown away after the round. All state belongs
to the request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgespec.acceptance import Verdict
from edgespec.tree import Candidates
from edgespec.visual import run_positions
from edgespec_runtime.drafts.coupling import Coupling
from edgespec_runtime.drafts.growing import Chain, GrowingDraft, Rows
from edgespec_runtime.engines.base import Array, StepSession
from edgespec_runtime.inputs import Span
from edgespec_runtime.prefill import prefill
from edgespec_runtime.tables import Table

Floats = npt.NDArray[np.float32]
OUTPUTS = ("topk_logprobs", "topk_ids", "feedback")
"""What a feature-level draft's step session must be opened with."""


@dataclass(frozen=True)
class ImageRows:
    """An image run as the draft sees it, for every image of a request."""

    embeds: Floats
    """[N, P', H]: the token side of the rows."""
    hidden: Floats
    """[N, P', H]: zeros where the rows carry no features."""
    offsets: Floats | None = None
    """[N, H]: ViSpec's global vectors, as the rows behind each image carry them."""


@dataclass(frozen=True)
class FeaturePrompt:
    """What a request's prompt is made of, until the target's features are known."""

    ids: npt.NDArray[np.int64]
    spans: Sequence[Span]
    table: Table
    """The draft's token table: its part of a row, ready made."""
    rule: str
    """Where compressed image rows sit (``edgespec.visual``)."""
    images: Callable[[Floats, Floats], ImageRows]
    """(hidden [N, P, H] at the image rows, question [1, H]) -> the image runs."""
    encode: Callable[[Floats], Floats]
    """Target features [R, F] -> hidden states [R, H]."""

    def rows(self, first: Verdict) -> tuple[Rows, Floats | None]:
        """All rows of the prompt, the last with the first token's embedding, and the offset that
        later tokens carry."""
        assert first.features is not None, "a feature-level draft needs the target's features"
        hidden = self.encode(first.features)
        following = np.concatenate([self.ids[1:], first.tokens])
        embeds: list[Floats] = []
        states: list[Floats] = []
        positions: list[int] = []
        offset: Floats | None = None

        def text(start: int, end: int) -> None:
            part = self.table[following[start:end]]
            embeds.append(part if offset is None else part + offset)
            states.append(hidden[start:end])
            positions.extend(range(start, end))

        at = 0
        runs = self._runs(hidden) if self.spans else None
        for index, (start, end) in enumerate(self.spans):
            assert runs is not None
            # Rows are one ahead of their embeddings, so none holds a prompt's very first token.
            cut = int(start == 0 and len(runs.embeds[index]) == end - start)
            start, end = max(start - 1, 0), end - 1
            text(at, start)
            embeds.append(runs.embeds[index][cut:])
            states.append(runs.hidden[index][cut:])
            count, length = len(embeds[-1]), end - start
            kept = count == length
            positions += range(start, end) if kept else run_positions(
                self.rule, start, length, count
            )  # fmt: skip
            offset = runs.offsets[index] if runs.offsets is not None else None
            at = end
        text(at, len(following))
        return Rows(np.concatenate(embeds), positions, np.concatenate(states)), offset

    def _runs(self, hidden: Floats) -> ImageRows:
        # The row before an image that stands first does not exist: its own first one serves.
        where = [np.maximum(np.arange(start - 1, end - 1), 0) for start, end in self.spans]
        at_images = np.stack([hidden[rows] for rows in where])
        asked = min(self.spans[-1][1], len(hidden) - 1)
        question = hidden[asked:].mean(axis=0, keepdims=True)
        return self.images(at_images, question)


class FeatureDraft(GrowingDraft):
    """One request's drafter over a feature-level draft's step session."""

    def __init__(
        self,
        session: StepSession,
        prompt: FeaturePrompt,
        max_positions: int,
        chain: Chain | None = None,
        coupling: Coupling | None = None,
    ) -> None:
        super().__init__(session, max_positions, chain, coupling)
        self._prompt = prompt
        self._first: Verdict | None = None  # until the prompt is taken in
        self._last_prompt_row: Rows | None = None
        self._position = len(prompt.ids)  # behind the last committed row
        # Committed tokens, and the target's features of the ones before them, not fed yet.
        self._tokens_unseen: list[int] = []
        self._features_unseen: list[Floats] = []
        self._feedback: dict[int, Floats] = {}  # expanded candidate (or ROOT) -> its output [H]

    @property
    def unseen(self) -> int:
        return len(self._tokens_unseen) + (self._last_prompt_row is not None)

    def begin(self, first: Verdict) -> None:
        self._first = first

    def prepare(self) -> None:
        self.prepared = True
        assert self._first is not None
        rows, self._offset = self._prompt.rows(self._first)
        self._first = None
        if rows.positions[-1] >= self._max_positions:
            self._max_positions = 0  # the prompt alone is too long for the draft: never propose
        else:
            prefill(self._session, rows.embeds[:-1], rows.positions[:-1], _head(rows.hidden))
        self._last_prompt_row = _last(rows)

    def commit(self, chosen: Sequence[int], verdict: Verdict) -> None:
        assert verdict.features is not None
        self._session.cache.commit(())  # what a tree left is made of guesses
        if self._position >= self._max_positions:
            return  # its context is full: it will not propose again
        self._position += len(verdict.tokens)
        self._tokens_unseen += verdict.tokens
        self._features_unseen.append(verdict.features)

    def _next_position(self) -> int:
        return self._position

    def _take_unseen(self) -> Rows:
        self._feedback = {}
        parts = [self._last_prompt_row] if self._last_prompt_row is not None else []
        self._last_prompt_row = None
        tokens, features = self._tokens_unseen, self._features_unseen
        if tokens:
            hidden = self._prompt.encode(np.concatenate(features))
            positions = range(self._position - len(tokens), self._position)
            parts.append(Rows(self._embed(tokens), positions, hidden))
            self._tokens_unseen, self._features_unseen = [], []
        return _joined(parts)

    def _beam_rows(self, candidates: Candidates, beam: Sequence[int], position: int) -> Rows:
        depths, tokens, parents = candidates.depths, candidates.tokens, candidates.parents
        return Rows(
            self._embed([tokens[i] for i in beam]),
            [position + depths[i] for i in beam],
            np.stack([self._feedback[parents[i]] for i in beam]),
        )

    def _learn(self, parents: Sequence[int], outputs: Sequence[Array]) -> None:
        kept = outputs[2].copy()  # the engine reuses its buffers
        self._feedback.update(zip(parents, kept, strict=True))

    def _embed(self, tokens: Sequence[int]) -> Floats:
        rows: Floats = self._prompt.table[list(tokens)]
        return rows if self._offset is None else rows + self._offset


def _head(hidden: Floats | None) -> Floats | None:
    return None if hidden is None else hidden[:-1]


def _last(rows: Rows) -> Rows:
    return Rows(
        rows.embeds[-1:], rows.positions[-1:], None if rows.hidden is None else rows.hidden[-1:]
    )


def _joined(parts: Sequence[Rows]) -> Rows:
    if len(parts) == 1:
        return parts[0]
    hidden = [part.hidden for part in parts if part.hidden is not None]
    positions = [position for part in parts for position in part.positions]
    return Rows(np.concatenate([part.embeds for part in parts]), positions, np.concatenate(hidden))
