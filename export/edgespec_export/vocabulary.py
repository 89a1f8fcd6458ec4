"""A vocabulary ranked by use: which tokens a target emits, most frequent first.

A draft's output head costs most of its time where vocabularies are large; kept to the frequent
tokens it proposes nearly as much (FR-Spec, Zhao et al. 2025). The target judges with all of its
own, so the text does not change. The file is JSON:
``{"vocab_size": V, "tokens_seen": N, "ids": [...], "counts": [...]}``.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from edgespec.errors import CheckpointError, ConfigError

REMEDY = "make one with `edgespec frequencies`"


def write_frequencies(
    path: str | Path, vocab_size: int, counts: Mapping[int, int], always: Sequence[int] = ()
) -> list[int]:
    """Ranks ``counts`` (token id -> how often) and writes them, whole or not at all.

    Ids of ``always`` (end of sequence) are listed even if they were never seen. Returns the ids,
    most frequent first. Raises ConfigError for an id outside the vocabulary.
    """
    every = {**dict.fromkeys(always, 0), **counts}
    outside = sorted(token for token in every if not 0 <= token < vocab_size)
    if outside:
        raise ConfigError(
            f"token ids {outside[:5]} are outside the vocabulary of {vocab_size}; the tokenizer "
            "and the model do not belong together"
        )
    ids = sorted(every, key=lambda token: (-every[token], token))
    content = {
        "vocab_size": vocab_size,
        "tokens_seen": sum(every.values()),
        "ids": ids,
        "counts": [every[token] for token in ids],
    }
    _write_whole(Path(path), json.dumps(content) + "\n")
    return ids


def read_frequencies(path: str | Path, vocab_size: int) -> tuple[int, ...]:
    """The ids of a frequency file, most frequent first.

    Raises ConfigError for a file that cannot be read or is no frequency list, CheckpointError for
    one that was counted with another vocabulary than ``vocab_size``.
    """
    content = _read_json(path)
    for key in ("vocab_size", "ids", "counts"):
        if key not in content:
            raise ConfigError(f"'{path}' is no frequency list: it has no '{key}'; {REMEDY}")
    if content["vocab_size"] != vocab_size:
        raise CheckpointError(
            f"'{path}' was counted with a vocabulary of {content['vocab_size']!r} tokens, this "
            f"model has {vocab_size}; {REMEDY} for this model"
        )
    ids, counts = _integers(path, content, "ids"), _integers(path, content, "counts")
    if len(ids) != len(counts):
        raise ConfigError(f"'{path}' lists {len(ids)} ids but {len(counts)} counts; {REMEDY}")
    if not ids:
        raise ConfigError(f"'{path}' lists no ids; {REMEDY}")
    outside = [token for token in ids if not 0 <= token < vocab_size]
    if outside:
        raise ConfigError(
            f"'{path}' lists ids outside the vocabulary of {vocab_size}: {outside[:5]}; {REMEDY}"
        )
    twice = [token for token, times in Counter(ids).items() if times > 1]
    if twice:
        raise ConfigError(f"'{path}' lists ids twice: {twice[:5]}; {REMEDY}")
    if any(more < less for more, less in pairwise(counts)):
        raise ConfigError(f"the counts of '{path}' are not in falling order; {REMEDY}")
    return tuple(ids)


def trimmed(ids: Sequence[int], size: int | None, always: Sequence[int]) -> tuple[int, ...]:
    """``size`` ids in ascending order: those of ``always``, then the first of ``ids``.

    ``size`` None is all of them. Raises ConfigError for a size that cannot be filled or that has
    no room for ``always``.
    """
    ranked = list(dict.fromkeys([*always, *ids]))
    if size is None:
        size = len(ranked)
    if size < 1 or size < len(set(always)):
        raise ConfigError(
            f"a draft vocabulary of {size} tokens is too small; it must hold at least one token "
            f"and the {len(set(always))} that end a text"
        )
    if size > len(ranked):
        raise ConfigError(
            f"a draft vocabulary of {size} tokens was asked for, but the list holds {len(ranked)}; "
            "ask for fewer, or count more text"
        )
    return tuple(sorted(ranked[:size]))


def parse_vocabulary(text: str, vocab_size: int, always: Sequence[int]) -> tuple[int, ...]:
    """``FILE`` or ``FILE:N`` -> the ids a draft may propose, ascending; ``always`` are among them.

    Raises what ``read_frequencies`` and ``trimmed`` raise.
    """
    path, colon, size = text.rpartition(":")
    if not colon or not size.isdigit():
        path, size = text, ""
    ids = read_frequencies(path, vocab_size)
    return trimmed(ids, int(size) if size else None, always)


def _read_json(path: str | Path) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"frequency list '{path}' cannot be read ({error.strerror}); {REMEDY}"
        ) from None
    except ValueError as error:  # not UTF-8, or not JSON
        raise ConfigError(f"'{path}' is not JSON ({error}); {REMEDY}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"'{path}' is no frequency list: it holds no JSON object; {REMEDY}")
    return content


def _integers(path: str | Path, content: Mapping[str, Any], key: str) -> list[int]:
    values = content[key]
    if not isinstance(values, list) or any(type(value) is not int for value in values):
        raise ConfigError(f"'{key}' of '{path}' is not a list of integers; {REMEDY}")
    return values


def _write_whole(path: Path, text: str) -> None:
    """Writes beside ``path`` and renames, so that a reader never sees half a file."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
