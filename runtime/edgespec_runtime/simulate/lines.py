"""Trace files, read strictly: what ``edgespec bench --record`` wrote, or a refusal by line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgespec.errors import ConfigError, InputError
from edgespec.latency.strict import read
from edgespec.sizing import Growth
from edgespec_runtime.bench.traces import FORMAT

RECORD = "record with: edgespec bench --policy survey --repeats 1 --record FILE.jsonl"


@dataclass(frozen=True)
class Line:
    """One recorded run: the fields of ``bench.traces.trace``. Raises ValueError for no run."""

    id: str
    turn: int
    domain: str
    task: str
    bundle: str
    target: str
    draft: str
    draft_positions: int
    method: str
    compressor: str
    policy: str
    temperature: float
    coupled: bool
    named: bool
    seed: int
    repeat: int
    prompt_tokens: int
    draft_prompt_tokens: int
    images: int
    question: tuple[int, ...]
    eos: tuple[int, ...]
    max_new_tokens: int
    tokens: tuple[int, ...]
    finish_reason: str
    ttft_ms: float
    draft_prefill_ms: float
    host_ms: float
    total_ms: float
    accepted: tuple[int, ...]
    tree_nodes: tuple[int, ...]
    draft_ms: tuple[float, ...]
    verify_ms: tuple[float, ...]
    prepare_ms: tuple[float, ...]
    growth: tuple[str, ...]
    calls: tuple[tuple[int, ...], ...]
    path: tuple[tuple[Any, ...], ...]
    """By round: [rank, log-probability, ...] per expanded node on the answer's path."""
    astray: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        columns = ("tree_nodes", "draft_ms", "verify_ms", "prepare_ms", "growth", "calls", "path",
                   "astray")  # fmt: skip
        for name in columns:
            if len(getattr(self, name)) != len(self.accepted):
                raise ValueError(
                    f"'{name}' has {len(getattr(self, name))} rounds, 'accepted' has "
                    f"{len(self.accepted)}"
                )
        if sum(self.accepted) != len(self.tokens) - 1:
            raise ValueError(
                f"'accepted' adds up to {sum(self.accepted)} tokens after the first of "
                f"{len(self.tokens)}"
            )
        if not 0 < len(self.tokens) <= self.max_new_tokens:
            raise ValueError(f"{len(self.tokens)} tokens of at most {self.max_new_tokens}")
        for growth in self.growth:
            if growth not in {kind.value for kind in Growth}:
                raise ValueError(f"'growth' has {growth!r}")
        for pair in self.astray:
            if len(pair) != 2 or pair[1] > pair[0]:
                raise ValueError(f"'astray' has {list(pair)}")
        self._check_path()

    def _check_path(self) -> None:
        left = len(self.tokens) - 1
        for accepted, nodes in zip(self.accepted, self.path, strict=True):
            if len(nodes) > left:
                raise ValueError(f"'path' has {len(nodes)} nodes where {left} tokens are left")
            for node in nodes:
                if not _is_node(node):
                    raise ValueError(
                        f"'path' has {node!r}; a node is [rank, log-probability, ...] with a rank "
                        "from -1 and log-probabilities of 0 or less"
                    )
            left -= accepted


def read_lines(paths: Sequence[Path]) -> list[Line]:
    """The runs of all files in their order.

    Raises InputError for a file that cannot be read or holds none, and for the first line that is
    no run in this format.
    """
    lines = []
    for path in paths:
        try:
            texts = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"trace '{path}' cannot be read: {reason}; {RECORD}") from None
        numbered = [(n, text) for n, text in enumerate(texts, start=1) if text.strip()]
        if not numbered:
            raise InputError(f"trace '{path}' holds no runs; {RECORD}")
        lines += [parse_line(text, f"{path}, line {number}") for number, text in numbered]
    return lines


def parse_line(text: str, where: str) -> Line:
    """The run in one line of a file; ``where`` names it in errors. Raises InputError."""
    try:
        values = json.loads(text)
    except ValueError as error:
        raise InputError(f"{where} is no JSON: {error}; was the recording broken off?") from None
    if not isinstance(values, dict) or "format" not in values:
        raise InputError(f"{where} is no run of this edgespec (it has no 'format'); {RECORD}")
    version = values.pop("format")
    if version != FORMAT:
        raise InputError(
            f"{where} has format {version!r}, this edgespec reads {FORMAT}; record again"
        )
    try:
        return read(Line, values, where)
    except ConfigError as error:
        raise InputError(str(error)) from None


def _is_node(node: object) -> bool:
    if not isinstance(node, list) or len(node) < 2 or not isinstance(node[0], int):
        return False
    numbers = all(isinstance(value, (int, float)) and value <= 0 for value in node[1:])
    return numbers and -1 <= node[0] < len(node) - 1
