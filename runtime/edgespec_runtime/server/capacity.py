"""How much a server holds and takes: memory, sessions, and the limits of a request."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from edgespec.bundle import GraphSpec
from edgespec.errors import ConfigError

MB = 2**20
BATCHING = ("auto", "engine", "queue")
LONGEST_LEASE_S = 30 * 86400


@dataclass(frozen=True)
class Capacity:
    """Budgets and limits of one server. Raises ConfigError for settings that leave no room."""

    kv_mb: float = 1024.0
    """Of the KV cache of all sessions, in 2**20 bytes."""
    lease_s: float = 300.0
    """After which an idle session may be dropped."""
    image_mb: float = 256.0
    """Of visual embeddings kept for pictures that come again, in 2**20 bytes."""
    batch: int = 8
    """Verifications that one engine call takes at most, where the bundle has a graph for several
    (``edgespec export --sessions``); 1: one after another."""
    batching: str = "auto"
    """"engine": always so many; "queue": one after another; "auto": whichever is faster here,
    measured at the start."""
    context: int = 0
    """Most tokens of a session, expanded pictures and new ones included; 0: the target's own."""
    nodes: int = 128
    """Of the largest tree."""
    depth: int = 32
    images: int = 8
    """Pictures of one prompt."""
    image_bytes: int = 8 * MB
    image_pixels: int = 16_000_000
    message_bytes: int = 9 * MB
    embeddings: bool = False
    """Whether visual embeddings are taken in place of pictures."""
    decoders: int = 2
    """Threads that decode pictures."""

    def __post_init__(self) -> None:
        for name in ("kv_mb", "lease_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{_flag(name)} is {getattr(self, name):g}; it must be above 0")
        if self.lease_s > LONGEST_LEASE_S:
            raise ConfigError(f"--lease-s is {self.lease_s:g}; at most {LONGEST_LEASE_S} will do")
        if not self.image_mb >= 0:
            raise ConfigError(f"--image-mb is {self.image_mb:g}; it must be at least 0")
        sizes = ("batch", "nodes", "depth", "image_bytes", "image_pixels", "message_bytes")
        for name in (*sizes, "decoders"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.batching not in BATCHING:
            raise ConfigError(f"batching is '{self.batching}'; there are: {', '.join(BATCHING)}")
        for name in ("context", "images"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 0")

    @property
    def together(self) -> bool:
        """Whether verifications of several sessions may share a call."""
        return self.batch > 1 and self.batching != "queue"

    def context_of(self, target: GraphSpec) -> int:
        """Most tokens of a session of ``target``."""
        own = int(target.meta["max_positions"])
        if self.context > own:
            raise ConfigError(f"a context of {self.context} was asked for; the target has {own}")
        return self.context or own

    def nodes_of(self, target: GraphSpec) -> int:
        """Of the largest tree that ``target`` is given."""
        return min(self.nodes, int(target.meta["tree_rows"]) - 1)

    def slots_of(self, rows: int, row_bytes: int) -> int:
        """Sessions of ``rows`` cached rows that the budget has room for. Raises ConfigError for a
        budget below one session."""
        slots = int(self.kv_mb * MB) // (rows * row_bytes)
        if slots < 1:
            raise ConfigError(
                f"--kv-mb is {self.kv_mb:g}; one session of {rows} rows takes "
                f"{ceil(rows * row_bytes / MB)} MB: give at least that"
            )
        return slots


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
