"""Flags of a target on servers, and the settings that they make."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgespec.cli.common import note
from edgespec.errors import ConfigError

if TYPE_CHECKING:
    from edgespec_runtime.remote import RemoteSettings


def add_connection(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Flags of anything that talks to servers; ``connection_of`` reads them."""
    group = parser.add_argument_group("a target on servers (`edgespec serve`)")
    group.add_argument(
        "--remote",
        metavar="HOST:PORT[,HOST:PORT]",
        help="servers that verify what is drafted here, the preferred one first; without it the "
        "target runs here",
    )
    group.add_argument("--tls-ca", metavar="FILE", help="authority of the servers' certificates")
    group.add_argument("--tls-cert", metavar="FILE", help="own certificate, where one is asked for")
    group.add_argument("--tls-key", metavar="FILE", help="and its key")
    group.add_argument("--token-file", metavar="FILE", help="file with a bearer token")
    group.add_argument(
        "--insecure", action="store_true", help="allow plaintext beyond this machine"
    )
    return group


def add_remote(parser: argparse.ArgumentParser) -> None:
    """Flags of anything that may have its target elsewhere; ``remote_of`` reads them."""
    group = add_connection(parser)
    group.add_argument(
        "--remote-mode",
        choices=("auto", "hybrid", "remote"),
        default="auto",
        help="hybrid: draft here, verify there; remote: the server decodes alone; auto: what is "
        "faster as the network changes (default)",
    )
    group.add_argument(
        "--local",
        choices=("none", "draft", "target"),
        default="none",
        help="what goes on where no server answers: none (default), the draft's own text, or the "
        "target, which is then loaded here too",
    )
    group.add_argument(
        "--fallback-s",
        type=float,
        default=2.0,
        metavar="S",
        help="how long to go on trying before --local takes over (default: 2)",
    )
    group.add_argument(
        "--draft-ahead",
        choices=("on", "off"),
        default="on",
        help="draft on while a verification is under way (default: on)",
    )
    group.add_argument(
        "--remote-features",
        choices=("float16", "int8"),
        default="float16",
        help="how target features travel to a draft that feeds on them (default: float16)",
    )
    group.add_argument(
        "--embeddings",
        action="store_true",
        help="send visual tokens in place of pictures; the vision tower then runs here",
    )
    group.add_argument(
        "--patience-s",
        type=float,
        default=60.0,
        metavar="S",
        help="how long to go on trying when no server answers (default: 60)",
    )


def remote_of(arguments: argparse.Namespace) -> RemoteSettings | None:
    """The settings asked for, None where the target runs here. Raises ConfigError."""
    connection = connection_of(arguments)
    if connection is None:
        asked = (
            ("embeddings", arguments.embeddings),
            ("remote-mode", arguments.remote_mode != "auto"),
            ("local", arguments.local != "none"),
        )
        _refuse(name for name, given in asked if given)
        return None
    return replace(
        connection,
        patience_s=arguments.patience_s,
        fallback_s=arguments.fallback_s,
        mode=arguments.remote_mode,
        local=arguments.local,
        ahead=arguments.draft_ahead == "on",
        features=arguments.remote_features,
        embeddings=arguments.embeddings,
        notice=note,
    )


def connection_of(arguments: argparse.Namespace) -> RemoteSettings | None:
    """The servers asked for and how to reach them, None without ``--remote``. Raises
    ConfigError."""
    if arguments.remote is None:
        names = ("tls_ca", "tls_cert", "tls_key", "token_file", "insecure")
        _refuse(name.replace("_", "-") for name in names if getattr(arguments, name))
        return None
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what it says is told in our own words
    from edgespec_runtime.remote import RemoteSettings
    from edgespec_runtime.remote.settings import parse_endpoints

    return RemoteSettings(
        parse_endpoints(arguments.remote),
        tls_ca=arguments.tls_ca,
        tls_cert=arguments.tls_cert,
        tls_key=arguments.tls_key,
        token=_token(arguments.token_file),
        insecure=arguments.insecure,
    )


def _refuse(flags: Iterable[str]) -> None:
    for flag in flags:
        raise ConfigError(f"--{flag} is about servers, and --remote names none")


def _token(path: str | None) -> str:
    if path is None:
        return ""
    try:
        token = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(f"the token file '{path}' cannot be read: {reason}") from None
    if not token:
        raise ConfigError(f"the token file '{path}' is empty")
    return token
