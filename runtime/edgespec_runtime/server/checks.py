"""Whether a request makes sense, before anything is computed for it: pure and quick.

Every function raises Refusal INVALID (MODEL_MISMATCH for another model) with a sentence that names
the field, what came and what is allowed. Counts are compared before elements are looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgespec.errors import ConfigError
from edgespec.sampling import SamplingParams
from edgespec.tree import TokenTree
from edgespec_runtime.server.headers import picture_size
from edgespec_runtime.wire import verifier_pb2 as pb
from edgespec_runtime.wire.refusal import Reason, Refusal

SESSION_BYTES = 16
DIGEST_BYTES = 32
MAX_STOP_IDS = 64
MAX_ROUND = 1 << 31


def check_info(request: pb.InfoRequest) -> None:
    _within("protocol", request.protocol, 1, MAX_ROUND)


def check_open(request: pb.OpenRequest, info: pb.InfoReply) -> int:
    """Returns the pixels of its pictures."""
    limits = info.limits
    _check_session(request.session_id, request.epoch)
    _check_fingerprints(request.fingerprints, info.fingerprints)
    _within("length of prompt_ids", len(request.prompt_ids), 1, limits.context)
    _within("max_new_tokens", request.max_new_tokens, 1, limits.context)
    if len(request.prompt_ids) + request.max_new_tokens > limits.context:
        raise _invalid(
            f"prompt_ids ({len(request.prompt_ids)}) and max_new_tokens ({request.max_new_tokens}) "
            f"are more than the context of {limits.context} tokens"
        )
    _within("length of accepted_ids", len(request.accepted_ids), 0, request.max_new_tokens)
    _check_ids("prompt_ids", request.prompt_ids, limits.vocab)
    _check_ids("accepted_ids", request.accepted_ids, limits.vocab)
    _within("max_nodes", request.max_nodes, 0, limits.nodes)
    sampling_of(request)
    _check_features(request.features, info.feature_width)
    _within("number of pictures", len(request.pictures), 0, limits.images)
    return sum(_check_picture(picture, info) for picture in request.pictures)


def check_verify(request: pb.VerifyRequest, limits: pb.Limits) -> None:
    _check_round(request, limits)
    tokens, parents = request.tree.token_ids, request.tree.parents
    _within("nodes of the tree", len(tokens), 0, limits.nodes)
    if len(parents) != len(tokens):
        raise _invalid(f"the tree has {len(tokens)} token_ids but {len(parents)} parents")
    _check_ids("the tree's token_ids", tokens, limits.vocab)
    try:
        tree = TokenTree.build(tokens, parents)
    except ValueError as error:
        raise _invalid(f"the tree is none: {error}") from None
    _within("depth of the tree", max(tree.depths, default=0), 0, limits.depth)


def check_continue(request: pb.ContinueRequest, limits: pb.Limits) -> None:
    _check_round(request, limits)
    _within("max_tokens", request.max_tokens, 1, limits.context)
    _within("length of stop_ids", len(request.stop_ids), 0, MAX_STOP_IDS)
    _check_ids("stop_ids", request.stop_ids, limits.vocab)


def check_close(request: pb.CloseRequest) -> None:
    _check_session(request.session_id, request.epoch)


def sampling_of(request: pb.OpenRequest) -> SamplingParams:
    """How tokens are to be drawn."""
    if not request.HasField("sampling"):
        raise _invalid("sampling is missing")
    sent = request.sampling
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
        raise _invalid(f"sampling: {error}") from None


def _check_session(session_id: bytes, epoch: int) -> None:
    if len(session_id) != SESSION_BYTES:
        raise _invalid(f"session_id has {len(session_id)} bytes; it must have {SESSION_BYTES}")
    if epoch < 1:
        raise _invalid("epoch is 0; epochs count from 1")


def _check_round(request: pb.VerifyRequest | pb.ContinueRequest, limits: pb.Limits) -> None:
    _check_session(request.session_id, request.epoch)
    _within("round", request.round, 1, MAX_ROUND)
    _within("committed_len", request.committed_len, 1, limits.context)


def _check_fingerprints(found: pb.Fingerprints, own: pb.Fingerprints) -> None:
    for name in ("target", "tokenizer", "preprocess"):
        theirs, ours = getattr(found, name), getattr(own, name)
        if theirs != ours:
            raise Refusal(
                Reason.MODEL_MISMATCH,
                f"the {name} is another one here: {theirs[:8].hex() or 'none'}... was asked for, "
                f"{ours[:8].hex()}... is served",
            )


def _check_features(features: int, width: int) -> None:
    if features not in pb.Features.values():
        raise _invalid(f"features is {features}; there are {', '.join(pb.Features.keys())}")
    if features != pb.NO_FEATURES and not width:
        raise _invalid("features were asked for; this server hands out none")


def _check_picture(picture: pb.Picture, info: pb.InfoReply) -> int:
    source = picture.WhichOneof("source")
    if source == "file":
        return _check_file(picture.file, info.limits)
    if source == "sha256":
        if len(picture.sha256) != DIGEST_BYTES:
            raise _invalid(f"a picture's sha256 has {len(picture.sha256)} bytes")
        return 0
    if source == "embeddings":
        if not info.embeddings:
            raise _invalid("embeddings were sent; this server takes pictures only")
        _check_embeddings(picture.embeddings, info.limits)
        return 0
    raise _invalid("a picture is empty; it must be a file, a sha256 or embeddings")


def _check_file(data: bytes, limits: pb.Limits) -> int:
    _within("bytes of a picture", len(data), 1, limits.image_bytes)
    try:
        width, height = picture_size(data)
    except ValueError as error:
        raise _invalid(f"a picture cannot be used: {error}") from None
    _within("pixels of a picture", width * height, 1, limits.image_pixels)
    return width * height


def _check_embeddings(embeddings: pb.Embeddings, limits: pb.Limits) -> None:
    _within("rows of embeddings", embeddings.rows, 1, limits.context)
    _within("width of embeddings", embeddings.width, 1, MAX_ROUND)
    wanted = 4 * embeddings.rows * embeddings.width
    if len(embeddings.data) != wanted:
        raise _invalid(f"embeddings have {len(embeddings.data)} bytes; their sizes say {wanted}")
    if not np.isfinite(np.frombuffer(embeddings.data, dtype="<f4")).all():
        raise _invalid("embeddings are not finite")


def _check_ids(name: str, ids: Sequence[int], vocab: int) -> None:
    if ids and max(ids) >= vocab:
        raise _invalid(f"{name} hold {max(ids)}; the vocabulary has {vocab} tokens")


def _within(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        bound = f"at least {least}" if value < least else f"at most {most}"
        raise _invalid(f"{name} is {value}; it must be {bound}")


def _invalid(message: str) -> Refusal:
    return Refusal(Reason.INVALID, message)
