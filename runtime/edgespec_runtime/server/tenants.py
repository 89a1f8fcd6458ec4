"""Who asks: a tenant, by the name in a client's certificate or by a bearer token."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edgespec.errors import InputError
from edgespec_runtime.server.reload import Reloaded
from edgespec_runtime.server.settings import Identity, read_file
from edgespec_runtime.wire.refusal import Reason, Refusal

LOCAL = "local"
"""Everyone, where nobody is asked."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}")
DIGEST = re.compile(r"[0-9a-f]{64}")
Table = Mapping[str, str]


class Tenants:
    """Names the tenant of a call, or refuses it; never says what was wrong."""

    def __init__(self, identity: Identity, complain: Callable[[str], None]) -> None:
        self._certified = identity.client_ca is not None
        self._clients = _table(identity.clients, NAME, complain)
        self._tokens = _table(identity.tokens, DIGEST, complain)

    def of(self, names: Sequence[str], authorization: Sequence[str]) -> str:
        """``names``: of the client's certificate, checked by TLS; ``authorization``: the call's
        metadata of that key. A token names the tenant where tokens are in use, else the
        certificate does. Raises Refusal UNAUTHENTICATED."""
        certified = self._by_name(names) if self._certified else LOCAL
        if self._tokens is None:
            return certified
        return _by_token(self._tokens.value(), authorization)

    def check(self, tenant: str, names: Sequence[str], authorization: Sequence[str]) -> None:
        """Whether they still name ``tenant``. Raises Refusal UNAUTHENTICATED."""
        if self.of(names, authorization) != tenant:
            raise _stranger()

    def _by_name(self, names: Sequence[str]) -> str:
        usable = [name for name in names if NAME.fullmatch(name)]
        if self._clients is not None:
            table = self._clients.value()
            usable = [table[name] for name in usable if name in table]
        if not usable:
            raise _stranger()
        return usable[0]


def _by_token(table: Table, authorization: Sequence[str]) -> str:
    given = authorization[0] if len(authorization) == 1 else ""
    scheme, _, token = given.partition(" ")
    digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
    found = None
    for known, tenant in table.items():  # all of them: the time tells nothing
        if hmac.compare_digest(known, digest):
            found = tenant
    if found is None or scheme.lower() != "bearer":
        raise _stranger()
    return found


def _stranger() -> Refusal:
    return Refusal(
        Reason.UNAUTHENTICATED, "valid credentials are needed (--token-file or --tls-cert)"
    )


def _table(
    path: Path | None, key: re.Pattern[str], complain: Callable[[str], None]
) -> Reloaded[Table] | None:
    if path is None:
        return None
    return Reloaded([path], lambda: read_table(path, key), complain)


def read_table(path: Path, key: re.Pattern[str]) -> Table:
    """Lines ``KEY TENANT``; empty ones and those that start with # are skipped. Raises InputError,
    which names the line but never shows it."""
    table: dict[str, str] = {}
    try:
        lines = read_file(path).decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"'{path}' is no UTF-8 text") from None
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2 or not key.fullmatch(words[0]) or not NAME.fullmatch(words[1]):
            kind = "a sha256 in 64 small hexadecimal digits" if key is DIGEST else "a name"
            raise InputError(f"'{path}', line {number}: it must hold {kind} and a tenant's name")
        if words[0] in table:
            raise InputError(f"'{path}', line {number}: its first word was there before")
        table[words[0]] = words[1]
    return table
