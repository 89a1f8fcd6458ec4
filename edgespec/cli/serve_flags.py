"""Flags of ``edgespec serve``, and what a server's settings make of them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgespec.cli.common import add_command, add_config, positive_int

if TYPE_CHECKING:
    from edgespec_runtime.server.settings import ServeSettings

ENGINES = ("embedded", "ray")
ON_GPU = ("ort-cuda", "ort-tensorrt-rtx", "tensorrt", "tensorrt-rtx")


def build_parser(subparsers: Any) -> argparse.ArgumentParser:
    """The command's parser, which does not know yet what to run."""
    parser = add_command(
        subparsers,
        "serve",
        "Serve a bundle's target to devices that draft. Prints one JSON line when it is ready, "
        "logs to stderr, and drains on SIGTERM.",
        "edgespec serve --bundle llava.bundle --listen 0.0.0.0:50051 --tls-cert server.pem "
        "--tls-key server.key --tokens-file tokens.txt",
    )
    parser.add_argument("--bundle", required=True, metavar="BUNDLE", help="directory from export")
    parser.add_argument(
        "--listen",
        default="127.0.0.1:50051",
        metavar="HOST:PORT",
        help="default: 127.0.0.1:50051; port 0 is any free one",
    )
    parser.add_argument(
        "--engine",
        choices=(*ENGINES, "auto", "ort", *ON_GPU),
        default="embedded",
        help="where the target runs: in this process (embedded, the same as ort and auto), or in "
        "replicas that Ray Serve places (ray); engines on a GPU do not serve yet",
    )
    parser.add_argument(
        "--threads", type=int, default=0, metavar="N", help="engine threads (default: all cores)"
    )
    parser.add_argument(
        "--profile",
        metavar="FILE",
        help="from `edgespec profile` on this machine: clients are told what a verification costs",
    )
    _add_capacity(parser)
    _add_ray(parser)
    _add_identity(parser)
    _add_limits(parser)
    parser.add_argument(
        "--metrics",
        default="127.0.0.1:0",
        metavar="HOST:PORT",
        help='Prometheus metrics over plain HTTP, or "none"; default: 127.0.0.1 and any free port',
    )
    parser.add_argument(
        "--grace-s",
        type=float,
        default=10.0,
        metavar="S",
        help="how long open sessions may go on after SIGTERM or SIGINT (default: 10)",
    )
    parser.add_argument(
        "--log-level", choices=("debug", "info", "warning"), default="info", help="default: info"
    )
    add_config(parser)
    return parser


def _add_capacity(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("capacity")
    group.add_argument(
        "--kv-mb", type=float, default=1024.0, metavar="MB", help="sessions' cache (default: 1024)"
    )
    group.add_argument(
        "--image-mb", type=float, default=256.0, metavar="MB", help="pictures' cache (default: 256)"
    )
    group.add_argument(
        "--lease-s",
        type=float,
        default=300.0,
        metavar="S",
        help="sessions that are idle for longer may be dropped (default: 300)",
    )
    group.add_argument(
        "--batch",
        type=positive_int,
        default=8,
        metavar="N",
        help="most sessions that are verified in one call of the target, where the bundle was "
        "exported with --sessions (default: 8)",
    )
    group.add_argument(
        "--batching",
        choices=("auto", "engine", "queue"),
        default="auto",
        help="several sessions in one call (engine), one after another (queue), or what is faster "
        "here, measured at the start (auto, default)",
    )


def _add_ray(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "with --engine ray", "Capacity is that of one replica. Ray's own ports are for a private "
        "network: they have no TLS.",
    )  # fmt: skip
    group.add_argument(
        "--ray-address",
        default="local",
        metavar="ADDRESS",
        help="a cluster to join; default: one of its own on this machine",
    )
    group.add_argument(
        "--ray-replicas", type=positive_int, default=1, metavar="N", help="default: 1"
    )
    group.add_argument(
        "--ray-max-replicas",
        type=positive_int,
        default=0,
        metavar="N",
        help="let Ray scale up to so many (default: no scaling)",
    )
    group.add_argument(
        "--ray-cpus", type=float, default=1.0, metavar="N", help="of each replica (default: 1)"
    )
    group.add_argument(
        "--ray-gpus", type=float, default=0.0, metavar="N", help="of each replica (default: 0)"
    )


def _add_identity(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "who may ask", "Files are read again when they change. Beyond loopback TLS and a way to "
        "tell clients apart are required.",
    )  # fmt: skip
    group.add_argument("--tls-cert", metavar="FILE", help="certificate chain of the server, PEM")
    group.add_argument("--tls-key", metavar="FILE", help="its private key, PEM")
    group.add_argument(
        "--tls-client-ca",
        metavar="FILE",
        help="let in only clients with a certificate of this authority; the first name in it is "
        "the tenant",
    )
    group.add_argument(
        "--clients-file",
        metavar="FILE",
        help="lines NAME TENANT: the only certificate names that are let in",
    )
    group.add_argument(
        "--tokens-file",
        metavar="FILE",
        help="lines SHA256 TENANT: bearer tokens by their hexadecimal sha256",
    )
    group.add_argument(
        "--insecure",
        action="store_true",
        help="listen beyond loopback without encryption or without asking who it is",
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("limits of one request")
    sizes = (
        ("nodes", "nodes of a tree (default: 128)"),
        ("depth", "depth of a tree (default: 32)"),
        ("images", "pictures of a session (default: 8)"),
        ("image-bytes", "bytes of a picture (default: 8 MiB)"),
        ("image-pixels", "pixels of a picture (default: 16000000)"),
        ("message-bytes", "bytes of a message (default: 9 MiB)"),
        ("requests", "requests in work at once, of all tenants (default: 192)"),
    )
    for name, what in sizes:
        group.add_argument(f"--max-{name}", type=positive_int, metavar="N", help=f"most {what}")
    group = parser.add_argument_group("limits of one tenant")
    group.add_argument(
        "--quota-sessions", type=positive_int, metavar="N", help="open sessions (default: 256)"
    )
    group.add_argument(
        "--quota-requests", type=positive_int, metavar="N", help="in work at once (default: 128)"
    )
    group.add_argument("--quota-rounds-per-s", type=float, metavar="N", help="default: any")
    group.add_argument(
        "--quota-pixels-per-s", type=float, metavar="N", help="pictures' pixels (default: any)"
    )
    group.add_argument(
        "--allow-embeddings",
        action="store_true",
        help="take visual embeddings in place of pictures",
    )


def settings_of(arguments: argparse.Namespace) -> ServeSettings:
    """Everything but the engine. Raises InputError for what makes no sense."""
    from edgespec_runtime.server import settings

    def file(name: str) -> Path | None:
        value = getattr(arguments, name)
        return None if value is None else Path(value)

    def given(prefix: str) -> dict[str, Any]:
        found = {
            name.removeprefix(prefix): value
            for name, value in vars(arguments).items()
            if name.startswith(prefix) and value is not None
        }
        return found

    scrape = arguments.metrics
    return settings.ServeSettings(
        listen=settings.Address.parse(arguments.listen, "--listen"),
        metrics=None if scrape == "none" else settings.Address.parse(scrape, "--metrics"),
        identity=settings.Identity(
            cert=file("tls_cert"),
            key=file("tls_key"),
            client_ca=file("tls_client_ca"),
            clients=file("clients_file"),
            tokens=file("tokens_file"),
        ),
        insecure=arguments.insecure,
        bounds=settings.Bounds(**given("max_")),
        quota=settings.Quota(**given("quota_")),
        grace_s=arguments.grace_s,
        embeddings=arguments.allow_embeddings,
    )
