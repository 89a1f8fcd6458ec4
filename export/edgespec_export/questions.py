"""What to ask the target: pictures and prompts from JSON-lines files in MMSpec's fields."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from PIL import Image

from edgespec.errors import InputError


@dataclass(frozen=True)
class Question:
    """One picture (or none) and one prompt."""

    image: Path | None
    prompt: str
    where: str = field(default="", compare=False)
    """File and line, for messages."""
    answer: str = ""
    """A right answer, where the line has one (``answers``); empty otherwise."""


def read_questions(files: Sequence[Path], limit: int | None = None) -> list[Question]:
    """First turns of every line, or of the first ``limit``; image paths are relative to their file.

    Raises InputError naming file and line.
    """
    found: list[Question] = []
    for file in files:
        try:
            lines = file.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"data file '{file}' cannot be read: {error}") from None
        numbered = ((n, line) for n, line in enumerate(lines, 1) if line.strip())
        left = None if limit is None else limit - len(found)
        found += [_question(file, number, line) for number, line in islice(numbered, left)]
    if not found:
        raise InputError(f"no questions in {', '.join(map(str, files))}")
    return found


def questions_of(asked: str, most: int) -> list[Question]:
    """``FILE[:N]``: N questions of the file, ``most`` where no number is given, from all over it:
    neighbours often share a picture. Raises InputError."""
    file, colon, number = asked.rpartition(":")
    if colon and number.isdigit():
        asked, most = file, max(1, int(number))
    found = read_questions([Path(asked)])
    count = min(most, len(found))
    return [found[i * len(found) // count] for i in range(count)]


def _question(file: Path, number: int, line: str) -> Question:
    where = f"{file}, line {number}"
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is no JSON: {error}") from None
    turns = row.get("turns") if isinstance(row, dict) else None
    first = turns[0] if isinstance(turns, list) and turns else None
    if not isinstance(first, str) or not first.strip():
        raise InputError(f"{where} has no 'turns': a list of prompts, of which the first is asked")
    name = row.get("image")
    image = file.parent / str(name) if name else None
    if image is not None:
        _check_picture(image, where)
    answers = row.get("answers")
    known = answers[0] if isinstance(answers, list) and answers else ""
    return Question(image, first, where, known if isinstance(known, str) else "")


def _check_picture(path: Path, where: str) -> None:
    """Reads the header only: a bad file shall stop a run before it starts, not hours later."""
    try:
        with Image.open(path):
            pass
    except FileNotFoundError:
        raise InputError(f"{where}: picture '{path}' does not exist") from None
    except (OSError, Image.DecompressionBombError) as error:
        raise InputError(f"{where}: picture '{path}' cannot be read: {error}") from None
