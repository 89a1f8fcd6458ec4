"""How to reach the servers that verify, and what to do with what they offer."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from edgespec.errors import ConfigError

MODES = ("auto", "hybrid", "remote")
LOCALS = ("none", "draft", "target")
PRECISIONS = ("float16", "int8")


def say_nothing(text: str) -> None:
    """The default for ``RemoteSettings.notice``."""


@dataclass(frozen=True)
class RemoteSettings:
    """Where the target runs, and how to talk to it. Raises ConfigError for what cannot be."""

    endpoints: tuple[str, ...]
    """``host:port`` of every server, the preferred one first."""
    tls_ca: str | Path | None = None
    """PEM file with the authorities that signed the servers' certificates; turns TLS on."""
    tls_cert: str | Path | None = None
    """PEM file with this device's own certificate, for servers that ask for one (mutual TLS)."""
    tls_key: str | Path | None = None
    token: str = field(default="", repr=False)
    """Bearer token; sent over TLS, or to this machine itself."""
    insecure: bool = False
    """Whether plaintext may leave this machine."""
    deadline_ms: float = 5_000.0
    """Longest wait for one round; measured round times shorten it."""
    open_deadline_ms: float = 30_000.0
    """Longest wait for a session to open: pictures travel, and the prompt is taken in."""
    connect_s: float = 10.0
    """How long to go on trying before the first token."""
    patience_s: float = 60.0
    """How long to go on trying without an answer later on."""
    fallback_s: float = 2.0
    """How long to go on trying where something else can go on: ``local``."""
    mode: str = "auto"
    """"hybrid" (this device drafts), "remote" (the server decodes alone), or what is faster."""
    local: str = "none"
    """What goes on where no server answers: nothing, the draft's text, or the target, loaded here
    as well."""
    ahead: bool = True
    """Whether to draft on while a verification is under way."""
    features: str = "float16"
    """How target features travel, for a draft that feeds on them."""
    embeddings: bool = False
    """Send visual tokens in place of pictures; the vision tower then runs here."""
    notice: Callable[[str], None] = field(default=say_nothing, repr=False, compare=False)
    """Is told of pauses and changes of server, one line each."""

    def __post_init__(self) -> None:
        if not self.endpoints:
            raise ConfigError("no server is named; give at least one as host:port")
        for address in self.endpoints:
            _split(address)
        if len(set(self.endpoints)) < len(self.endpoints):
            raise ConfigError(f"a server is named twice in {', '.join(self.endpoints)}")
        choices = (
            ("mode", self.mode, MODES),
            ("local", self.local, LOCALS),
            ("features", self.features, PRECISIONS),
        )
        for name, value, allowed in choices:
            if value not in allowed:
                raise ConfigError(f"{name} is {value!r}; it must be one of: {', '.join(allowed)}")
        for name in ("deadline_ms", "open_deadline_ms", "connect_s", "patience_s", "fallback_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be a number > 0")
        self._check_security()

    def _check_security(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("--tls-cert and --tls-key belong together; one of them is missing")
        if self.tls_cert is not None and not self.tls:
            raise ConfigError("--tls-cert needs TLS; give the servers' --tls-ca as well")
        if not self.token.isascii() or any(c.isspace() for c in self.token):
            raise ConfigError("the token holds spaces, line ends or letters beyond ASCII")
        outside = [address for address in self.endpoints if not is_loopback(address)]
        if self.tls or not outside:
            return
        if not self.insecure:
            raise ConfigError(
                f"'{outside[0]}' is another machine and TLS is off; give the file of its "
                "certificate authority (--tls-ca), or allow plaintext explicitly (--insecure)"
            )
        if self.token:
            raise ConfigError(
                f"a token would cross the network to '{outside[0]}' in plaintext; use TLS"
            )

    @property
    def wait_s(self) -> float:
        """How long to go on trying without an answer."""
        return self.patience_s if self.local == "none" else min(self.fallback_s, self.patience_s)

    @property
    def first_wait_s(self) -> float:
        """The same before the first token."""
        return self.connect_s if self.local == "none" else min(self.fallback_s, self.connect_s)

    @property
    def drafts(self) -> bool:
        """Whether this device ever drafts: not where servers decode alone and nothing goes on
        without them."""
        return self.mode != "remote" or self.local != "none"

    @property
    def tls(self) -> bool:
        return self.tls_ca is not None


def parse_endpoints(text: str) -> tuple[str, ...]:
    """``host:port[,host:port]`` as a command line gives it."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def is_loopback(address: str) -> bool:
    """Whether ``host:port`` is on this machine."""
    host, _ = _split(address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _split(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    fine = colon and bare and port.isascii() and port.isdigit() and 0 < int(port) < 65536
    if not fine or any(c in "/@" or c.isspace() for c in bare) or (":" in bare and bare == host):
        raise ConfigError(f"'{address}' is no server address; give host:port, as in orin:50051")
    return bare, int(port)
