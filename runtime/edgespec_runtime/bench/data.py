"""Prompt sets: JSON lines in MMSpec's fields ``id, image, turns, category, topic``.

Source of the fields: MMSpec (arXiv 2603.14989), ``dataset/README.md``. Its pictures lie in
``images/`` beside the file; a set of one's own may also name them relative to the file itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from edgespec.errors import ConfigError, ImageError, InputError


@dataclass(frozen=True)
class Row:
    """One conversation of a prompt set."""

    id: str
    images: tuple[Path, ...]
    """Pictures of the first turn; may be empty."""
    turns: tuple[str, ...]
    """What the user says, turn by turn."""
    task: str
    domain: str
    """The set it came from: the file's name without its ending."""


def read_sets(paths: Sequence[Path], field: str = "category") -> list[Row]:
    """The rows of all files in their order; ``field`` names their tasks ("category", or "topic" as
    in MMSpec, whose six tasks are its topics).

    Raises InputError for files that cannot be told apart and for what ``read_rows`` refuses.
    """
    rows: dict[str, list[Row]] = {}
    for path in paths:
        if path.stem in rows:
            raise InputError(
                f"two data files are called '{path.stem}', and their figures could not be told "
                "apart; rename one of them"
            )
        rows[path.stem] = read_rows(path, field)
    return [row for of_file in rows.values() for row in of_file]


def read_rows(path: Path, field: str = "category") -> list[Row]:
    """The rows of one file. Raises InputError naming the line that is no row."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise InputError(f"no data file at '{path}'; check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"data file '{path}' cannot be read: {error}") from None
    rows: dict[str, Row] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        row = _row(line, path, field, where)
        if row.id in rows:
            raise InputError(f"{where}: id '{row.id}' was used before; ids must differ")
        rows[row.id] = row
    if not rows:
        raise InputError(f"data file '{path}' holds no rows")
    return list(rows.values())


def select(
    rows: Sequence[Row], tasks: Sequence[str] = (), per_task: int = 0, first_turn: bool = False
) -> list[Row]:
    """Rows of ``tasks`` (none: all), the first ``per_task`` (0: all) of every set and task.

    Raises ConfigError for a task that no row has.
    """
    known = list(dict.fromkeys(row.task for row in rows))
    for task in tasks:
        if task not in known:
            raise ConfigError(unknown("task", task, known))
    taken: dict[tuple[str, str], int] = {}
    chosen = []
    for row in rows:
        key = (row.domain, row.task)
        if (tasks and row.task not in tasks) or (per_task and taken.get(key, 0) >= per_task):
            continue
        taken[key] = taken.get(key, 0) + 1
        chosen.append(replace(row, turns=row.turns[:1]) if first_turn else row)
    return chosen


def check_images(rows: Sequence[Row]) -> None:
    """Opens every picture once, so that a bad one is told before anything is measured.

    Raises ImageError naming row and file.
    """
    from edgespec_runtime.images import load_image

    seen: set[Path] = set()
    for row in rows:
        for image in row.images:
            if image in seen:
                continue
            try:
                load_image(image)
            except ImageError as error:
                raise ImageError(f"{row.domain}, id '{row.id}': {error}") from None
            seen.add(image)


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """The sentence for a name that there is not, with the nearest one and all there are."""
    names = list(known)
    near = get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"unknown {what} '{name}'; {hint}there are: {', '.join(names)}"


def _row(line: str, path: Path, field: str, where: str) -> Row:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{where} must be an object with the fields id, image, turns, category")
    for name in ("id", "turns", field):
        if name not in value:
            raise InputError(f"{where} has no '{name}'")
    turns, task = value["turns"], value[field]
    if not _texts(turns):
        raise InputError(f"{where}: 'turns' must be a list of texts that are not empty")
    if not _texts([task]):
        raise InputError(f"{where}: '{field}' is {task!r}; it must be the name of a task")
    return Row(
        id=str(value["id"]),
        images=tuple(_picture(name, path.parent, where) for name in _pictures(value, where)),
        turns=tuple(turns),
        task=task,
        domain=path.stem,
    )


def _texts(value: Any) -> bool:
    fine = isinstance(value, list) and bool(value)
    return fine and all(isinstance(text, str) and text.strip() for text in value)


def _pictures(value: dict[str, Any], where: str) -> list[str]:
    given = value.get("image")
    names = given if isinstance(given, list) else [] if given is None else [given]
    if names and not _texts(names):
        raise InputError(f"{where}: 'image' must be a path, a list of paths, or null")
    return names


def _picture(name: str, folder: Path, where: str) -> Path:
    for place in (folder / name, folder / "images" / name):
        if place.is_file():
            return place
    raise InputError(f"{where}: no picture '{name}', neither in '{folder}' nor in its images/")
