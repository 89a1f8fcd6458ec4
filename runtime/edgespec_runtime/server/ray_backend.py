"""Verifiers as replicas of a Ray Serve deployment, behind the same front.

A replica is a whole backend of its own: cache, scheduler, rules of sessions. Ray places, restarts
and scales replicas, and its consistent-hash router sends every request of a session to the same
one. A session whose replica died, or that a new replica took over, meets REOPEN and resumes.

Devices never talk to Ray: its ports have no TLS and belong to a private network.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.message import Message

from edgespec.errors import ConfigError, EngineError, MissingDependencyError
from edgespec_runtime.server.backend import Gauges, VerifierBackend
from edgespec_runtime.server.logs import where
from edgespec_runtime.wire import verifier_pb2 as pb
from edgespec_runtime.wire.refusal import Reason, Refusal

APPLICATION = "edgespec"
ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
LEVELS = ("sessions", "kv_bytes", "image_bytes", "queued")
"""Gauges that a dead replica no longer has; the others count on."""
GAUGES_S = 2.0
RETRY_MS = 200
STORE_BYTES = 1 << 28
"""For objects between Ray's processes; messages do not pass through it."""
Reply = TypeVar("Reply", bound=Message)
LOG = logging.getLogger(__name__)
Opener = Callable[[], VerifierBackend]


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
        for name in ("cpus", "gpus"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"--ray-{name} is {getattr(self, name)}; it must be at least 0")

    @property
    def most(self) -> int:
        """Replicas at most."""
        return max(self.replicas, self.max_replicas)


class Replica:
    """One backend inside Ray. Messages cross as their own bytes; a refusal is a value, not an
    error, so that Ray neither wraps nor logs it."""

    def __init__(self, opener: Opener) -> None:
        self._backend = opener()

    async def info(self) -> bytes | Refusal:
        """What it serves."""
        return await _answer(self._backend.info())

    async def open(self, tenant: str, data: bytes) -> bytes | Refusal:
        """See ``VerifierBackend``, as are the others."""
        return await _answer(self._backend.open(tenant, pb.OpenRequest.FromString(data)))

    async def verify(self, tenant: str, data: bytes) -> bytes | Refusal:
        return await _answer(self._backend.verify(tenant, pb.VerifyRequest.FromString(data)))

    async def close(self, tenant: str, data: bytes) -> bytes | Refusal:
        return await _answer(self._backend.close(tenant, pb.CloseRequest.FromString(data)))

    async def proceed(self, tenant: str, data: bytes) -> AsyncIterator[bytes | Refusal]:
        rounds = self._backend.proceed(tenant, pb.ContinueRequest.FromString(data))
        try:
            async with aclosing(rounds):
                async for reply in rounds:
                    yield reply.SerializeToString()
        except Refusal as refusal:
            yield _told(refusal)

    async def gauges(self) -> tuple[int, Gauges]:
        """With the id of this process."""
        return os.getpid(), await self._backend.gauges()


async def _answer(coming: Any) -> bytes | Refusal:
    try:
        reply: bytes = (await coming).SerializeToString()
    except Refusal as refusal:
        return _told(refusal)
    return reply


def _told(refusal: Refusal) -> Refusal:
    """``refusal``, its cause logged: that stays behind in this process."""
    if (cause := refusal.__cause__) is not None:
        LOG.error("%s at %s", type(cause).__name__, where(cause))
    return refusal


class RayBackend:
    """The replicas as one backend."""

    def __init__(self, handle: Any, secret: bytes, shut_down: Callable[[], None]) -> None:
        """``handle``: of the deployment; ``secret`` makes routing keys, so that no client can aim
        at a replica."""
        self._handle = handle
        self._secret = secret
        self._shut_down = shut_down
        self._info: pb.InfoReply | None = None
        self._known: dict[int, Gauges] = {}

    async def info(self) -> pb.InfoReply:
        if self._info is None:
            self._info = pb.InfoReply.FromString(await self._ask(self._handle.info))
        return self._info

    async def open(self, tenant: str, request: pb.OpenRequest) -> pb.OpenReply:
        return pb.OpenReply.FromString(await self._at(tenant, "open", request))

    async def verify(self, tenant: str, request: pb.VerifyRequest) -> pb.VerifyReply:
        return pb.VerifyReply.FromString(await self._at(tenant, "verify", request))

    async def close(self, tenant: str, request: pb.CloseRequest) -> pb.CloseReply:
        return pb.CloseReply.FromString(await self._at(tenant, "close", request))

    async def proceed(
        self, tenant: str, request: pb.ContinueRequest
    ) -> AsyncGenerator[pb.VerifyReply, None]:
        method = self._method(tenant, "proceed", request).options(stream=True)
        rounds = method.remote(tenant, request.SerializeToString())
        try:
            async for answer in rounds:
                yield pb.VerifyReply.FromString(_reply(answer))
        except Exception as error:
            _translate(error)
            raise
        finally:
            rounds.cancel()

    async def gauges(self) -> Gauges:
        """Of all replicas together; one that does not answer in time counts as gone."""
        calls = self._handle.broadcast("gauges")
        try:
            found = await calls.results_async(timeout_s=GAUGES_S, return_exceptions=True)
        except asyncio.TimeoutError:
            found = []
        alive: dict[int, Gauges] = dict(entry for entry in found if isinstance(entry, tuple))
        self._known |= alive
        return Gauges(
            **{
                entry.name: sum(
                    getattr(gauges, entry.name)
                    for gauges in (alive if entry.name in LEVELS else self._known).values()
                )
                for entry in fields(Gauges)
            }
        )

    async def stop(self) -> None:
        """Lets the replicas finish what runs and ends them, and Ray where this server started
        it."""
        await asyncio.to_thread(self._shut_down)

    def _method(self, tenant: str, name: str, request: Any) -> Any:
        key = hmac.new(self._secret, tenant.encode() + b"|" + request.session_id, "sha256")
        return self._handle.options(method_name=name, session_id=key.hexdigest())

    async def _at(self, tenant: str, name: str, request: Message) -> bytes:
        method = self._method(tenant, name, request)
        return await self._ask(method, tenant, request.SerializeToString())

    async def _ask(self, method: Any, *arguments: Any) -> bytes:
        response = method.remote(*arguments)
        try:
            return _reply(await response)
        except asyncio.CancelledError:
            response.cancel()
            raise
        except Exception as error:
            _translate(error)
            raise


def _reply(answer: bytes | Refusal) -> bytes:
    if isinstance(answer, Refusal):
        raise answer
    return answer


def _translate(error: Exception) -> None:
    """Raises the Refusal that an error of Ray's own means; a replica's bug is none."""
    from ray.exceptions import RayActorError, RayError, RayTaskError
    from ray.serve.exceptions import BackPressureError, RayServeException

    if isinstance(error, RayActorError):
        said = "the replica of this session is gone"
    elif isinstance(error, BackPressureError):
        said = "every replica has its queue full"
    elif isinstance(error, (RayError, RayServeException)) and not isinstance(error, RayTaskError):
        said = "no replica can be reached"
    else:
        return
    raise Refusal(Reason.BUSY, said, RETRY_MS) from error


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
    _join(ray, settings)

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
    try:
        instance.start(proxy_location="Disabled")  # no entrance but the front's
        deployment = instance.deployment(Replica).options(name="verifier", **_options(settings))
        handle = instance.run(deployment.bind(opener), name=APPLICATION, route_prefix=None)
    except BaseException as error:  # of a signal too: a cluster would keep what was begun
        shut_down()
        if isinstance(error, RuntimeError):
            raise EngineError(f"the replicas did not start: {error}") from None
        raise
    return RayBackend(handle, secrets.token_bytes(32), shut_down)


def _before_import(local: bool) -> None:
    """What Ray reads when it is imported."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    # Requests reach replicas by gRPC, not as calls of actors: 1.5 ms a round in place of 2.4.
    os.environ.setdefault("RAY_SERVE_USE_GRPC_BY_DEFAULT", "1")
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
        return
    try:
        ray.init(settings.address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise EngineError(
            f"no Ray cluster answers at '{settings.address}': {error}; start one, or leave out "
            "--ray-address"
        ) from None


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
        "ray_actor_options": {"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        "max_ongoing_requests": settings.ongoing,
        "max_queued_requests": 4 * settings.ongoing * settings.most,
        "health_check_period_s": 1.0,
        "health_check_timeout_s": 3.0,
        "graceful_shutdown_timeout_s": 10.0,
        "logging_config": {"enable_access_log": False, "log_level": "WARNING"},
        # Another replica does not have the session; it is asked when the first is gone.
        "request_router_config": {
            "request_router_class": ROUTER,
            "request_router_kwargs": {"num_fallback_replicas": 0},
        },
    }
