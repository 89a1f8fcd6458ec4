"""A server's life: bind, serve, drain, stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
from structlog.typing import FilteringBoundLogger

from edgespec.errors import InputError
from edgespec_runtime.server.backend import VerifierBackend
from edgespec_runtime.server.front import SERVICE, Front
from edgespec_runtime.server.health import Health
from edgespec_runtime.server.logs import Relay
from edgespec_runtime.server.metrics import Meter, exposed
from edgespec_runtime.server.quotas import Accounts
from edgespec_runtime.server.settings import MEBI, Address, Bounds, ServeSettings
from edgespec_runtime.server.tenants import Tenants
from edgespec_runtime.server.tls import credentials
from edgespec_runtime.wire import verifier_pb2 as pb

LAST_S = 5.0
"""For requests that are in work when the time for sessions has run out."""
IDLE_S = 5.0
"""After which a drain no longer waits for a session: its client may be gone without a word."""
SENT_S = 0.5
"""For replies that are on their way."""
POLL_S = 0.02


def check(settings: ServeSettings) -> None:
    """Raises InputError, as ``serve`` would, for what can be told before a target is loaded: files
    that are no good, an address that is taken."""
    for take in (Tenants, credentials):
        take(settings.identity, lambda text: None)
    _try_to_bind(settings.listen)


async def serve(
    backend: VerifierBackend,
    settings: ServeSettings,
    log: FilteringBoundLogger,
    ready: Callable[[Address, Address | None, pb.InfoReply], None],
) -> None:
    """Serves until SIGTERM or SIGINT, then drains; stops the backend whatever happens.

    ``ready`` is told the bound addresses (of the service, of metrics) and what is served. Raises
    InputError for an address that cannot be listened on and for files that are no good.
    """
    with _relayed(log), _signals() as asked:
        try:
            await _serve(backend, settings, log, ready, asked)
        finally:
            await backend.stop()


async def _serve(
    backend: VerifierBackend,
    settings: ServeSettings,
    log: FilteringBoundLogger,
    ready: Callable[[Address, Address | None, pb.InfoReply], None],
    asked: asyncio.Event,
) -> None:
    def complain(text: str) -> None:
        log.warning("kept the old file", message=text)

    info = told(await backend.info(), settings)
    meter = Meter()
    meter.watch(backend, asyncio.get_running_loop())
    tenants = Tenants(settings.identity, complain)
    accounts = Accounts(settings.quota)
    front = Front(backend, info, tenants, accounts, meter, log, settings.bounds)
    health = Health(SERVICE)
    server = grpc.aio.server(
        handlers=(front, health),
        options=options(settings.bounds, info),
        maximum_concurrent_rpcs=settings.bounds.requests + settings.bounds.requests // 3,
    )
    secrets = credentials(settings.identity, complain)
    try:
        port = bind(server, settings.listen, secrets)
        with exposed(meter, settings.metrics) as metrics:
            await server.start()
            await health.start()
            listening = settings.listen.at(port)
            ready(listening, metrics, info)
            log.info("ready", listening=listening, metrics=metrics)
            await asked.wait()
            await drain(front, health, settings.grace_s, log, asked)
            # Without work only watches of health are open, which never end by themselves.
            await server.stop(LAST_S if front.in_work else SENT_S)
    finally:
        await server.stop(0)
    log.info("stopped")


async def drain(
    front: Front, health: Health, grace_s: float, log: FilteringBoundLogger, asked: asyncio.Event
) -> None:
    """New sessions go elsewhere, open ones may go on for ``grace_s``, or until nobody has asked for
    one for a while; a second signal cuts that short."""
    log.info("draining", sessions=front.accounts.sessions, grace_s=grace_s)
    front.draining = True
    await health.stop()
    asked.clear()
    loop = asyncio.get_running_loop()
    end = loop.time() + grace_s
    while loop.time() < end and not asked.is_set():
        if not front.in_work and not front.accounts.asked_within(IDLE_S):
            return
        await asyncio.sleep(POLL_S)


def told(info: pb.InfoReply, settings: ServeSettings) -> pb.InfoReply:
    """What GetInfo says: the backend's answer within the operator's bounds."""
    info = pb.InfoReply.FromString(info.SerializeToString())
    for name in ("nodes", "depth", "images", "image_bytes", "image_pixels", "message_bytes"):
        own, bound = getattr(info.limits, name), getattr(settings.bounds, name)
        setattr(info.limits, name, min(own, bound) if own else bound)
    info.embeddings = info.embeddings and settings.embeddings
    return info


def options(bounds: Bounds, info: pb.InfoReply) -> list[tuple[str, int]]:
    """Of the transport: everything that a peer could have without end, has one."""
    limits = info.limits
    # The largest reply: features of a whole context in two bytes each, and one for good measure.
    reply = MEBI + limits.context * (2 * info.feature_width + 8)
    return [
        ("grpc.so_reuseport", 0),  # else two servers share a port and nobody is told
        ("grpc.max_receive_message_length", limits.message_bytes),
        ("grpc.max_send_message_length", reply),
        ("grpc.max_concurrent_streams", 64),
        ("grpc.max_metadata_size", 8 << 10),
        ("grpc.absolute_max_metadata_size", 16 << 10),
        ("grpc.server_handshake_timeout_ms", 3000),
        ("grpc.max_connection_idle_ms", 300_000),
        # Clients ask every second whether the server is still there; faster ones are cut off.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 500),
        ("grpc.http2.max_ping_strikes", 3),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
    ]


def bind(server: grpc.aio.Server, address: Address, secrets: grpc.ServerCredentials | None) -> int:
    """Returns the port. Raises InputError, which says why an address cannot be had."""
    _try_to_bind(address)
    try:
        if secrets is None:
            return server.add_insecure_port(str(address))
        return server.add_secure_port(str(address), secrets)
    except RuntimeError:
        raise InputError(f"--listen {address} cannot be listened on") from None


def _try_to_bind(address: Address) -> None:
    """gRPC tells only that it failed; the socket tells why."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, where = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
            probe.listen(1)
    except OSError as error:
        raise InputError(
            f"--listen {address} cannot be listened on: {error.strerror}; give another address"
        ) from None


@contextmanager
def _signals() -> Iterator[asyncio.Event]:
    """An event that SIGTERM and SIGINT set."""
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    caught = (signal.SIGTERM, signal.SIGINT)
    for number in caught:
        loop.add_signal_handler(number, asked.set)
    try:
        yield asked
    finally:
        for number in caught:
            loop.remove_signal_handler(number)


@contextmanager
def _relayed(log: FilteringBoundLogger) -> Iterator[None]:
    relay = Relay(log)
    root = logging.getLogger()
    root.addHandler(relay)
    try:
        yield
    finally:
        root.removeHandler(relay)
