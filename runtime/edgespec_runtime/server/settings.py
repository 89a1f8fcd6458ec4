"""What an operator decides about a server: where it listens, whom it admits, how much it takes."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from edgespec.errors import ConfigError, InputError

MEBI = 1 << 20


@dataclass(frozen=True)
class Address:
    """A host and a TCP port; port 0 is any free one."""

    host: str
    port: int

    @staticmethod
    def parse(text: str, flag: str) -> Address:
        """From ``host:port`` or ``[v6]:port``. Raises ConfigError."""
        host, colon, port = text.rpartition(":")
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if not colon or not bare or (":" in bare and bare == host) or not port.isdecimal():
            raise ConfigError(f"{flag} is '{text}'; it must be HOST:PORT, e.g. 127.0.0.1:50051")
        if int(port) > 65535:
            raise ConfigError(f"{flag} is '{text}'; ports end at 65535")
        return Address(bare, int(port))

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:  # a name, which may resolve to anything
            return False

    def at(self, port: int) -> Address:
        """The same host with the port that was bound."""
        return Address(self.host, port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Identity:
    """Files that say who the server is and who its clients are; all are read again when they
    change."""

    cert: Path | None = None
    """PEM chain of the server."""
    key: Path | None = None
    client_ca: Path | None = None
    """PEM; with it only clients whose certificate it signed are let in (mTLS)."""
    clients: Path | None = None
    """Lines ``NAME TENANT``: the only certificate names (SAN) that are let in."""
    tokens: Path | None = None
    """Lines ``SHA256 TENANT``: bearer tokens by their hexadecimal digests."""

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ConfigError("--tls-cert and --tls-key belong together; one of them is missing")
        if self.client_ca is not None and self.cert is None:
            raise ConfigError("--tls-client-ca needs --tls-cert and --tls-key")
        if self.clients is not None and self.client_ca is None:
            raise ConfigError("--clients-file needs --tls-client-ca: names are of certificates")
        for file in fields(self):
            path = getattr(self, file.name)
            if path is not None:
                read_file(path)

    @property
    def known_clients(self) -> bool:
        """Whether clients have to say who they are."""
        return self.client_ca is not None or self.tokens is not None


@dataclass(frozen=True)
class Bounds:
    """The most that one request may hold; a backend's own limits may be lower."""

    nodes: int = 128
    depth: int = 32
    images: int = 8
    image_bytes: int = 8 * MEBI
    image_pixels: int = 16_000_000
    message_bytes: int = 9 * MEBI
    requests: int = 192
    """In work at once, of all tenants; more are turned away as BUSY."""

    def __post_init__(self) -> None:
        _positive(self, "--max-")


@dataclass(frozen=True)
class Quota:
    """The most that one tenant may have."""

    sessions: int = 256
    """Open at once; each holds one slot of the cache, so this is its share of memory too."""
    requests: int = 128
    """In work at once."""
    rounds_per_s: float = math.inf
    pixels_per_s: float = math.inf
    """Of pictures in opens; a burst of 10 s worth is let through."""

    def __post_init__(self) -> None:
        _positive(self, "--quota-")


@dataclass(frozen=True)
class ServeSettings:
    """A whole server. Raises ConfigError where others could read or use it without being asked
    who they are, unless ``insecure`` says that this is meant."""

    listen: Address
    metrics: Address | None = None
    identity: Identity = field(default_factory=Identity)
    insecure: bool = False
    bounds: Bounds = field(default_factory=Bounds)
    quota: Quota = field(default_factory=Quota)
    grace_s: float = 10.0
    """How long open sessions may go on once the server was told to stop."""
    embeddings: bool = False
    """Whether visual embeddings are taken in place of pictures."""

    def __post_init__(self) -> None:
        if not 0 <= self.grace_s < math.inf:
            raise ConfigError(f"--grace-s is {self.grace_s}; it must be a number >= 0")
        if self.listen.loopback or self.insecure:
            return
        if self.identity.cert is None:
            raise ConfigError(
                f"--listen {self.listen} can be reached from other machines and is not encrypted; "
                "give --tls-cert and --tls-key, or --insecure if that is meant"
            )
        if not self.identity.known_clients:
            raise ConfigError(
                f"--listen {self.listen} can be reached from other machines and asks nobody who "
                "they are; give --tls-client-ca or --tokens-file, or --insecure if that is meant"
            )


def read_file(path: Path) -> bytes:
    """The file's bytes. Raises InputError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror}") from None


def _positive(value: Any, prefix: str) -> None:
    for entry in fields(value):
        number = getattr(value, entry.name)
        if not number > 0:  # NaN too
            flag = prefix + entry.name.replace("_", "-")
            raise ConfigError(f"{flag} is {number}; it must be more than 0")
