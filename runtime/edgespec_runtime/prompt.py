"""From messages to token ids: the tokenizer, the chat template, and the image placeholders."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgespec.errors import BundleError, PromptError

if TYPE_CHECKING:
    import jinja2
    import tokenizers

Message = Mapping[str, Any]


class Tokenizer:
    """A ``tokenizer.json`` with the names of its special tokens.

    ``special_tokens`` maps ``bos_token``, ``eos_token``, ... to their text: a chat template may ask
    for them, and a prompt that already begins with ``bos_token`` is not given a second one. Raises
    BundleError for a file that is missing or not understood.
    """

    def __init__(
        self, path: str | Path, *, special_tokens: Mapping[str, str] | None = None
    ) -> None:
        import tokenizers

        if not Path(path).is_file():
            raise BundleError(f"no tokenizer at '{path}'; export the bundle again")
        try:
            self.backend: tokenizers.Tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception for every kind of bad file
            raise BundleError(
                f"tokenizers {tokenizers.__version__} cannot read '{path}' ({error}); export the "
                f"bundle again or upgrade tokenizers"
            ) from error
        # What a training run left in the file must not cut or fill prompts.
        self.backend.no_truncation()
        self.backend.no_padding()
        self.special_tokens: dict[str, str] = dict(special_tokens or {})

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Read ``tokenizer.json`` and the special tokens' names from the JSON files beside it."""
        names: dict[str, str] = {}
        for file in ("special_tokens_map.json", "tokenizer_config.json"):
            path = Path(folder) / file
            if path.is_file():
                names.update(_token_names(path))
        return cls(Path(folder) / "tokenizer.json", special_tokens=names)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of ``text``. Raises PromptError for text that is no valid Unicode."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise PromptError(
                f"the text holds a lone surrogate at character {error.start}, which no tokenizer "
                f"accepts; remove it"
            ) from error
        return list(self.backend.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of ``ids``; ids outside the vocabulary are passed over."""
        return str(
            self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)
        )

    def token_to_id(self, token: str) -> int | None:
        """Id of one token's exact text, or None."""
        found = self.backend.token_to_id(token)
        return None if found is None else int(found)


def _token_names(path: Path) -> dict[str, str]:
    """``{"bos_token": "<s>", ...}`` from a tokenizer_config.json or special_tokens_map.json."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        items = config.items()
    except (OSError, ValueError, AttributeError) as error:
        raise BundleError(
            f"'{path}' is not a readable JSON object ({error}); export again"
        ) from error
    names = {}
    for key, value in items:
        text = value.get("content") if isinstance(value, Mapping) else value
        if key.endswith("_token") and isinstance(text, str):
            names[key] = text
    return names


class ChatTemplate:
    """A Hugging Face chat template (jinja2), rendered in a sandbox as transformers does."""

    def __init__(self, template: jinja2.Template) -> None:
        self._template = template

    @classmethod
    def from_source(cls, template: str) -> ChatTemplate:
        """Compile ``template``. Raises PromptError for a template that jinja2 cannot parse."""
        import jinja2

        try:
            return cls(_environment().from_string(template))
        except jinja2.TemplateError as error:
            raise PromptError(
                f"the chat template cannot be parsed ({error}); give one that jinja2 accepts"
            ) from error

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """Text of ``messages``; ``variables`` are what the template may read (``bos_token``, ...).

        Raises PromptError when the template refuses the messages or fails.
        """
        try:
            return self._template.render(
                messages=_plain(list(messages)),
                add_generation_prompt=add_generation_prompt,
                **{"tools": None, "documents": None, **_plain(variables)},
            )
        except Exception as error:  # a template is a program: any Python error may come out of it
            raise PromptError(
                f"the chat template failed on these messages ({type(error).__name__}: {error}); "
                f"check their roles and content, or the template"
            ) from error

    @cached_property
    def _takes(self) -> tuple[bool, bool]:
        """Whether content may be (a list of parts, a string), tried with a harmless message."""
        probe = "edgespec probe"
        parts = self._try([{"type": "text", "text": probe}])
        return probe in parts and "'type'" not in parts, probe in self._try(probe)

    def _try(self, content: Any) -> str:
        names: Any = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "")
        try:
            return self.render([{"role": "user", "content": content}], **names)
        except PromptError:
            return ""

    def adapt(self, message: Message, image_token: str) -> dict[str, Any]:
        """``message`` with its content in a form that this template reads.

        Many LLaVA templates lose a plain string in silence, and text-only templates print a list of
        parts as Python source; transformers lets both happen.
        """
        takes_parts, takes_string = self._takes
        content = message.get("content")
        if isinstance(content, str) and takes_parts and not takes_string:
            return {**message, "content": [{"type": "text", "text": content}]}
        if isinstance(content, list) and takes_string and not takes_parts:
            lines = [part["text"] if part["type"] == "text" else image_token for part in content]
            return {**message, "content": "\n".join(lines)}
        return dict(message)


def _environment() -> jinja2.Environment:
    """The sandbox, whitespace rules and helpers that transformers gives to chat templates."""
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}`` marks an assistant's words for training; here it prints its body."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:  # jinja2's own escapes HTML
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _plain(value: Any) -> Any:
    """Copy of ``value`` in JSON's types: an untrusted template must not reach live objects."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return str.__str__(value)
    return f"<{type(value).__name__}>"


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
    expanded, spans = _expand(ids, image_token_id, image_seq_len)
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


def _expand(
    ids: Sequence[int], image_token_id: int, length: int
) -> tuple[npt.NDArray[np.int64], tuple[tuple[int, int], ...]]:
    """Repeat each placeholder ``length`` times; return int64 ids ``[L]`` and the images' spans."""
    array = np.asarray(ids, dtype=np.int64)
    places = np.flatnonzero(array == image_token_id)
    counts = np.ones(len(array), dtype=np.int64)
    counts[places] = length
    starts = places + np.arange(len(places)) * (length - 1)
    spans = tuple((int(start), int(start) + length) for start in starts)
    return np.repeat(array, counts), spans
