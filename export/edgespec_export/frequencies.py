"""Counting the tokens a target emits: over text files, or over its own answers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgespec.errors import CheckpointError, ConfigError, InputError
from edgespec_export.questions import Question
from edgespec_runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from edgespec_runtime import Model

Progress = Callable[[int], object]
"""Told how much of the work (bytes of text, rows of data) was done since the last call."""


@dataclass(frozen=True)
class Counted:
    """What was counted, in what vocabulary."""

    vocab_size: int
    counts: Mapping[int, int]
    eos_ids: tuple[int, ...]
    documents: int


def count_texts(
    folder: str | Path,
    files: Sequence[Path],
    limit: int | None = None,
    progress: Progress = lambda done: None,
) -> Counted:
    """Counts the tokens of text files, one document a line, as a target would emit them: without
    the tokens that begin a text, and each document ended by the first end-of-sequence token.

    ``folder`` is a checkpoint: its tokenizer, vocabulary size and end-of-sequence ids are used.
    """
    if not Path(folder, "tokenizer.json").is_file():
        raise CheckpointError(f"'{folder}' holds no tokenizer.json; give a checkpoint's directory")
    tokenizer = Tokenizer.from_folder(folder)
    eos_ids = _eos_ids(Path(folder), tokenizer)
    counts: Counter[int] = Counter()
    documents = 0
    for line in islice(_documents(files, progress), limit):
        counts.update(tokenizer.encode(line, add_special_tokens=False))
        counts.update(eos_ids[:1])
        documents += 1
    if not documents:
        raise ConfigError(f"{', '.join(map(str, files))}: no line of text; give other files")
    return Counted(_vocab_size(Path(folder), tokenizer), counts, eos_ids, documents)


def count_answers(
    model: Model,
    questions: Iterable[Question],
    max_new_tokens: int | None = None,
    progress: Progress = lambda done: None,
) -> Counted:
    """Counts the tokens of the target's own greedy answers, end-of-sequence tokens among them."""
    counts: Counter[int] = Counter()
    documents = 0
    for question in questions:
        try:
            answer = model.generate(
                question.image,
                question.prompt,
                draft="none",
                temperature=0.0,
                max_new_tokens=max_new_tokens,
            )
        except InputError as error:
            raise ConfigError(f"{question.where}: {error}") from None
        counts.update(answer.token_ids)
        documents += 1
        progress(1)
    manifest = model.manifest
    eos_ids = tuple(int(token) for token in manifest.generation["eos_token_ids"])
    return Counted(int(manifest.text["vocab_size"]), counts, eos_ids, documents)


def _documents(files: Sequence[Path], progress: Progress) -> Iterator[str]:
    for path in files:
        for line in _lines(path):
            progress(len(line.encode("utf-8")))
            if text := line.strip():
                yield text


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            yield from file
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"'{path}' is not UTF-8 text: {error}") from None


def _eos_ids(folder: Path, tokenizer: Tokenizer) -> tuple[int, ...]:
    """End-of-sequence ids: the generation defaults', else the model's, else the tokenizer's."""
    config = _json(folder / "config.json")
    text = config.get("text_config") or {}
    for holder in (_json(folder / "generation_config.json"), config, text):
        found = holder.get("eos_token_id")
        if found is not None:
            return tuple(int(token) for token in (found if isinstance(found, list) else [found]))
    named = tokenizer.token_to_id(tokenizer.special_tokens.get("eos_token", ""))
    if named is None:
        raise CheckpointError(
            f"'{folder}' names no end-of-sequence token, which a draft must be able to propose; "
            "add generation_config.json with an eos_token_id"
        )
    return (named,)


def _vocab_size(folder: Path, tokenizer: Tokenizer) -> int:
    """Rows of the model's output head, which may be more than the tokenizer has tokens."""
    config = _json(folder / "config.json")
    text = config.get("text_config") or {}
    found = text.get("vocab_size", config.get("vocab_size"))
    return int(found) if found is not None else tokenizer.vocab_size


def _json(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"'{path}' is not JSON: {error}") from None
    return content if isinstance(content, dict) else {}
