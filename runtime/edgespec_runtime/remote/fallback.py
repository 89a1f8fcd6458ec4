"""What goes on where no server answers: this device's own target, or the draft's text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from edgespec.acceptance import Verdict
from edgespec.errors import RemoteError
from edgespec.sizing import Growth, Root
from edgespec.sizing.contract import Steady, newest
from edgespec.tree import ROOT, Candidates, TokenTree
from edgespec_runtime.drafts import Drafter
from edgespec_runtime.verifiers import Verifier
from edgespec_runtime.verifiers.local import LocalVerifier

DEPTH = 8
"""Tokens that a draft on its own writes in one go."""


class Fallback(Protocol):
    """Takes an answer up where a server left it."""

    source: str
    """Whose text comes of it."""
    note: str
    """For people: what goes on."""

    def take_up(self, context: int, accepted: Sequence[int]) -> tuple[Verifier, Verdict]:
        """A verifier behind the ``accepted`` tokens of an answer to ``context`` rows of prompt, and
        what taking it up named: the first token where none is accepted, else nothing."""


class TargetHere:
    """The bundle's target on this device: the text is the same."""

    source = "target"
    note = "this device's own target goes on; the text is the same"

    def __init__(self, open_target: Callable[[], LocalVerifier]) -> None:
        """``open_target`` opens the request's target with a fresh cache."""
        self._open = open_target

    def take_up(self, context: int, accepted: Sequence[int]) -> tuple[Verifier, Verdict]:
        verifier = self._open()
        return verifier, verifier.resume(accepted) if accepted else verifier.begin()


@runtime_checkable
class Writer(Protocol):
    """A drafter that can begin an answer by itself."""

    def first_token(self, context: int) -> int:
        """Takes in the prompt; the draft's own first token, ``context`` being the rows of the
        target's prompt."""


class DraftText:
    """The draft by itself: not the target's text, and said so."""

    source = "draft"
    note = "the draft goes on alone; from here on the text is NOT the target's"

    def __init__(self, draft: Drafter, levels: int) -> None:
        """``levels``: the most of one growth that its cache has room for."""
        self._draft = draft
        self._levels = levels

    def take_up(self, context: int, accepted: Sequence[int]) -> tuple[Verifier, Verdict]:
        verifier = DraftVerifier(self._draft, self._levels, context + max(len(accepted) - 1, 0))
        return verifier, Verdict((), (), source=self.source) if accepted else verifier.begin()


class DraftVerifier:
    """Takes the draft's best path for the text; every token is passed as if named behind it."""

    engine_s = 0.0  # the draft's own account has it

    def __init__(self, draft: Drafter, levels: int, context: int) -> None:
        self.context = context
        self._draft = draft
        self._sizer = _BestPath(levels)

    def begin(self) -> Verdict:
        if not isinstance(self._draft, Writer):
            raise RemoteError("no server answers, and this draft cannot begin an answer alone")
        return Verdict((), (self._draft.first_token(self.context),), source="draft")

    def verify(self, tree: TokenTree, meanwhile: object = None) -> Verdict:
        """The first child of every node; without a tree the draft is asked for a path."""
        tokens = _first_children(tree) if len(tree) else self._write()
        self.context += len(tokens)
        # What was drafted for this is forgotten: the draft takes its tokens in as any others.
        return Verdict((), tokens, source="draft")

    def close(self) -> None:
        """Nothing is held elsewhere."""

    def _write(self) -> tuple[int, ...]:
        draft = self._draft
        if not draft.prepared:
            draft.prepare()
        root = Root(self._sizer.policy.levels, self.context, draft.unseen, True, 0, draft.ready)
        found = draft.grow(self._sizer, Growth.CHAIN, root)
        if not len(found):
            raise RemoteError(
                "no server answers, and the draft cannot go on alone: its own context is full"
            )
        return _best_tokens(found)


@dataclass(frozen=True)
class _Path:
    """One child of every node."""

    levels: int
    top_k: int = 1

    @property
    def max_nodes(self) -> int:
        return self.levels

    @property
    def max_drafted(self) -> int:
        return self.levels

    def start(self, setting: object) -> _BestPath:
        return _BestPath(self.levels)


class _BestPath(Steady):
    """Always on from the best child, as deep as the policy goes."""

    def __init__(self, levels: int) -> None:
        super().__init__(_Path(levels))

    def begin(self, root: Root) -> Growth:
        return Growth.CHAIN

    def beam(self, candidates: Candidates, level: int, root: Root) -> list[int]:
        return newest(candidates, level)[:1] if level < self.policy.levels else []

    def choose(self, candidates: Candidates) -> list[int]:
        return list(range(len(candidates)))


def _first_children(tree: TokenTree) -> tuple[int, ...]:
    """Tokens down the tree; children come best first."""
    tokens, at = list[int](), 0
    for row, (token, parent) in enumerate(zip(tree.tokens, tree.parents, strict=True), start=1):
        if parent == at:
            tokens.append(token)
            at = row
    return tuple(tokens)


def _best_tokens(candidates: Candidates) -> tuple[int, ...]:
    """The same of candidates: a family comes best first."""
    tokens, at = list[int](), ROOT
    for index, (token, parent) in enumerate(
        zip(candidates.tokens, candidates.parents, strict=True)
    ):
        if parent == at:
            tokens.append(token)
            at = index
    return tuple(tokens)
