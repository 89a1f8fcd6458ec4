"""A target on a server as a device sees it: the way there, and what the server says it computes."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edgespec.bundle import Manifest
from edgespec.errors import RemoteError
from edgespec.latency import Curve, RemoteCosts
from edgespec.sampling import Sampler, SamplingParams
from edgespec_runtime.inputs import VisualInputs
from edgespec_runtime.profiling.measuring.samples import FEWEST, NEXT_TO_NOTHING, Samples
from edgespec_runtime.profiling.measuring.sizes import Sizes
from edgespec_runtime.prompt import Prompt
from edgespec_runtime.remote.account import Account
from edgespec_runtime.remote.checks import PROTOCOL
from edgespec_runtime.remote.observer import Nobody
from edgespec_runtime.remote.opening import RemoteTarget
from edgespec_runtime.remote.transport import Call, Failure, Transport
from edgespec_runtime.verifiers.opening import Question
from edgespec_runtime.wire import verifier_pb2 as pb

PINGS = 30
DEADLINE_S = 10.0
SIDE = 64
"""Pixels of a test picture's side: decoding it costs next to nothing beside the tower."""


@dataclass(frozen=True)
class Elsewhere:
    """What was found. Curves are the server's own times, the network left out."""

    remote: RemoteCosts
    vision: Curve
    """Its size: pictures. Includes reading them."""
    prefill: Curve


class _Listener(Nobody):
    """Keeps what one request's calls took."""

    def __init__(self) -> None:
        self.curve: tuple[Sequence[int], Sequence[float]] = ((), ())
        self.compute_ms = 0.0

    def informed(self, sizes: Sequence[int], median_ms: Sequence[float]) -> None:
        self.curve = (tuple(sizes), tuple(median_ms))

    def opened(
        self, total: float, queue: float, compute: float, up: int, down: int, *, cached: bool
    ) -> None:
        self.compute_ms = compute


def look_elsewhere(
    target: RemoteTarget,
    manifest: Manifest,
    sizes: Sizes,
    *,
    seed: int = 0,
    listener: Callable[[float], None] = lambda done: None,
) -> Elsewhere:
    """Opens prompts and pictures of ``sizes`` there, some times each, and pings. Raises RemoteError
    where no server answers."""
    return _Looking(target, manifest, sizes, seed).run(listener)


class _Looking:
    def __init__(self, target: RemoteTarget, manifest: Manifest, sizes: Sizes, seed: int) -> None:
        self._target, self._sizes = target, sizes
        self._text = manifest.text
        self._rng = np.random.default_rng(seed)
        image, vocab = self._text.get("image_token_id", -1), int(self._text["vocab_size"])
        self._tokens = np.setdiff1d(np.arange(vocab), [image])
        self._sampler = Sampler(SamplingParams(), vocab)
        self._heard = _Listener()
        self._samples = Samples()

    def run(self, listener: Callable[[float], None]) -> Elsewhere:
        self._open(self._sizes.prompts[0], 0)  # connects, and asks what the server is
        jobs = list(self._jobs())
        for index, job in enumerate(jobs, start=1):
            job()
            listener(index / len(jobs))
        prefill, vision = self._samples.curve("prefill"), self._samples.curve("vision")
        assert prefill is not None
        trips = self._trips()
        rows, ms = self._heard.curve
        return Elsewhere(
            RemoteCosts(
                url=self._target.settings.endpoints[0],
                round_trip_ms=float(np.median(trips)),
                round_trip_p95_ms=float(np.percentile(trips, 95)),
                verify=Curve(tuple(rows), (0,), (tuple(ms),), (tuple(ms),)),
            ),
            vision or Curve.constant(NEXT_TO_NOTHING),
            prefill,
        )

    def _jobs(self) -> Iterator[Callable[[], None]]:
        for _ in range(FEWEST):
            for length in self._sizes.prompts:
                yield lambda length=length: self._prefill(length)  # type: ignore[misc]
            for count in self._sizes.pictures:
                yield lambda count=count: self._vision(count)  # type: ignore[misc]

    def _prefill(self, length: int) -> None:
        self._samples.add("prefill", length, self._open(length, 0))

    def _vision(self, count: int) -> None:
        """Pictures by themselves: what a prompt with them takes beyond one of the same length."""
        rows = count * int(self._text["visual_tokens"]) + 1
        shown, bare = self._open(1, count), self._open(rows, 0)
        self._samples.add("vision", count, max(shown - bare, 1e-3))

    def _open(self, words: int, pictures: int) -> float:
        """Milliseconds of the server's for a prompt of ``words`` random tokens behind random
        pictures, none of which it can have seen."""
        length = int(self._text["visual_tokens"])
        image = np.full(pictures * length, self._text.get("image_token_id", -1))
        ids = np.concatenate([image, self._rng.choice(self._tokens, words)]).astype(np.int64)
        spans = tuple((i * length, (i + 1) * length) for i in range(pictures))
        question = Question(
            prompt=Prompt("", ids, spans),
            pictures=[self._picture() for _ in range(pictures)],
            visual=VisualInputs({}, None, None),
            sampler=self._sampler,
            max_new_tokens=1,
            max_nodes=0,
            levels=0,
            features=False,
        )
        verifier = self._target.open(question, self._heard)
        try:
            verifier.begin()
        finally:
            verifier.close()
        return self._heard.compute_ms

    def _picture(self) -> bytes:
        from PIL import Image

        pixels = self._rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="PNG")
        return file.getvalue()

    def _trips(self) -> list[float]:
        """Milliseconds of calls without work, over the connection that is there."""
        endpoint, transport = self._target.servers.ordered()[0], Transport(Account())
        hello = pb.InfoRequest(protocol=PROTOCOL).SerializeToString()
        call = Call("GetInfo", bytes(16), hello, pb.InfoReply.FromString, lambda _: DEADLINE_S)
        try:
            return [1e3 * transport.ask(endpoint, call, None).took_s for _ in range(PINGS)]
        except Failure as failure:
            raise RemoteError(f"{endpoint.address} went away: {failure.message}") from None
