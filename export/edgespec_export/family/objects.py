"""The closed world of the built-in family: which objects exist and how they are spoken of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

COLOURS: tuple[str, ...] = (
    "white", "grey", "black", "red", "orange", "yellow", "green", "blue", "purple", "pink",
)  # fmt: skip
"""Names of background colours; the index is the label."""

PLACES: tuple[str, ...] = (
    "top left", "top centre", "top right",
    "middle left", "centre", "middle right",
    "bottom left", "bottom centre", "bottom right",
)  # fmt: skip
"""Names of the nine cells of a scene, row by row; the index is the cell."""

NUMBERS: tuple[str, ...] = ("zero", "one", "two", "three", "four", "five", "six", "seven")

_IRREGULAR = {"mouse": "mice", "leaf": "leaves", "fish": "fish", "tomato": "tomatoes"}


@dataclass(frozen=True)
class Object:
    """One kind of thing that can be drawn. `code` is its Unicode code point in hexadecimal."""

    code: str
    name: str
    category: str
    colour: str | None
    keywords: tuple[str, ...]

    @property
    def plural(self) -> str:
        """The plural of the name, e.g. "foxes"."""
        if self.name in _IRREGULAR:
            return _IRREGULAR[self.name]
        if self.name.endswith(("s", "x", "ch", "sh")):
            return self.name + "es"
        if self.name.endswith("y") and self.name[-2] not in "aeiou":
            return self.name[:-1] + "ies"
        return self.name + "s"


@lru_cache(maxsize=1)
def objects() -> tuple[Object, ...]:
    """All objects, in the order of `objects.tsv`; the index is an object's kind everywhere."""
    lines = (Path(__file__).parent / "objects.tsv").read_text(encoding="utf-8").splitlines()
    found = []
    for line in lines:
        if line.startswith("#"):
            continue
        code, name, category, colour, keywords = line.split("\t")
        known = None if colour == "-" else colour
        found.append(Object(code, name, category, known, tuple(keywords.split())))
    return tuple(found)


def a(noun: str) -> str:
    """The noun with its indefinite article: "an apple", "a ufo"."""
    return f"{'an' if noun[0] in 'aeiou' and not noun.startswith('uf') else 'a'} {noun}"


def join(parts: list[str]) -> str:
    """An English enumeration: "a, b and c"."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
