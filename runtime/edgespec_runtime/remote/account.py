"""What talking to servers took, for the user and for sizing."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from statistics import median
from typing import Any

KEPT = 64


@dataclass
class Account:
    """Counts of one request."""

    endpoint: str = ""
    """The server that answered last."""
    rounds: int = 0
    """Verifications of trees that were asked for one by one."""
    streamed: int = 0
    """Rounds that the server started by itself."""
    reopens: int = 0
    """Sessions opened again: another server, or a lost state."""
    retries: int = 0
    """The same bytes sent again."""
    bytes_up: int = 0
    bytes_down: int = 0
    """Messages, without what HTTP/2 and TLS add."""
    wait_s: float = 0.0
    """Time spent waiting for answers."""
    by_mode: Counter[str] = field(default_factory=Counter)
    """Rounds by where they were verified: "hybrid", "remote" (streamed), "local", "draft"."""
    away_ms: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    """Of the last rounds that were asked for: network and queueing."""

    def count(self, mode: str) -> None:
        """Takes note of a round in ``mode``."""
        self.by_mode[mode] += 1

    def as_json(self) -> dict[str, Any]:
        """Plain values; ``round_trip_ms`` is the median of what was no computing."""
        return {
            "endpoint": self.endpoint,
            "rounds": self.rounds,
            "streamed": self.streamed,
            "reopens": self.reopens,
            "retries": self.retries,
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "mode_rounds": dict(self.by_mode),
            "round_trip_ms": round(median(self.away_ms), 3) if self.away_ms else None,
        }
