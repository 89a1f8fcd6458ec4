"""Where replicas run: a Ray of the server's own, or a cluster that it joins.

Ray places, restarts and scales them. Its ports have no TLS and belong to a private network; devices
never talk to it.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import signal
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgespec.errors import ConfigError, EngineError, MissingDependencyError
from edgespec.signals import handlers_run_here, heeded_behind
from edgespec_runtime.server.ray_backend import Opener, RayBackend, Replica

APPLICATION = "edgespec"
ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
KNOCK_S = 5.0
STORE_BYTES = 1 << 28
"""For objects between Ray's processes; messages do not pass through it."""
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # it would report to its makers
    # Requests reach replicas by gRPC, not as calls of actors: 1.5 ms a round in place of 2.4. Its
    # own limit of 4 MiB is below that of a picture, and of a prompt's features; the front has ours.
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(1 << 28),
}


@dataclass(frozen=True)
class RaySettings:
    """Where the replicas run, and how many. Raises ConfigError."""

    address: str = "local"
    """Of a cluster; "local" starts one on this machine for as long as the server runs."""
    replicas: int = 1
    max_replicas: int = 0
    """With it Ray scales between ``replicas`` and this many."""
    cpus: float = 1.0
    """That Ray sets aside for one replica."""
    gpus: float = 0.0
    ongoing: int = 64
    """Requests in work at one replica; more wait in the front."""

    def __post_init__(self) -> None:
        if self.replicas < 1:
            raise ConfigError(f"--ray-replicas is {self.replicas}; it must be at least 1")
        if self.max_replicas and self.max_replicas < self.replicas:
            raise ConfigError(
                f"--ray-max-replicas is {self.max_replicas}; it must be at least --ray-replicas, "
                f"{self.replicas}"
            )
        if self.address.startswith("ray://"):
            raise ConfigError(
                f"--ray-address is '{self.address}'; run the server on a node of the cluster, and "
                "give host:port, or auto"
            )
        for name in ("cpus", "gpus"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"--ray-{name} is {getattr(self, name)}; it must be at least 0")

    @property
    def most(self) -> int:
        """Replicas at most."""
        return max(self.replicas, self.max_replicas)


def open_ray_backend(opener: Opener, settings: RaySettings) -> RayBackend:
    """Starts Ray, or joins the cluster at ``settings.address``, and deploys the replicas.

    ``opener`` makes a replica's backend inside its process and must be picklable. Blocks until all
    replicas have loaded; a deployment of the same name that the cluster has is replaced. Raises
    MissingDependencyError, and EngineError where they do not start.
    """
    local = settings.address == "local"
    _before_import(local)
    try:
        import ray
        from ray import serve
    except ImportError:
        raise MissingDependencyError("ray", "--engine ray", "serve-ray") from None
    instance: Any = serve
    if not local:
        _keep_private(Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")))
    heeded = signal.getsignal(signal.SIGTERM)
    _join(ray, settings)
    if handlers_run_here():
        signal.signal(signal.SIGTERM, heeded)  # Ray has put its own in its place

    def shut_down() -> None:
        if local:
            instance.shutdown()
        else:
            instance.delete(APPLICATION)
        ray.shutdown()

    # It would write to stderr in a form of its own; warnings go the way of all loggers.
    logger = logging.getLogger("ray.serve")
    logger.handlers.clear()
    logger.setLevel(logging.WARNING)
    logger.propagate = True
    deployment = instance.deployment(Replica).options(name="verifier", **_options(settings))
    try:
        # An exception amid Ray's calls aborts the whole process.
        with heeded_behind(signal.SIGTERM):
            instance.start(proxy_location="Disabled")  # no entrance but the front's
            handle = instance.run(deployment.bind(opener), name=APPLICATION, route_prefix=None)
    except RuntimeError as error:
        said = _said(instance.status()) or str(error)
        shut_down()
        raise EngineError(f"the replicas did not start: {said}") from None
    except BaseException:  # of a signal: a cluster would keep what was begun
        shut_down()
        raise
    return RayBackend(handle, secrets.token_bytes(32), shut_down)


def _said(status: Any) -> str:
    """What a replica that failed said last."""
    application = status.applications.get(APPLICATION)
    messages = [entry.message for entry in application.deployments.values()] if application else []
    lines = [line.strip() for message in messages for line in message.splitlines()]
    return next((line for line in reversed(lines) if line), "")


def _before_import(local: bool) -> None:
    """What Ray reads when it is imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if local:  # a token of its own, in no file that others could read
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    logging.getLogger("ray").setLevel(logging.WARNING)


def _join(ray: Any, settings: RaySettings) -> None:
    quiet = {"log_to_driver": False, "configure_logging": False, "namespace": APPLICATION}
    if settings.address == "local":
        cores = max(os.cpu_count() or 1, math.ceil(settings.cpus * settings.most))
        ray.init(
            "local",
            include_dashboard=False,
            num_cpus=cores,
            object_store_memory=STORE_BYTES,
            **quiet,
        )
        there = ray.cluster_resources().get("GPU", 0.0)
        if settings.gpus * settings.most > there:
            ray.shutdown()
            raise ConfigError(
                f"{settings.most} replicas with {settings.gpus:g} GPUs each were asked for; this "
                f"machine has {there:g}"
            )
        return
    try:
        _knock(settings.address)
        ray.init(settings.address, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        raise EngineError(
            f"no Ray cluster answers at '{settings.address}': {error}; start one, or leave out "
            "--ray-address"
        ) from None


def _knock(address: str) -> None:
    """Ray would wait for minutes where nobody listens. Raises OSError."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), KNOCK_S).close()


def _keep_private(token: Path) -> None:
    """Ray writes the token that admits to a cluster for all of the machine's users to read."""
    file = token.expanduser()
    if file.is_file() and file.stat().st_uid == os.getuid():
        file.chmod(0o600)


def _options(settings: RaySettings) -> dict[str, Any]:
    if settings.max_replicas:
        scale = {
            "min_replicas": settings.replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": max(1, settings.ongoing // 4),
        }
        number: dict[str, Any] = {"autoscaling_config": scale}
    else:
        number = {"num_replicas": settings.replicas}
    return number | {
        "ray_actor_options": {
            "num_cpus": settings.cpus,
            "num_gpus": settings.gpus,
            "runtime_env": {"env_vars": ENVIRONMENT},
        },
        "max_ongoing_requests": settings.ongoing,
        "max_queued_requests": 4 * settings.ongoing * settings.most,
        "health_check_period_s": 1.0,
        "health_check_timeout_s": 3.0,
        "graceful_shutdown_timeout_s": 10.0,
        "max_constructor_retry_count": 1,
        "logging_config": {"enable_access_log": False, "log_level": "WARNING"},
        # Another replica does not have the session; it is asked when the first is gone.
        "request_router_config": {
            "request_router_class": ROUTER,
            "request_router_kwargs": {"num_fallback_replicas": 0},
        },
    }
