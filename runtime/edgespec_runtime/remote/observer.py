"""Who is told what calls took; ``link.Link`` learns from it. Times are milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Observer(Protocol):
    """``total``: from a request to its reply; ``queue`` and ``compute``: the server's share of it;
    ``up`` and ``down``: bytes."""

    def informed(self, sizes: Sequence[int], median_ms: Sequence[float]) -> None:
        """The server's own verify curve, by rows; empty where it has none."""

    def pinged(self, total: float, *, connecting: bool = False) -> None:
        """A call without work; ``connecting``: it set up its connection first."""

    def opened(
        self, total: float, queue: float, compute: float, up: int, down: int, *, cached: bool
    ) -> None:
        """An Open; ``cached``: the server still had the session's rows."""

    def verified(
        self, rows: int, total: float, queue: float, compute: float, up: int, down: int
    ) -> None:
        """A verification of ``rows`` rows, the root's included."""

    def streamed(self, queue: float, compute: float, down: int) -> None:
        """A token that the server sent by itself."""

    def forget(self) -> None:
        """Another server from here on."""


class Nobody:
    """Listens to nothing."""

    def informed(self, sizes: Sequence[int], median_ms: Sequence[float]) -> None: ...

    def pinged(self, total: float, *, connecting: bool = False) -> None: ...

    def opened(
        self, total: float, queue: float, compute: float, up: int, down: int, *, cached: bool
    ) -> None: ...

    def verified(
        self, rows: int, total: float, queue: float, compute: float, up: int, down: int
    ) -> None: ...

    def streamed(self, queue: float, compute: float, down: int) -> None: ...

    def forget(self) -> None: ...
