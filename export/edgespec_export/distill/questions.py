"""What to ask the target: pictures and prompts from JSON-lines files in MMSpec's fields."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from edgespec.errors import ConfigError, InputError

HELD_OUT_SHARE, HELD_OUT_MOST = 0.05, 48
"""What is put aside for evaluation where no file is given."""


@dataclass(frozen=True)
class Question:
    """One picture (or none) and one prompt."""

    image: Path | None
    prompt: str


def read_questions(files: Sequence[Path]) -> list[Question]:
    """First turns of every line; image paths are relative to their file.

    Raises InputError naming file and line.
    """
    found: list[Question] = []
    for file in files:
        try:
            lines = file.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"data file '{file}' cannot be read: {error}") from None
        found += [
            _question(file, number, line) for number, line in enumerate(lines, 1) if line.strip()
        ]
    if not found:
        raise InputError(f"no questions in {', '.join(map(str, files))}")
    return found


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
    return Question(image, first)


def _check_picture(path: Path, where: str) -> None:
    """Reads the header only: a bad file shall stop a run before it starts, not hours later."""
    try:
        with Image.open(path):
            pass
    except FileNotFoundError:
        raise InputError(f"{where}: picture '{path}' does not exist") from None
    except (OSError, Image.DecompressionBombError) as error:
        raise InputError(f"{where}: picture '{path}' cannot be read: {error}") from None


def split_questions(
    questions: Sequence[Question], held_out: Sequence[Question]
) -> tuple[list[Question], list[Question]]:
    """(to learn, to evaluate): where nothing is held out, the last 5 %, at least 1 and at most 48.

    Raises ConfigError where nothing is left to learn from.
    """
    if held_out:
        return list(questions), list(held_out)
    if len(questions) < 2:
        raise ConfigError("one question cannot be learnt and held out as well; give --held-out")
    count = min(HELD_OUT_MOST, max(1, round(HELD_OUT_SHARE * len(questions))))
    return list(questions[:-count]), list(questions[-count:])


def digest_of(questions: Sequence[Question]) -> str:
    """sha256 over prompts and picture names, which a resumed run must find as they were."""
    rows = [(q.image.name if q.image else None, q.prompt) for q in questions]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


@dataclass(frozen=True)
class Course:
    """Which questions each step takes: a function of (seed, step) alone.

    Questions are taught in pools of fixed members, whose answers the target gives together; pools
    and the questions in them are shuffled anew every epoch.
    """

    count: int
    batch: int
    pool: int
    seed: int

    @property
    def pools(self) -> int:
        return max(1, self.count // self.pool)

    def members(self, pool: int) -> range:
        """Questions of a pool; the last pool takes the remainder as well."""
        end = self.count if pool + 1 == self.pools else (pool + 1) * self.pool
        return range(pool * self.pool, end)

    def step(self, step: int) -> tuple[int, list[int]]:
        """(pool, questions) of a step."""
        steps = [-(-len(self.members(pool)) // self.batch) for pool in range(self.pools)]
        epoch, left = divmod(step, sum(steps))
        for pool in np.random.default_rng([self.seed, 1, epoch]).permutation(self.pools).tolist():
            if left < steps[pool]:
                members = self.members(pool)
                order = np.random.default_rng([self.seed, 2, epoch, pool]).permutation(members)
                return pool, order[left * self.batch : (left + 1) * self.batch].tolist()
            left -= steps[pool]
        raise AssertionError("a step beyond its epoch")
