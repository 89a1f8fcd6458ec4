"""What a client makes sure of before it commits a reply. Pure: no I/O, no clock.

Whatever fails here is discarded, and the session is opened anew with the tokens that the client
holds: a flipped bit, a mixed-up answer or a server that drifted costs time and never a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgespec.acceptance import Verdict
from edgespec.tree import TokenTree
from edgespec_runtime.wire import features
from edgespec_runtime.wire import verifier_pb2 as pb
from edgespec_runtime.wire.prefix import Prefix

Floats = npt.NDArray[np.float32]
PROTOCOL = 1


class BadReply(Exception):
    """A reply that does not follow from what was asked."""


@dataclass(frozen=True)
class Expected:
    """What a session's replies are held against."""

    vocab: int
    features: pb.Features
    """How they travel, if at all."""
    width: int
    """Of a feature."""


@dataclass(frozen=True)
class Needs:
    """What a request asks of a server."""

    fingerprints: pb.Fingerprints
    vocab: int
    context: int
    """Tokens in all: the expanded prompt and every new one."""
    nodes: int
    depth: int
    images: int
    features: bool
    embeddings: bool


def unfit(info: pb.InfoReply, needs: Needs) -> str:
    """Why the server cannot do what is needed, as one sentence; empty where it can."""
    if info.protocol != PROTOCOL:
        return f"it speaks protocol {info.protocol}, this client {PROTOCOL}; update the older side"
    named = (("target", "target"), ("tokenizer", "tokenizer"), ("preprocess", "preprocessing"))
    for field, what in named:
        theirs, ours = getattr(info.fingerprints, field), getattr(needs.fingerprints, field)
        if theirs != ours:
            return (
                f"its {what} is {_short(theirs)}, this bundle's is {_short(ours)}; serve a bundle "
                "of the same checkpoint"
            )
    limits = info.limits
    if limits.vocab != needs.vocab:
        return f"its vocabulary has {limits.vocab} tokens, this bundle's {needs.vocab}"
    bounds = (
        ("tokens of prompt and answer", needs.context, limits.context),
        ("nodes in a tree", needs.nodes, limits.nodes),
        ("levels in a tree", needs.depth, limits.depth),
        ("pictures", needs.images, limits.images),
    )
    for what, wanted, most in bounds:
        if wanted > most:
            return f"it takes {most} {what}, this request needs {wanted}; ask for less"
    if needs.features and not info.feature_width:
        return (
            "it hands out no target features, and this bundle's draft feeds on them; serve a "
            "bundle that was exported with such a draft"
        )
    if needs.embeddings and not info.embeddings:
        return "it takes no visual embeddings; send pictures, or serve with --allow-embeddings"
    return ""


def _short(digest: bytes) -> str:
    return digest.hex()[:16] or "not named"


def check_open(
    reply: pb.OpenReply,
    epoch: int,
    accepted: Sequence[int],
    prefix: Prefix,
    context: int,
    expected: Expected,
) -> Verdict:
    """The verdict of an open whose answer's ``accepted`` tokens, hashed in ``prefix``, are known:
    the first token where there are none, and features of the ``context`` rows. Raises BadReply."""
    _same("epoch", reply.epoch, epoch)
    if reply.HasField("first") == bool(accepted):
        raise BadReply("a first token was named behind others, or none where one was due")
    tokens = (reply.first,) if reply.HasField("first") else ()
    _check_tokens(tokens, expected.vocab)
    _check_prefix(reply.committed_len, reply.prefix_hash, prefix, tokens)
    # Resumed, the draft has seen its rows: none have to come.
    rows = _features(reply.features, context, expected, optional=bool(accepted))
    return Verdict((), tokens, rows)


def check_round(
    reply: pb.VerifyReply, number: int, tree: TokenTree, prefix: Prefix, expected: Expected
) -> Verdict:
    """The verdict of round ``number`` over ``tree``, below the tokens that are hashed in
    ``prefix``. Raises BadReply."""
    _same("round", reply.round, number)
    path = tuple(reply.path)
    above = 0
    for row in path:
        if not 0 < row <= len(tree) or tree.parents[row - 1] != above:
            raise BadReply(f"path {list(path)} is no path from the root of this tree")
        above = row
    tokens = (*(tree.tokens[row - 1] for row in path), reply.bonus)
    _check_tokens(tokens, expected.vocab)
    _check_prefix(reply.committed_len, reply.prefix_hash, prefix, tokens)
    named = _named(reply.named, tree, path, tokens, expected.vocab)
    return Verdict(path, tokens, _features(reply.features, 1 + len(path), expected), named)


def _named(
    named: Sequence[int],
    tree: TokenTree,
    path: tuple[int, ...],
    tokens: tuple[int, ...],
    vocab: int,
) -> tuple[int, ...] | None:
    if not named:
        return None
    _same("number of named tokens", len(named), len(tree) + 1)
    _check_tokens(named, vocab)
    if tuple(named[row] for row in (0, *path)) != tokens:
        raise BadReply("the tokens named along the path are not those of the path")
    return tuple(named)


def _check_tokens(tokens: Sequence[int], vocab: int) -> None:
    for token in tokens:
        if token >= vocab:
            raise BadReply(f"token {token} is beyond the vocabulary of {vocab}")


def _check_prefix(length: int, value: int, prefix: Prefix, tokens: Sequence[int]) -> None:
    _same("number of committed tokens", length, prefix.length + len(tokens))
    if value != prefix.after(tokens):
        raise BadReply("the hash of the committed tokens is another")


def _features(
    data: bytes, rows: int, expected: Expected, *, optional: bool = False
) -> Floats | None:
    if not expected.features or (optional and not data):
        return None
    try:
        return features.decode(data, rows, expected.width, expected.features)
    except ValueError as error:
        raise BadReply(str(error)) from None


def _same(what: str, found: int, wanted: int) -> None:
    if found != wanted:
        raise BadReply(f"{what}: {found} came, {wanted} was due")
