"""What an open asks for, checked before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass

from edgespec.errors import ConfigError
from edgespec.sampling import SamplingParams
from edgespec_runtime.server.capacity import Capacity
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
        """What the open asks for. Raises Refusal MODEL_MISMATCH or INVALID."""
        self._check_model(request.fingerprints)
        self._check_length(request)
        if request.max_nodes > self.nodes:
            raise Refusal(
                Reason.INVALID,
                f"trees of {request.max_nodes} nodes were asked for; at most {self.nodes} are "
                "verified at once",
            )
        if request.features != pb.NO_FEATURES and not self._target.feature_width:
            raise Refusal(Reason.INVALID, "features were asked for; this target gives none")
        return Terms(
            _sampling(request.sampling),
            request.max_new_tokens,
            request.max_nodes,
            request.features,
            request.want_named,
        )

    def _check_model(self, sent: pb.Fingerprints) -> None:
        own = self._target.fingerprints
        for name in ("target", "tokenizer", "preprocess"):
            if getattr(sent, name) != getattr(own, name):
                raise Refusal(
                    Reason.MODEL_MISMATCH,
                    f"the client's {name} is not the server's; use bundles of the same target",
                )

    def _check_length(self, request: pb.OpenRequest) -> None:
        pictures = list(request.prompt_ids).count(self._target.image_token_id)
        if pictures != len(request.pictures):
            raise Refusal(
                Reason.INVALID,
                f"the prompt has places for {pictures} pictures, {len(request.pictures)} came",
            )
        prompt = len(request.prompt_ids) + pictures * (self._target.visual_tokens - 1)
        answer = max(request.max_new_tokens, len(request.accepted_ids))
        if not prompt or not request.max_new_tokens:
            raise Refusal(Reason.INVALID, "a prompt and max_new_tokens take at least 1 token each")
        if prompt + answer > self.context:
            raise Refusal(
                Reason.INVALID,
                f"the prompt takes {prompt} tokens and the answer {answer}; the context holds "
                f"{self.context}",
            )


def _sampling(sent: pb.Sampling) -> SamplingParams:
    try:
        return SamplingParams(
            temperature=sent.temperature,
            top_k=sent.top_k,
            top_p=sent.top_p,
            min_p=sent.min_p,
            repetition_penalty=sent.repetition_penalty,
            seed=sent.seed,
        )
    except ConfigError as error:
        raise Refusal(Reason.INVALID, str(error)) from None
