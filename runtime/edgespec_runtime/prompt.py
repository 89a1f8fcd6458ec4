"""From messages to token ids, with every image's placeholder expanded to its visual tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.errors import BundleError, PromptError
from edgespec_runtime.template import ChatTemplate, Message
from edgespec_runtime.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt as the model reads it."""

    text: str  # as the template wrote it, one placeholder per image
    ids: npt.NDArray[np.int64]  # [L], each placeholder expanded to its image's length
    image_spans: tuple[tuple[int, int], ...]  # (start, end) of each image in ids, end excluded


def build_prompt(
    prompt: str | Sequence[Message],
    n_images: int,
    template: ChatTemplate,
    tokenizer: Tokenizer,
    *,
    image_token: str,
    image_token_id: int,
    image_seq_len: int,
    max_context: int | None = None,
) -> Prompt:
    """Render and tokenise ``prompt``: a user's text, or a list of messages with image parts.

    A text becomes one user message with its ``n_images`` images first. The ids equal those of
    transformers' ``LlavaProcessor.apply_chat_template(..., tokenize=True)``. Raises PromptError for
    a prompt that is empty, malformed, too long, or at odds with the number of images, and
    BundleError when ``image_token`` is not the token ``image_token_id``.
    """
    if tokenizer.token_to_id(image_token) != image_token_id:
        raise BundleError(
            f"the image token {image_token!r} should have id {image_token_id}, but the tokenizer "
            f"says {tokenizer.token_to_id(image_token)}; export the bundle again"
        )
    messages = _messages(prompt, n_images, image_token)
    messages = [template.adapt(message, image_token) for message in messages]
    text = template.render(messages, add_generation_prompt=True, **tokenizer.special_tokens)
    _check_placeholders(text.count(image_token), n_images, image_token)
    # As transformers decides it: a template that writes BOS itself gets no special tokens added.
    bos = tokenizer.special_tokens.get("bos_token")
    ids = tokenizer.encode(text, add_special_tokens=not (bos and text.startswith(bos)))
    _check_placeholders(ids.count(image_token_id), n_images, image_token)
    expanded, spans = expand(ids, image_token_id, image_seq_len)
    if max_context is not None and len(expanded) > max_context:
        raise PromptError(
            f"the prompt is {len(expanded)} tokens long ({n_images} images of {image_seq_len} "
            f"each), but the context holds {max_context}; shorten the text or give fewer images"
        )
    return Prompt(text=text, ids=expanded, image_spans=spans)


def _messages(
    prompt: str | Sequence[Message], n_images: int, image_token: str
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
    if any(image_token in text for text in texts):
        raise PromptError(
            f"the prompt's text contains {image_token!r}, the model's own mark for where an image "
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


def _check_placeholders(found: int, n_images: int, image_token: str) -> None:
    if found != n_images:
        raise PromptError(
            f"the chat template wrote {found} {image_token!r} placeholders for {n_images} images; "
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
