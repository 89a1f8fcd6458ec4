"""HTML and SVG as strings in which nothing a user wrote is ever a tag."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

UNPRINTABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML cannot hold: control characters and halves of surrogate pairs."""


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def escape(content: object) -> Markup:
    """``content`` as text, unless it is markup."""
    if isinstance(content, Markup):
        return content
    return Markup(html.escape(UNPRINTABLE.sub("\ufffd", str(content))))


def join(parts: Iterable[object], between: str = "") -> Markup:
    """All parts, those that are not markup escaped."""
    return Markup(escape(between).join(escape(part) for part in parts))


def tag(element: str, /, *content: object, **attributes: object) -> Markup:
    """``<element attribute="value">content</element>``, or ``<element/>`` without content.

    A trailing underscore of an attribute's name falls away (class_), others become hyphens; None
    leaves the attribute out."""
    words: list[str] = [element]
    for key, value in attributes.items():
        if value is not None:
            shown = coordinate(value) if isinstance(value, float) else value
            words.append(f'{key.rstrip("_").replace("_", "-")}="{escape(shown)}"')
    head = " ".join(words)
    return Markup(f"<{head}>{join(content)}</{element}>" if content else f"<{head}/>")


def coordinate(value: float) -> str:
    """A position in a picture, to a hundredth of a unit."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def figure(value: float) -> str:
    """A measured number at three significant digits: 0.0123, 1.23, 12.3, 1,235."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 99.95:
        return f"{value:,.0f}"
    if size >= 9.995:
        return f"{value:.1f}"
    return f"{value:.2f}" if size >= 0.9995 else f"{value:.3g}"


def table(head: Sequence[object], rows: Iterable[Sequence[object]], caption: str = "") -> Markup:
    """A table: the first column names, the others hold figures aligned to the right."""
    cells = [tag("th", name, scope="col") for name in head]
    lines = [
        tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:]))
        for row in rows
    ]
    title: list[Markup] = [tag("caption", caption)] if caption else []
    body = tag("table", *title, tag("thead", tag("tr", *cells)), tag("tbody", *lines or [Markup()]))
    return tag("div", body, class_="wide")


def facts(pairs: Iterable[tuple[str, object]]) -> Markup:
    """Names and values; those that say nothing are left out."""
    items = [
        tag("div", tag("dt", name), tag("dd", value))
        for name, value in pairs
        if value not in ("", None)
    ]
    return tag("dl", *items or [Markup()])


def section(title: str, *content: object, note: str = "") -> Markup:
    """A part of the page under a heading, with a sentence on how to read it."""
    words = [tag("p", note, class_="note")] if note else []
    return tag("section", tag("h2", title), *words, *content)
