"""From what a client sent to what the target reads: expanded prompts with their visual tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from edgespec_runtime.prompt import expand
from edgespec_runtime.server.capacity import MB, Capacity
from edgespec_runtime.server.failure import refusal_of
from edgespec_runtime.server.pictures import Pictures, decode, embedded
from edgespec_runtime.server.reuse import Codes, codes_of
from edgespec_runtime.server.scheduler import Scheduler
from edgespec_runtime.server.target import Target
from edgespec_runtime.wire import verifier_pb2 as pb
from edgespec_runtime.wire.prefix import picture_digest
from edgespec_runtime.wire.refusal import Reason, Refusal

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Context:
    """What an answer continues."""

    ids: npt.NDArray[np.int64]
    """The expanded prompt, [L]."""
    spans: tuple[tuple[int, int], ...]
    """Rows of each picture, end excluded."""
    codes: Codes
    """What the rows stand for, [L] (see ``reuse``)."""
    visual: Sequence[Floats]
    """Visual tokens [P, H] of each picture."""


class Contexts:
    """Reads opens. Pictures are decoded by a few threads of their own and seen by the engine's."""

    def __init__(self, target: Target, capacity: Capacity, scheduler: Scheduler) -> None:
        self.pictures = Pictures(int(capacity.image_mb * MB))
        self._target, self._capacity, self._scheduler = target, capacity, scheduler
        self._decoders = ThreadPoolExecutor(capacity.decoders, thread_name_prefix="decode")

    async def read(self, tenant: str, request: pb.OpenRequest) -> Context:
        """The context of an open whose terms were checked. Raises Refusal: NEED_IMAGE, INVALID for
        what is no picture, BROKEN or BUSY where looking at one failed."""
        target = self._target
        ids, spans = expand(request.prompt_ids, target.image_token_id, target.visual_tokens)
        digests = [picture_digest(picture) for picture in request.pictures]
        visual = [
            await self._seen(tenant, picture, digest)
            for picture, digest in zip(request.pictures, digests, strict=True)
        ]
        return Context(ids, spans, codes_of(ids, spans, digests), visual)

    def stop(self) -> None:
        """Ends the threads."""
        self._decoders.shutdown()

    async def _seen(self, tenant: str, picture: pb.Picture, digest: bytes) -> Floats:
        tokens = self.pictures.get(tenant, digest)
        if tokens is None:
            tokens = await self._see(picture)
            self.pictures.put(tenant, digest, tokens)
        return tokens

    async def _see(self, picture: pb.Picture) -> Floats:
        target, capacity = self._target, self._capacity
        source = picture.WhichOneof("source")
        if source == "sha256":
            raise Refusal(Reason.NEED_IMAGE, "a picture is not here any more: send its file")
        if source == "embeddings" and capacity.embeddings:
            return embedded(picture.embeddings, target.visual_tokens, target.hidden)
        if source != "file":
            raise Refusal(Reason.INVALID, f"a picture came as {source or 'nothing'}; send a file")
        assert target.processor is not None  # else `terms` lets no picture through
        work = partial(
            decode,
            picture.file,
            target.processor,
            most_bytes=capacity.image_bytes,
            most_pixels=capacity.image_pixels,
        )
        try:
            loop = asyncio.get_running_loop()
            pixels = await loop.run_in_executor(self._decoders, work)
            done = await asyncio.wrap_future(self._scheduler.steps(self._looking(pixels)))
        except Exception as error:
            raise refusal_of(error) from error
        tokens: Floats = done.value
        return tokens

    def _looking(self, pixels: Floats) -> Iterator[Floats]:
        yield self._target.see(pixels)
