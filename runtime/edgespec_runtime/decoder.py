"""The decoding loop: grow, choose, verify, commit. Plain decoding is the loop with n = 0.

Knows the four contracts (draft, sizer, verifier, stop rules) and no engine, text or image.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from time import perf_counter

from edgespec.acceptance import StopRules, Verdict
from edgespec.sizing import Feedback, Growth, Root, Sizer
from edgespec.tree import Candidates, TokenTree
from edgespec_runtime.drafts import Drafter
from edgespec_runtime.verifiers import Verifier


@dataclass(frozen=True)
class Round:
    """What one round brought; the first round is the prefill. Times are milliseconds."""

    tokens: tuple[int, ...]
    """Emitted tokens, cut where a stop rule fired."""
    drafted: int
    """How many of the leading tokens the draft had proposed."""
    tree_nodes: int
    prepare_ms: float
    """The draft's prompt, in the first round that drafts."""
    draft_ms: float
    verify_ms: float
    finish_reason: str | None
    source: str = "target"
    """Whose text it is, see ``Verdict.source``."""
    feedback: Feedback | None = None
    """What the sizer was told; None for the prefill."""


def decode(
    verifier: Verifier,
    draft: Drafter,
    sizer: Sizer,
    stop: StopRules,
    clock: Callable[[], float] = perf_counter,
) -> Generator[Round, None, None]:
    """Yields rounds until a stop rule fires; then, or when it is left, the verifier is closed.
    ``clock`` tells seconds."""
    try:
        started = clock()
        first = verifier.begin()
        reason = stop.push(first.tokens[0])
        took_ms = (clock() - started) * 1e3
        yield Round(first.tokens, 0, 0, 0.0, 0.0, took_ms, reason, first.source)
        if reason is None:
            draft.begin(first)
        emitted = 1
        while reason is None:
            root = Root(
                stop.tokens_left - 1,
                verifier.context,
                draft.unseen,
                draft.prepared,
                emitted,
                draft.ready,
            )
            outcome = _round(verifier, draft, sizer, stop, root, clock)
            emitted += len(outcome.tokens)
            reason = outcome.finish_reason
            yield outcome
        sizer.finish(emitted, reason != "length")
    finally:
        verifier.close()


def _round(
    verifier: Verifier,
    draft: Drafter,
    sizer: Sizer,
    stop: StopRules,
    root: Root,
    clock: Callable[[], float],
) -> Round:
    started = clock()
    growth = sizer.begin(root) if root.depth_left > 0 else Growth.NONE
    candidates, chosen, prepared = Candidates(), list[int](), started
    if growth is not Growth.NONE:
        if not draft.prepared:
            draft.prepare()
            prepared = clock()
        candidates = draft.grow(sizer, growth, root)
        chosen = sizer.choose(candidates)
    tree = TokenTree.select(candidates, chosen)
    grown = clock()
    verdict = verifier.verify(tree, lambda answered: draft.foresee(chosen, root, answered))
    verified = clock()
    draft.commit(chosen, verdict)
    committed = clock()
    emitted, reason = _cut(verdict.tokens, stop)
    feedback = Feedback(
        root=root,
        growth=growth,
        calls=draft.calls if growth is not Growth.NONE else (),
        candidates=candidates,
        chosen=chosen,
        rows=verdict.rows,
        named=verdict.named,
        tokens=verdict.tokens,
        emitted=len(emitted),
        prepare_ms=(prepared - started) * 1e3,
        draft_ms=(grown - prepared + committed - verified) * 1e3,
        verify_ms=(verified - grown) * 1e3,
        round_ms=(clock() - prepared) * 1e3,
        away_ms=verdict.away_ms,
    )
    sizer.learn(feedback)
    return _summary(feedback, verdict, emitted, reason)


def _summary(
    feedback: Feedback, verdict: Verdict, emitted: tuple[int, ...], reason: str | None
) -> Round:
    return Round(
        tokens=emitted,
        drafted=min(len(verdict.rows), len(emitted)),
        tree_nodes=len(feedback.chosen),
        prepare_ms=feedback.prepare_ms,
        draft_ms=feedback.draft_ms,
        verify_ms=feedback.verify_ms,
        finish_reason=reason,
        source=verdict.source,
        feedback=feedback,
    )


def _cut(tokens: tuple[int, ...], stop: StopRules) -> tuple[tuple[int, ...], str | None]:
    for count, token in enumerate(tokens, start=1):
        if reason := stop.push(token):
            return tokens[:count], reason
    return tokens, None
