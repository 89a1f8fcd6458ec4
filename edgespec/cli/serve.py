"""``edgespec serve``: a bundle's target behind gRPC, for devices that draft."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgespec.cli.common import needs_extra, print_json
from edgespec.cli.serve_flags import ON_GPU, build_parser, settings_of
from edgespec.errors import ConfigError

if TYPE_CHECKING:
    from edgespec_runtime.server.backend import VerifierBackend
    from edgespec_runtime.server.settings import ServeSettings


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser = build_parser(subparsers)
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    # The transport's own lines are no JSON and may show what peers sent.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    with needs_extra("edgespec serve", "serve"):
        import asyncio

        from edgespec_runtime.server.logs import Lines, open_log
        from edgespec_runtime.server.serving import check, serve
        from edgespec_runtime.server.settings import Address
        from edgespec_runtime.wire import verifier_pb2 as pb

    def ready(listening: Address, metrics: Address | None, info: pb.InfoReply) -> None:
        line = {
            "listening": str(listening),
            "metrics": None if metrics is None else str(metrics),
            "target": info.fingerprints.target.hex(),
        }
        with redirect_stdout(stdout):
            print_json(line)
        stdout.flush()

    settings = settings_of(arguments)
    check(settings)  # a large target takes minutes to load
    stdout, log = sys.stdout, open_log(sys.stderr, arguments.log_level)
    with redirect_stdout(Lines(log)):  # engines may print; stdout holds the one line alone
        with _ended_by_sigterm():
            backend = open_engine(arguments, settings)
            asyncio.run(serve(backend, settings, log, ready))
    return 0


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM leaves the block, as long as nobody else handles it: a server that is told to stop
    while it loads does so, and that is no failure."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(0)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except SystemExit:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)


def open_engine(arguments: argparse.Namespace, settings: ServeSettings) -> VerifierBackend:
    """The backend that ``--engine`` names. Raises InputError."""
    from edgespec.bundle import read_bundle
    from edgespec_runtime.server.capacity import Capacity
    from edgespec_runtime.server.embedded import open_backend

    if arguments.engine in ON_GPU:
        raise ConfigError(
            f"--engine {arguments.engine}: a server's sessions share memory of the CPU's engine so "
            "far; serve with --engine ort"
        )
    manifest = read_bundle(arguments.bundle, check_hashes=False).manifest
    if arguments.batching == "engine" and manifest.graph("target_packed") is None:
        raise ConfigError(
            f"--batching engine was asked for, and {arguments.bundle} has no graph for several "
            "sessions; export it with --sessions, or leave --batching out"
        )
    bounds = settings.bounds
    capacity = Capacity(
        kv_mb=arguments.kv_mb,
        lease_s=arguments.lease_s,
        image_mb=arguments.image_mb,
        batch=arguments.batch,
        batching=arguments.batching,
        nodes=bounds.nodes,
        depth=bounds.depth,
        images=bounds.images,
        image_bytes=bounds.image_bytes,
        image_pixels=bounds.image_pixels,
        message_bytes=bounds.message_bytes,
        embeddings=settings.embeddings,
    )
    opener = partial(
        open_backend,
        str(Path(arguments.bundle).resolve()),
        threads=arguments.threads,
        capacity=capacity,
        profile=str(Path(arguments.profile).resolve()) if arguments.profile else None,
    )
    return _open_ray(arguments, opener) if arguments.engine == "ray" else opener()


def _open_ray(
    arguments: argparse.Namespace, opener: Callable[[], VerifierBackend]
) -> VerifierBackend:
    from edgespec_runtime.server.ray_cluster import RaySettings, open_ray_backend

    settings = RaySettings(
        address=arguments.ray_address,
        replicas=arguments.ray_replicas,
        max_replicas=arguments.ray_max_replicas,
        cpus=arguments.ray_cpus,
        gpus=arguments.ray_gpus,
    )
    return open_ray_backend(opener, settings)
