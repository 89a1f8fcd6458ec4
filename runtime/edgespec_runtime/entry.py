"""From a path to a model that is ready for requests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgespec.bundle import Bundle, read_bundle
from edgespec.errors import ConfigError, MissingDependencyError
from edgespec.latency import DeviceProfile, bundle_facts, check_fits, profile_for, this_device
from edgespec.sizing.budgets import Budget
from edgespec_runtime.engines import open_engine
from edgespec_runtime.engines.choice import AUTO, choose, shown
from edgespec_runtime.loading import vocabulary
from edgespec_runtime.model import Model

if TYPE_CHECKING:
    from edgespec_runtime.remote.opening import RemoteTarget
    from edgespec_runtime.remote.settings import RemoteSettings

PACKAGES = {"grpc": "grpcio", "grpc_status": "grpcio-status", "google": "protobuf"}
"""What ``edgespec[remote]`` installs, by what is imported."""


def load(
    bundle: str | Path,
    *,
    engine: str = AUTO,
    flavour: str | None = None,
    threads: int = 0,
    check_hashes: bool = True,
    profile: str | Path | DeviceProfile | None = None,
    budget: Budget | None = None,
    remote: RemoteSettings | None = None,
    exact: bool = False,
    huge_pages: bool = True,
) -> Model:
    """Opens a bundle: checks it whole, then loads its graphs.

    ``engine``: one of ``engines.choice.ENGINES``, or the best that can run here; ``flavour``: of
    the bundle's, e.g. "native:fp16", or the one that suits the engine. ``Model.choice`` tells.
    ``threads``: of the engine on a CPU; 0: the profile's, without one as many as there are cores.
    ``profile``: what ``edgespec profile`` wrote on this device; trees are then sized by measured
    cost. ``budget``: limits of all requests; where its memory has no room for the draft, that is
    left out. ``remote``: the target runs on servers and is not loaded here.
    ``exact``: plain decoding goes through the kernels that verification does, so that with rounded
    weights, too, speculation gives its text; it costs what a second row costs. ``huge_pages``: put
    a processor's weights on them, which takes a second or two a gigabyte and makes plain steps up
    to a tenth faster; leave it out for a single short answer. Raises BundleError, EngineError, and
    ConfigError for a profile that does not fit.
    """
    if exact and remote is not None:
        raise ConfigError(
            "exact is about a target that runs here; where servers verify, leave --exact out"
        )
    found = read_bundle(bundle, check_hashes=check_hashes)
    choice = choose(found, engine, flavour)
    opened = shown(found, choice)
    measured = profile_for(profile, opened) if isinstance(profile, (str, Path)) else profile
    if measured and measured.kind != "estimate":
        threads = threads or measured.engine.threads
    runner = open_engine(choice.engine, threads=threads, bundle=opened, huge_pages=huge_pages)
    if measured and isinstance(profile, (str, Path)):
        check_fits(
            measured,
            bundle=bundle_facts(opened),
            device=this_device(),
            engine=runner.facts,
            path=str(profile),
        )
    target = remote_target(opened, remote) if remote is not None else None
    return Model(opened, runner, measured, budget, target, choice=choice, exact=exact)


def remote_target(bundle: Bundle, settings: RemoteSettings) -> RemoteTarget:
    """The bundle's target on servers. Raises MissingDependencyError without ``edgespec[remote]``,
    ConfigError for files of certificates that cannot be read."""
    try:
        from edgespec_runtime.remote.opening import RemoteTarget
    except ImportError as error:
        package = PACKAGES.get((error.name or "").split(".")[0])
        if package is None:
            raise  # our own module: a bug, not a missing package
        raise MissingDependencyError(package, "a target on a server", "remote") from None
    return RemoteTarget(bundle, settings, vocabulary(bundle))
