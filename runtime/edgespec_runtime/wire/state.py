"""The rules of a session, as the server keeps them: epochs, rounds, prefixes. No I/O, no clock.

A session is one answer of one target. ``opening`` and ``admit`` decide before anything is computed;
``opened`` and ``committed`` record what came of it. A request that was answered before is answered
with the same bytes again; whatever does not follow from the recorded state is refused, and the
client opens the session anew with all that it holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgespec_runtime.wire.prefix import Prefix
from edgespec_runtime.wire.refusal import Reason, Refusal


@dataclass(frozen=True)
class Claim:
    """What a round's request says of the session."""

    epoch: int
    round: int
    committed_len: int
    prefix_hash: int
    digest: bytes
    """Of the request's bytes."""


@dataclass(frozen=True)
class Answered:
    """A request that was answered."""

    digest: bytes
    reply: bytes


class SessionState:
    """One open session. Every method is one step of the machine; none waits."""

    def __init__(self, epoch: int, context: bytes, accepted: Sequence[int]) -> None:
        """``context``: what ``context_digest`` says of the open; ``accepted``: its tokens."""
        self.epoch = epoch
        self.round = 0
        self.tokens = list(accepted)
        self._prefix = Prefix(context, accepted)
        self._open: Answered | None = None
        self._last: Answered | None = None

    @property
    def committed_len(self) -> int:
        """Tokens of the answer."""
        return len(self.tokens)

    @property
    def prefix_hash(self) -> int:
        return self._prefix.value

    def opened(self, digest: bytes, first: int | None, reply: bytes) -> None:
        """Records the answer to the open; ``first`` is the token it named, if it named one."""
        self._open = Answered(digest, reply)
        if first is not None:
            self._extend((first,))

    def answer_to_open(self, digest: bytes) -> bytes | None:
        """The open's reply for the same bytes again, until a round was applied: whoever sends
        rounds has the reply."""
        known = self._open
        return known.reply if known is not None and known.digest == digest else None

    def admit(self, claim: Claim) -> bytes | None:
        """The reply to give again, or None where the round is to be verified.

        Raises Refusal: STALE_EPOCH, STALE_ROUND, ROUND_REUSED, ROUND_GAP or STATE_MISMATCH.
        """
        if claim.epoch != self.epoch:
            raise Refusal(
                Reason.STALE_EPOCH, f"epoch {claim.epoch} was named, {self.epoch} is open"
            )
        if claim.round == self.round and self._last is not None:
            if claim.digest == self._last.digest:
                return self._last.reply
            raise Refusal(Reason.ROUND_REUSED, f"round {claim.round} was answered for other bytes")
        if claim.round <= self.round:
            raise Refusal(Reason.STALE_ROUND, f"round {claim.round} came after round {self.round}")
        if claim.round > self.round + 1:
            raise Refusal(
                Reason.ROUND_GAP, f"round {claim.round} came, the last one was {self.round}"
            )
        if (claim.committed_len, claim.prefix_hash) != (self.committed_len, self.prefix_hash):
            raise Refusal(
                Reason.STATE_MISMATCH,
                f"{claim.committed_len} committed tokens were claimed, there are "
                f"{self.committed_len}, or their hashes differ",
            )
        return None

    def after(self, tokens: Sequence[int]) -> tuple[int, int]:
        """Length and hash with ``tokens`` committed: what a reply says before it is recorded."""
        return len(self.tokens) + len(tokens), self._prefix.after(tokens)

    def committed(self, claim: Claim, tokens: Sequence[int], reply: bytes) -> None:
        """Records an admitted round that was verified, and its reply. Raises ValueError for one
        that ``admit`` would not let in: the caller did not keep others out while it ran."""
        if (claim.epoch, claim.round) != (self.epoch, self.round + 1):
            raise ValueError(f"round {claim.round} was committed behind round {self.round}")
        self._apply(tokens, Answered(claim.digest, reply))

    def streamed(self, tokens: Sequence[int]) -> None:
        """Records a round that the server started by itself: it cannot be asked for again."""
        self._apply(tokens, None)

    def _apply(self, tokens: Sequence[int], answered: Answered | None) -> None:
        self.round += 1
        self._open = None  # with the features of a long prompt it is large
        self._last = answered
        self._extend(tokens)

    def _extend(self, tokens: Sequence[int]) -> None:
        self.tokens += tokens
        self._prefix.extend(tokens)


def opening(known: SessionState | None, epoch: int, digest: bytes) -> bytes | None:
    """What an open meets: the reply to give again, or None where the session is to be opened.

    ``known`` is the session's state here, if it has one. Raises Refusal STALE_EPOCH for an open
    that a newer one has overtaken, and for an epoch that was opened with other bytes.
    """
    if epoch < 1:
        raise Refusal(Reason.INVALID, "epochs count from 1")
    if known is None or epoch > known.epoch:
        return None
    again = known.answer_to_open(digest) if epoch == known.epoch else None
    if again is None:
        raise Refusal(Reason.STALE_EPOCH, f"epoch {epoch} was asked for, {known.epoch} is open")
    return again
