"""Compressors of a draft's visual tokens, as ``--compressor`` and checkpoints name them.

``pool:4`` averages, ``prune:20`` keeps a random twentieth, ``stride:4`` every fourth, ``conv:3``
convolves, ``resampler:2`` asks two learned queries, ``text-only`` removes every visual token;
``elastic:select``, ``elastic:weighted`` and ``elastic:concat`` are SpecVLM's (arXiv 2509.11815).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np

from edgespec.errors import ConfigError

AMOUNTS: Mapping[str, int] = {"pool": 2, "prune": 2, "stride": 2, "conv": 2, "resampler": 1}
"""Kinds that need a number (a ratio; of a resampler its queries), and the least one."""
FREE = ("pool", "prune", "stride", "text-only")
"""Kinds without weights: usable with any draft."""
ELASTIC: Mapping[str, tuple[str, ...]] = {
    "select": ("prune:20", "pool:20", "conv:3", "resampler:2", "text-only"),
    "weighted": ("prune:3", "pool:3", "conv:3"),
    "concat": ("prune:20", "pool:20", "conv:3", "resampler:2"),
}
"""Branches of SpecVLM's three modes, at the ratios that worked there."""
PRUNE_SEED = 0


@dataclass(frozen=True)
class Compression:
    """A compressor by kind and amount; an elastic one has branches."""

    kind: str
    amount: int = 0
    branches: tuple[Compression, ...] = ()

    def __str__(self) -> str:
        if self.kind in ELASTIC:
            return f"elastic:{self.kind}"
        return f"{self.kind}:{self.amount}" if self.amount else self.kind

    @property
    def trained(self) -> bool:
        """Whether it has weights, which only a checkpoint can bring."""
        return self.kind not in FREE

    def tokens(self, visual: int) -> int:
        """The most tokens that ``visual`` ones become."""
        if self.kind == "text-only":
            return 0
        if self.kind == "resampler":
            return self.amount
        if self.kind in ELASTIC:
            counts = [branch.tokens(visual) for branch in self.branches]
            return sum(counts) if self.kind == "concat" else max(counts)
        if self.kind == "pool" and (window := square_window(self.amount, visual)):
            return math.ceil(math.isqrt(visual) / window) ** 2
        return math.ceil(visual / self.amount)

    def as_json(self) -> dict[str, Any]:
        """For a checkpoint's config.json."""
        named = {"branches": [str(branch) for branch in self.branches]} if self.branches else {}
        return {"kind": str(self), **named}


def square_window(ratio: int, visual: int) -> int:
    """The window's side where ``ratio`` is a square and the tokens a square grid, else 0."""
    side, grid = math.isqrt(ratio), math.isqrt(visual)
    return side if side**2 == ratio and grid**2 == visual else 0


def kept_tokens(kind: str, tokens: int, ratio: int) -> list[int]:
    """Which of ``tokens`` a pruning by ``ratio`` keeps: a fixed random choice, or evenly spaced."""
    count = math.ceil(tokens / ratio)
    if kind == "stride":
        return [(2 * i + 1) * tokens // (2 * count) for i in range(count)]
    rng = np.random.default_rng([PRUNE_SEED, tokens, ratio])
    return sorted(int(i) for i in rng.choice(tokens, size=count, replace=False))


def parse_compression(text: str, branches: tuple[str, ...] = ()) -> Compression:
    """``"pool:4"`` -> a Compression. Raises ConfigError that names what there is."""
    kind, _, amount = text.partition(":")
    if kind == "elastic":
        mode = amount or "select"
        if mode not in ELASTIC:
            raise ConfigError(_unknown(text, mode, ELASTIC, "elastic:"))
        parts = tuple(parse_compression(part) for part in branches or ELASTIC[mode])
        return Compression(mode, 0, parts)
    if kind == "text-only" and not amount:
        return Compression(kind)
    if kind not in AMOUNTS:
        raise ConfigError(_unknown(text, kind, (*AMOUNTS, "text-only", "elastic")))
    what = "a number of queries" if kind == "resampler" else "a ratio"
    if not amount.isdigit() or int(amount) < AMOUNTS[kind]:
        raise ConfigError(
            f"compressor '{text}' needs {what} of at least {AMOUNTS[kind]}: write {kind}:N"
        )
    return Compression(kind, int(amount))


def check_fits(compression: Compression, visual: int) -> None:
    """Raises ConfigError where ``visual`` tokens per image cannot be compressed so."""
    parts = compression.branches or (compression,)
    for part in parts:
        if not compression.branches and part.amount > visual:
            raise ConfigError(f"compressor {part}: an image has only {visual} visual tokens")
    if compression.kind == "weighted" and len({p.tokens(visual) for p in parts}) > 1:
        counts = ", ".join(f"{part} gives {part.tokens(visual)}" for part in parts)
        raise ConfigError(f"{compression} adds branches up, but they differ in length: {counts}")


def _unknown(text: str, name: str, known: Any, prefix: str = "") -> str:
    near = get_close_matches(name, known, n=1)
    hint = f"; did you mean '{prefix}{near[0]}'?" if near else ""
    return f"compressor '{text}' is not understood{hint or '.'} There are: {', '.join(known)}"
