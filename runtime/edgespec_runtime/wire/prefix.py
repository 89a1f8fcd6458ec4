"""The committed text of a session as eight bytes: both sides hash it and compare every round.

The hash covers all that the target's next token depends on (model, prompt, pictures, sampling) and
every token of the answer. It guards against states that drifted apart, not against an adversary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from edgespec_runtime.wire.verifier_pb2 import OpenRequest, Picture


class Prefix:
    """A running hash over the tokens of an answer."""

    def __init__(self, context: bytes, tokens: Iterable[int] = ()) -> None:
        self._hash = hashlib.blake2b(context, digest_size=8)
        self.length = 0
        """Tokens so far."""
        self.extend(tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Appends tokens of the answer."""
        block = np.fromiter(tokens, dtype="<u4")
        self._hash.update(block.tobytes())
        self.length += len(block)

    @property
    def value(self) -> int:
        """The hash of everything so far, an unsigned 64-bit integer."""
        return int.from_bytes(self._hash.digest(), "little")

    def after(self, tokens: Iterable[int]) -> int:
        """What ``value`` will be with ``tokens`` appended; changes nothing."""
        ahead = self._hash.copy()
        ahead.update(np.fromiter(tokens, dtype="<u4").tobytes())
        return int.from_bytes(ahead.digest(), "little")


def context_digest(request: OpenRequest) -> bytes:
    """What an open says of the answer's conditions, 32 bytes: the same however often the session is
    opened, whether pictures come as files or by their digests."""
    digest = hashlib.sha256()
    prints = request.fingerprints
    for part in (prints.target, prints.tokenizer, prints.preprocess):
        digest.update(len(part).to_bytes(4, "little") + part)
    digest.update(np.array([len(request.prompt_ids), *request.prompt_ids], dtype="<u4").tobytes())
    for picture in request.pictures:
        digest.update(picture_digest(picture))
    digest.update(request.sampling.SerializeToString(deterministic=True))
    return digest.digest()


def picture_digest(picture: Picture) -> bytes:
    """The sha256 under which a tenant's picture is known, whatever it was sent as."""
    source = picture.WhichOneof("source")
    if source == "sha256":
        return picture.sha256
    if source == "file":
        return hashlib.sha256(picture.file).digest()
    sizes = np.array([picture.embeddings.rows, picture.embeddings.width], dtype="<u4")
    return hashlib.sha256(b"embeddings" + sizes.tobytes() + picture.embeddings.data).digest()


def request_digest(data: bytes) -> bytes:
    """Of a request's bytes: a retry sends the same ones."""
    return hashlib.blake2b(data, digest_size=16).digest()
