"""Messages to text: a Hugging Face chat template, rendered as transformers renders it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from edgespec.errors import PromptError

if TYPE_CHECKING:
    import jinja2

Message = Mapping[str, Any]


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
