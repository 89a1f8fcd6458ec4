"""The decoding loop: grow, choose, verify, commit. Plain decoding is the loop with n = 0.

Knows the four contracts (draft, policy, verifier, stop rules) and no engine, text or image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter

from edgespec.acceptance import StopRules
from edgespec.sizing import Policy
from edgespec.tree import TokenTree
from edgespec_runtime.drafts import Drafter
from edgespec_runtime.verifiers import Verifier


@dataclass(frozen=True)
class Round:
    """What one round brought; the first round is the prefill."""

    tokens: tuple[int, ...]
    """Emitted tokens, cut where a stop rule fired."""
    drafted: int
    """How many of the leading tokens the draft had proposed."""
    tree_nodes: int
    draft_ms: float
    verify_ms: float
    finish_reason: str | None


def decode(verifier: Verifier, draft: Drafter, policy: Policy, stop: StopRules) -> Iterator[Round]:
    """Yields rounds until a stop rule fires."""
    started = perf_counter()
    first = verifier.begin()
    reason = stop.push(first.tokens[0])
    yield Round(first.tokens, 0, 0, 0.0, (perf_counter() - started) * 1e3, reason)
    if reason is None:
        draft.begin(first)
    while reason is None:
        started = perf_counter()
        candidates = draft.grow(policy, stop.tokens_left - 1)
        chosen = policy.choose(candidates)
        tree = TokenTree.select(candidates, chosen)
        grown = perf_counter()
        verdict = verifier.verify(tree)
        verified = perf_counter()
        draft.commit(chosen, verdict)
        emitted, reason = _cut(verdict.tokens, stop)
        draft_s = grown - started + perf_counter() - verified
        yield Round(
            emitted,
            min(len(verdict.rows), len(emitted)),
            len(tree),
            draft_s * 1e3,
            (verified - grown) * 1e3,
            reason,
        )


def _cut(tokens: tuple[int, ...], stop: StopRules) -> tuple[tuple[int, ...], str | None]:
    for count, token in enumerate(tokens, start=1):
        if reason := stop.push(token):
            return tokens[:count], reason
    return tokens, None
