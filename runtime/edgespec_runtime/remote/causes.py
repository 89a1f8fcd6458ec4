"""What the transport says of a connection that came to nothing, in words that tell what to do."""

from __future__ import annotations

_CONNECTING = "failed to connect to all addresses"
_RESOLVING = "errors resolving"
_CAUSES = (
    ("Connection refused", "nothing listens there; start the server, or name its port"),
    (
        "Hostname Verification",
        "its certificate is for another name; call it by one that the certificate holds",
    ),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "its certificate is not of the given authority (--tls-ca), or out of date",
    ),
    ("before receiving SETTINGS", "something takes connections there that is no such server"),
    ("WRONG_VERSION_NUMBER", "it does not speak TLS, and --tls-ca asks for it"),
    (
        "Socket closed",
        "it closed the connection at once, as servers do that want TLS (--tls-ca) or a certificate "
        "of this device (--tls-cert)",
    ),
)


def in_words(details: str) -> str:
    """A sentence in place of gRPC's ``details`` about a connection, or those as they are."""
    if details.startswith(_RESOLVING):
        return "its name cannot be resolved here"
    if details.startswith(_CONNECTING):
        for sign, words in _CAUSES:
            if sign in details:
                return words
        return details.rpartition("last error: ")[2]
    return details
