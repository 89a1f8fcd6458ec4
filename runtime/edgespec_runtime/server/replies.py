"""Between messages and the rules of a session: claims in, replies out."""

from __future__ import annotations

from edgespec.tree import TokenTree
from edgespec_runtime.server.answer import Answer, Outcome
from edgespec_runtime.server.scheduler import Done
from edgespec_runtime.wire import verifier_pb2 as pb
from edgespec_runtime.wire.prefix import request_digest
from edgespec_runtime.wire.refusal import Reason, Refusal
from edgespec_runtime.wire.state import Claim


def digest_of(request: pb.OpenRequest | pb.VerifyRequest | pb.ContinueRequest) -> bytes:
    """Of a request's content: a retry has the same."""
    return request_digest(request.SerializeToString(deterministic=True))


def claim_of(request: pb.VerifyRequest | pb.ContinueRequest) -> Claim:
    """What a round says of its session."""
    return Claim(
        request.epoch,
        request.round,
        request.committed_len,
        request.prefix_hash,
        digest_of(request),
    )


def tree_of(sent: pb.Tree, most: int) -> TokenTree:
    """The tree of a round. Raises Refusal INVALID for one that is none, or too large."""
    if len(sent.token_ids) > most:
        raise Refusal(
            Reason.INVALID,
            f"a tree of {len(sent.token_ids)} nodes came; the session was opened for {most}",
        )
    try:
        return TokenTree.build(sent.token_ids, sent.parents)
    except ValueError as error:
        raise Refusal(Reason.INVALID, f"the tree is none: {error}") from None


def opened(answer: Answer, result: Outcome, lease_s: float) -> pb.OpenReply:
    """What an open brought, before it is recorded; times are the caller's to fill in."""
    state, tokens = answer.state, result.verdict.tokens
    length, prefix = state.after(tokens)
    return pb.OpenReply(
        epoch=state.epoch,
        committed_len=length,
        prefix_hash=prefix,
        first=tokens[0] if tokens else None,
        lease_ms=round(lease_s * 1000),
        reused_rows=result.reused,
        features=result.features,
    )


def answered(answer: Answer, round_: int, done: Done[Outcome]) -> pb.VerifyReply:
    """What a round brought, before it is recorded."""
    verdict = done.value.verdict
    length, prefix = answer.state.after(verdict.tokens)
    return pb.VerifyReply(
        round=round_,
        path=verdict.rows,
        bonus=verdict.tokens[-1],
        committed_len=length,
        prefix_hash=prefix,
        named=(verdict.named or ()) if answer.terms.named else (),
        features=done.value.features,
        queue_us=done.queue_us,
        compute_us=done.compute_us,
    )
