"""A device's side of the wire in a few lines: opens, sends trees, checks and keeps what comes."""

from __future__ import annotations

import asyncio
import hashlib
import io
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL.Image import Image

from edgespec.bundle import read_bundle
from edgespec.tree import EMPTY, TokenTree
from edgespec_runtime import Model
from edgespec_runtime.server.backend import VerifierBackend
from edgespec_runtime.server.embedded import EmbeddedBackend
from edgespec_runtime.wire import verifier_pb2 as pb
from edgespec_runtime.wire.fingerprints import fingerprints
from edgespec_runtime.wire.prefix import Prefix, context_digest


@dataclass(frozen=True)
class Question:
    """A prompt with pictures and sampling settings, and the plain answer of the target."""

    model: Model
    text: str
    images: Sequence[Image] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    tokens: int = 24

    def plain(self) -> list[int]:
        """The answer as the target decodes it on this device."""
        settings = {**self.settings, "draft": "none", "max_new_tokens": self.tokens}
        return list(self.model.generate(list(self.images), self.text, **settings).token_ids)

    def request(self, **changes: Any) -> pb.OpenRequest:
        """The first open."""
        prompt = self.model.reader.prompt(self.text, len(self.images))
        inner = {i for start, end in prompt.image_spans for i in range(start + 1, end)}
        params = self.model.sampling(**self.settings)
        request = pb.OpenRequest(
            session_id=b"0123456789abcdef",
            epoch=1,
            fingerprints=fingerprints(read_bundle(self.model.bundle.path, check_hashes=False)),
            prompt_ids=[int(t) for i, t in enumerate(prompt.ids) if i not in inner],
            pictures=[pb.Picture(file=png(image)) for image in self.images],
            sampling=pb.Sampling(
                temperature=params.temperature,
                top_k=params.top_k,
                top_p=params.top_p,
                min_p=params.min_p,
                repetition_penalty=params.repetition_penalty,
                seed=params.seed,
            ),
            max_new_tokens=self.tokens,
            max_nodes=64,
        )
        for name, value in changes.items():
            setattr(request, name, value)
        return request


class Device:
    """One session of one tenant; ``tokens`` is the answer so far."""

    def __init__(
        self, backend: VerifierBackend, request: pb.OpenRequest, tenant: str = "tenant"
    ) -> None:
        self.backend, self.tenant = backend, tenant
        self.tokens: list[int] = []
        self._request = pb.OpenRequest()
        self._request.CopyFrom(request)
        self._request.epoch = request.epoch - 1
        self.round = 0

    @property
    def prefix(self) -> int:
        return Prefix(context_digest(self._request), self.tokens).value

    async def open(self) -> pb.OpenReply:
        """Opens, or opens again with all that it holds."""
        self._request.epoch += 1
        self.round = 0
        del self._request.accepted_ids[:]
        self._request.accepted_ids.extend(self.tokens)
        reply = await self.backend.open(self.tenant, self._request)
        if not self.tokens:
            assert reply.HasField("first")
            self.tokens.append(reply.first)
        assert (reply.committed_len, reply.prefix_hash) == (len(self.tokens), self.prefix)
        return reply

    def round_request(self, tree: TokenTree = EMPTY) -> pb.VerifyRequest:
        """The next round's."""
        return pb.VerifyRequest(
            session_id=self._request.session_id,
            epoch=self._request.epoch,
            round=self.round + 1,
            committed_len=len(self.tokens),
            prefix_hash=self.prefix,
            tree=pb.Tree(token_ids=tree.tokens, parents=tree.parents),
        )

    def take(self, tree: TokenTree, reply: pb.VerifyReply) -> None:
        """Checks and commits a round's reply."""
        rows = [0, *reply.path]
        assert [tree.parents[row - 1] for row in reply.path] == rows[:-1]
        assert reply.round == self.round + 1
        self.tokens += [*(tree.tokens[row - 1] for row in reply.path), reply.bonus]
        self.round += 1
        assert (reply.committed_len, reply.prefix_hash) == (len(self.tokens), self.prefix)

    async def verify(self, tree: TokenTree = EMPTY) -> pb.VerifyReply:
        """One round."""
        reply = await self.backend.verify(self.tenant, self.round_request(tree))
        self.take(tree, reply)
        return reply

    def stream_request(self, tokens: int, stop_ids: Sequence[int] = ()) -> pb.ContinueRequest:
        """For plain rounds of the server's own."""
        return pb.ContinueRequest(
            session_id=self._request.session_id,
            epoch=self._request.epoch,
            round=self.round + 1,
            committed_len=len(self.tokens),
            prefix_hash=self.prefix,
            max_tokens=tokens,
            stop_ids=stop_ids,
        )

    async def stream(self, tokens: int, stop_ids: Sequence[int] = ()) -> None:
        """Takes all that such a stream brings."""
        asked = self.stream_request(tokens, stop_ids)
        async for reply in self.backend.proceed(self.tenant, asked):
            self.take(EMPTY, reply)

    async def finish(self, plain: Sequence[int], rng: np.random.Generator) -> list[int]:
        """Goes on to the length of ``plain`` with random trees that guess right now and then."""
        while len(self.tokens) < len(plain):
            await self.verify(guesses(plain[len(self.tokens) :], rng))
        return self.tokens[: len(plain)]

    async def close(self) -> None:
        request = pb.CloseRequest(session_id=self._request.session_id, epoch=self._request.epoch)
        await self.backend.close(self.tenant, request)


def guesses(ahead: Sequence[int], rng: np.random.Generator, vocab: int = 300) -> TokenTree:
    """A random tree with some of the right tokens in it: a chain of them at most six long, and
    random nodes anywhere."""
    right = list(ahead[: int(rng.integers(0, 7))])
    tokens, parents = [*right], [*range(len(right))]
    taken = set(zip(parents, tokens, strict=True))
    for _ in range(int(rng.integers(0, 7))):
        parent, token = int(rng.integers(len(tokens) + 1)), int(rng.integers(vocab))
        if (parent, token) not in taken:
            taken.add((parent, token))
            tokens.append(token)
            parents.append(parent)
    order = _shuffled(parents, rng)
    rows = {0: 0, **{old + 1: new for new, old in enumerate(order, start=1)}}
    return TokenTree.build([tokens[i] for i in order], [rows[parents[i]] for i in order])


def _shuffled(parents: Sequence[int], rng: np.random.Generator) -> list[int]:
    """Indices of all nodes in a random order, parents first."""
    order: list[int] = []
    while len(order) < len(parents):
        ready = [
            i
            for i, parent in enumerate(parents)
            if i not in order and (parent == 0 or parent - 1 in order)
        ]
        order.append(ready[int(rng.integers(len(ready)))])
    return order


def png(image: Image) -> bytes:
    """The picture as a file."""
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def by_digest(request: pb.OpenRequest) -> pb.OpenRequest:
    """The same open with its pictures named by their digests."""
    named = pb.OpenRequest()
    named.CopyFrom(request)
    del named.pictures[:]
    for picture in request.pictures:
        named.pictures.append(pb.Picture(sha256=hashlib.sha256(picture.file).digest()))
    return named


@contextmanager
def engine_held(backend: EmbeddedBackend) -> Iterator[None]:
    """The engine does nothing until the block is left: what is sent meanwhile waits for it."""
    held, go = threading.Event(), threading.Event()

    def hold() -> Iterator[None]:
        held.set()
        go.wait()
        yield None

    backend._scheduler.steps(hold())
    held.wait()
    try:
        yield
    finally:
        go.set()


async def settle(backend: EmbeddedBackend, queued: int) -> None:
    """Waits until as many pieces of work wait for the engine."""
    while backend._scheduler.queued < queued:
        await asyncio.sleep(0.001)
