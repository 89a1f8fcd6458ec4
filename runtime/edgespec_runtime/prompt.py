"""From messages to token ids, with every image's placeholder expanded to its visual tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeGuard, cast

import numpy as np
import numpy.typing as npt

from edgespec.errors import BundleError, PromptError
from edgespec_runtime.template import ChatTemplate, Message
from edgespec_runtime.tokenizer import Tokenizer

Asked: TypeAlias = "str | Sequence[Message] | Sequence[int] | npt.NDArray[np.integer[Any]]"
"""What a user may ask: a text, messages, or token ids [L], which are taken as they are."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt as the model reads it."""

    text: str  # as the template wrote it, one placeholder per image
    ids: npt.NDArray[np.int64]  # [L], each placeholder expanded to its image's length
    image_spans: tuple[tuple[int, int], ...]  # (start, end) of each image in ids, end excluded


@dataclass(frozen=True)
class ImageMark:
    """How a prompt shows where an image goes."""

    token: str
    id: int
    length: int
    """Visual tokens that take its place."""


def build_prompt(
    prompt: Asked,
    n_images: int,
    template: ChatTemplate,
    tokenizer: Tokenizer,
    *,
    image: ImageMark | None,
    adds_special_tokens: bool | None = None,
    max_context: int | None = None,
    vocabulary: int | None = None,
) -> Prompt:
    """Render and tokenise ``prompt``: a user's text, or a list of messages with image parts; or
    take token ids below ``vocabulary`` as they are.

    A text becomes one user message with its ``n_images`` images first. The ids equal those of
    transformers' ``apply_chat_template(..., tokenize=True)``: LlavaProcessor's, which adds special
    tokens where the template wrote no BOS, or with ``adds_special_tokens`` a tokenizer's. Raises
    PromptError for a prompt that is empty, malformed, too long, or at odds with the number of
    images, which is none where ``image`` is None, and BundleError when an image's token has
    another id.
    """
    if image is None and n_images:
        raise PromptError(
            f"{n_images} images were given, but this bundle's model reads text alone; leave them "
            "out, or use the bundle of a vision-language model"
        )
    if image is not None and tokenizer.token_to_id(image.token) != image.id:
        raise BundleError(
            f"the image token {image.token!r} should have id {image.id}, but the tokenizer "
            f"says {tokenizer.token_to_id(image.token)}; export the bundle again"
        )
    if is_ids(prompt):
        text, ids = "", _checked_ids(prompt, vocabulary)
    else:
        said = cast("str | Sequence[Message]", prompt)
        messages = _messages(said, n_images, image)
        messages = [template.adapt(message, image.token if image else "") for message in messages]
        text = template.render(messages, add_generation_prompt=True, **tokenizer.special_tokens)
        _check_placeholders(text.count(image.token) if image else 0, n_images, image)
        if adds_special_tokens is None:
            bos = tokenizer.special_tokens.get("bos_token")
            adds_special_tokens = not (bos and text.startswith(bos))
        ids = tokenizer.encode(text, add_special_tokens=adds_special_tokens)
    if image is not None:
        _check_placeholders(ids.count(image.id), n_images, image)
    expanded, spans = expand(ids, image.id if image else -1, image.length if image else 0)
    if not len(expanded):
        raise PromptError("the prompt has no tokens; write what the model should continue")
    if max_context is not None and len(expanded) > max_context:
        pictures = f" ({n_images} images of {image.length} each)" if image else ""
        remedy = "shorten the text or give fewer images" if image else "shorten the text"
        raise PromptError(
            f"the prompt is {len(expanded)} tokens long{pictures}, but the context holds "
            f"{max_context}; {remedy}"
        )
    return Prompt(text=text, ids=expanded, image_spans=spans)


def is_ids(prompt: object) -> TypeGuard[Sequence[int] | npt.NDArray[np.integer[Any]]]:
    """Whether a prompt is given as token ids."""
    if isinstance(prompt, np.ndarray):
        return True
    if not isinstance(prompt, (list, tuple)) or not prompt:
        return False
    return all(isinstance(i, (int, np.integer)) for i in prompt)


def _checked_ids(
    prompt: Sequence[int] | npt.NDArray[np.integer[Any]], vocabulary: int | None
) -> list[int]:
    ids = np.asarray(prompt)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise PromptError(
            f"a prompt of token ids is one row of whole numbers; got shape {list(ids.shape)} of "
            f"{ids.dtype}"
        )
    outside = [i for i in ids.tolist() if i < 0 or (vocabulary is not None and i >= vocabulary)]
    if outside:
        raise PromptError(
            f"the prompt holds token id {outside[0]}, but the vocabulary has {vocabulary} tokens"
        )
    return list(map(int, ids))


def _messages(
    prompt: str | Sequence[Message], n_images: int, image: ImageMark | None
) -> list[dict[str, Any]]:
    """Checked messages whose content is a string or a list of text and image parts."""
    if isinstance(prompt, str):
        parts: list[dict[str, str]] = [{"type": "image"}] * n_images
        prompt = [{"role": "user", "content": [*parts, {"type": "text", "text": prompt}]}]
    if not isinstance(prompt, Sequence):
        raise PromptError(f"a prompt is a text or a list of messages; got {type(prompt).__name__}")
    messages = [_message(message, index) for index, message in enumerate(prompt)]
    texts = [text for message in messages for text in _texts(message)]
    if not any(text.strip() for text in texts):
        raise PromptError("the prompt is empty; write what the model should answer")
    if image is not None and any(image.token in text for text in texts):
        raise PromptError(
            f"the prompt's text contains {image.token!r}, the model's own mark for where an image "
            f"goes; remove it: images are given as files, and their places are set by the template"
        )
    found = sum(
        part["type"] == "image"
        for message in messages
        if isinstance(message["content"], list)
        for part in message["content"]
    )
    if found != n_images:
        raise PromptError(
            f"the messages have {found} image parts, but {n_images} images were given; "
            f"give one image for each part"
        )
    return messages


def _message(message: Any, index: int) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise PromptError(f"message {index} is no object with a role; got {message!r:.80}")
    # Clients send "tool_calls": null and the like, which templates print as the word None.
    message = {key: value for key, value in message.items() if value is not None}
    content = message.get("content", "")
    if isinstance(content, (list, tuple)):
        content = [_part(part, index) for part in content]
    elif not isinstance(content, str):
        raise PromptError(
            f"the content of message {index} is {type(content).__name__}; it must be a string or "
            f"a list of text and image parts"
        )
    return {**message, "content": content}


def _part(part: Any, index: int) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return dict(part)
    if kind in ("image", "image_url"):
        return {**part, "type": "image"}
    raise PromptError(
        f"message {index} has a part that is neither text nor image: {part!r:.80}; "
        f'use {{"type": "text", "text": ...}} or {{"type": "image"}}'
    )


def _texts(message: Message) -> list[str]:
    content = message["content"]
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content if part["type"] == "text"]


def _check_placeholders(found: int, n_images: int, image: ImageMark | None) -> None:
    if image is not None and found != n_images:
        raise PromptError(
            f"the chat template wrote {found} {image.token!r} placeholders for {n_images} images; "
            f"use a template that writes one for each image part"
        )


def expand(
    ids: Sequence[int], image_token_id: int, length: int
) -> tuple[npt.NDArray[np.int64], tuple[tuple[int, int], ...]]:
    """Repeats each placeholder ``length`` times; returns int64 ids [L] and the images' spans."""
    array = np.asarray(ids, dtype=np.int64)
    places = np.flatnonzero(array == image_token_id)
    counts = np.ones(len(array), dtype=np.int64)
    counts[places] = length
    starts = places + np.arange(len(places)) * (length - 1)
    spans = tuple((int(start), int(start) + length) for start in starts)
    return np.repeat(array, counts), spans
