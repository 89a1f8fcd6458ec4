"""The server's certificates, taken up anew when their files change."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from edgespec.errors import InputError
from edgespec_runtime.server.reload import Reloaded
from edgespec_runtime.server.settings import Identity, read_file


def credentials(
    identity: Identity, complain: Callable[[str], None]
) -> grpc.ServerCredentials | None:
    """For a listening port; None without a certificate. Raises InputError for files that are no
    good."""
    cert, key, client_ca = identity.cert, identity.key, identity.client_ca
    if cert is None or key is None:
        return None

    def read() -> grpc.ServerCertificateConfiguration:
        _check(cert, key, client_ca)
        root = read_file(client_ca) if client_ca else None
        return grpc.ssl_server_certificate_configuration([(read_file(key), read_file(cert))], root)

    files = Reloaded([path for path in (cert, key, client_ca) if path], read, complain)

    def newest() -> Any:  # None where nothing has changed, which its type does not know
        value, changed = files.fresh()
        return value if changed else None

    return grpc.dynamic_ssl_server_credentials(
        files.value(), newest, require_client_authentication=client_ca is not None
    )


def _check(cert: Path, key: Path, client_ca: Path | None) -> None:
    """The engine below says nothing about a bad file but refuses every handshake."""
    try:
        # Without a password an encrypted key is refused, and nobody is asked for one.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise InputError(
            f"'{cert}' and '{key}' are no certificate and its key in PEM: {said}"
        ) from None
    if client_ca is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(client_ca)
        except OSError as error:
            said = error.strerror or error
            raise InputError(f"'{client_ca}' holds no certificate in PEM: {said}") from None
