"""What an open asks for, checked against the target before anything is computed; what needs no
target was checked in the front (``checks``)."""

from __future__ import annotations

from dataclasses import dataclass

from edgespec.sampling import SamplingParams
from edgespec_runtime.server.capacity import Capacity
from edgespec_runtime.server.checks import sampling_of
from edgespec_runtime.server.target import Target
from edgespec_runtime.wire import verifier_pb2 as pb
from edgespec_runtime.wire.refusal import Reason, Refusal


@dataclass(frozen=True)
class Terms:
    """What the client asked for besides the tokens."""

    sampling: SamplingParams
    max_new_tokens: int
    max_nodes: int
    features: pb.Features
    named: bool

    @property
    def featured(self) -> bool:
        return self.features != pb.NO_FEATURES


class Rules:
    """What one server takes."""

    def __init__(self, target: Target, capacity: Capacity) -> None:
        self._target, self._capacity = target, capacity
        self.context = capacity.context_of(target.step.spec)
        """Most tokens of a session."""
        self.nodes = capacity.nodes_of(target.step.spec)
        """Of the largest tree."""

    @property
    def limits(self) -> pb.Limits:
        """As they are told to clients."""
        capacity = self._capacity
        return pb.Limits(
            vocab=self._target.vocab,
            context=self.context,
            nodes=self.nodes,
            depth=capacity.depth,
            images=capacity.images,
            image_bytes=capacity.image_bytes,
            image_pixels=capacity.image_pixels,
            message_bytes=capacity.message_bytes,
        )

    def terms(self, request: pb.OpenRequest) -> Terms:
        """What an open asks for that has passed ``checks.check_open``. Raises Refusal INVALID where
        pictures do not match their places, or the expanded prompt and the answer are too long."""
        self._check_length(request)
        return Terms(
            sampling_of(request),
            request.max_new_tokens,
            request.max_nodes,
            request.features,
            request.want_named,
        )

    def _check_length(self, request: pb.OpenRequest) -> None:
        pictures = list(request.prompt_ids).count(self._target.image_token_id)
        if pictures != len(request.pictures):
            raise Refusal(
                Reason.INVALID,
                f"the prompt has places for {pictures} pictures, {len(request.pictures)} came",
            )
        prompt = len(request.prompt_ids) + pictures * (self._target.visual_tokens - 1)
        if prompt + request.max_new_tokens > self.context:
            raise Refusal(
                Reason.INVALID,
                f"the prompt takes {prompt} tokens and the answer {request.max_new_tokens}; the "
                f"context holds {self.context}",
            )
