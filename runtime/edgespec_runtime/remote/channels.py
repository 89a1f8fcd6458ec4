"""One server as a client holds it: a channel with its credentials, and what is known of it."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import grpc

from edgespec.errors import ConfigError
from edgespec_runtime.remote.pace import Pace
from edgespec_runtime.remote.settings import RemoteSettings, is_loopback
from edgespec_runtime.wire import verifier_pb2 as pb

SERVICE = "/edgespec.v1.Verifier/"
MAX_REPLY_BYTES = 256 * 2**20
"""Room for the features of a long prompt."""
MOST_PICTURES = 1024
"""That are remembered as sent: more than a server keeps."""
OPTIONS: tuple[tuple[str, Any], ...] = (
    # A dead peer is noticed after 3 s; without the ping timeout gRPC waits for a minute.
    ("grpc.keepalive_time_ms", 2_000),
    ("grpc.keepalive_timeout_ms", 1_000),
    ("grpc.http2.ping_timeout_ms", 1_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A server that comes back is noticed soon; what to do meanwhile is decided here, not by gRPC.
    # While gRPC holds back its next try, calls fail by what was true at its last one.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 200),
    # Whatever its name says, how long setting up a connection may take: a far or busy server needs
    # several round trips.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.enable_retries", 0),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", MAX_REPLY_BYTES),
    ("grpc.max_send_message_length", -1),
)


class Endpoint:
    """A server. Shared by a model's requests; connects when it is first called."""

    def __init__(self, address: str, settings: RemoteSettings) -> None:
        self.address = address
        self.info: pb.InfoReply | None = None
        """What it says of itself, once it was asked."""
        self.pictures: frozenset[bytes] = frozenset()
        """Digests of pictures that it was sent. Replaced as a whole: requests share it."""
        self.rounds = Pace(settings.deadline_ms / 1e3)
        self.replies = Pace(settings.deadline_ms / 1e3)
        """Between the replies of a stream."""
        self._settings = settings
        self._channel: grpc.Channel | None = None
        self._methods: dict[str, Any] = {}
        self._connecting = threading.Lock()
        bearer = f"Bearer {settings.token}"
        self._metadata = (("authorization", bearer),) if settings.token else ()

    def unary(self, method: str) -> Any:
        """A callable from request bytes to reply bytes; ``.future`` does not wait."""
        return self._method(method, lambda channel: channel.unary_unary)

    def streaming(self, method: str) -> Any:
        """A callable from request bytes to an iterator of reply bytes."""
        return self._method(method, lambda channel: channel.unary_stream)

    def metadata(self, session_id: bytes) -> tuple[tuple[str, str], ...]:
        """What goes with every call; a balancer keeps a session on one server by it."""
        return (*self._metadata, ("x-session-id", session_id.hex()))

    def keeps(self, pictures: Collection[bytes]) -> None:
        """It was sent ``pictures``. Where there are too many to remember, older ones are forgotten:
        they are sent again."""
        known = self.pictures.union(pictures)
        self.pictures = known if len(known) <= MOST_PICTURES else frozenset(pictures)

    def lacks(self, pictures: Collection[bytes]) -> None:
        """It does not have one of ``pictures`` any more."""
        self.pictures = self.pictures.difference(pictures)

    def close(self) -> None:
        """Ends the connection and every call on it."""
        with self._connecting:
            channel, self._channel = self._channel, None
            self._methods.clear()
        if channel is not None:
            channel.close()

    def _method(self, name: str, kind: Callable[[grpc.Channel], Any]) -> Any:
        with self._connecting:
            if self._channel is None:
                self._channel = _connect(self.address, self._settings)
            if name not in self._methods:
                # Bytes in, bytes out: a reply that cannot be parsed is then our error to handle.
                self._methods[name] = kind(self._channel)(SERVICE + name)
            return self._methods[name]


def _connect(address: str, settings: RemoteSettings) -> grpc.Channel:
    options = list(OPTIONS)
    if is_loopback(address):
        options.append(("grpc.enable_http_proxy", 0))
    if not settings.tls:
        return grpc.insecure_channel(address, options)
    credentials = grpc.ssl_channel_credentials(
        _pem(settings.tls_ca), _pem(settings.tls_key), _pem(settings.tls_cert)
    )
    return grpc.secure_channel(address, credentials, options)


def check_files(settings: RemoteSettings) -> None:
    """Raises ConfigError for certificates that cannot be used; gRPC would only never connect."""
    _pem(settings.tls_ca)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if settings.tls_ca is not None:
        try:
            context.load_verify_locations(settings.tls_ca)
        except OSError:
            raise ConfigError(f"'{settings.tls_ca}' (--tls-ca) holds no certificate") from None
    cert, key = settings.tls_cert, settings.tls_key
    if _pem(cert) is not None and _pem(key) is not None and cert is not None:
        try:
            context.load_cert_chain(cert, key, password="")  # else OpenSSL would ask for one
        except OSError as error:
            raise ConfigError(
                f"'{cert}' and '{key}' are no certificate and its key in PEM: "
                f"{error.strerror or error}"
            ) from None


def _pem(path: str | Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be read: {error.strerror}") from None
    if b"-----BEGIN " not in data:
        raise ConfigError(f"'{path}' is no PEM file: it has no BEGIN line")
    return data
