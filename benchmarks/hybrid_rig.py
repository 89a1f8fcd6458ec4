"""What the figures of hybrid operation are measured on: a server on one core, the client on
another, and a network between them that is as slow as it is told to be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
for part in ("runtime", "export", ""):  # the helpers of the tests are not installed
    if str(ROOT / part) not in sys.path:
        sys.path.insert(0, str(ROOT / part))

import edgespec_runtime  # noqa: E402
from edgespec_runtime import Model  # noqa: E402
from edgespec_runtime.remote import RemoteSettings  # noqa: E402
from tests.support.servers import RunningServer, running_server  # noqa: E402

RTTS_MS = (2.0, 20.0, 50.0, 100.0, 200.0)
UPLINK_KBPS = 1000.0
SEATS = 8
"""Sessions that the server verifies in one call."""


@cache
def cores() -> tuple[int, int]:
    """The server's and the client's, of those that this process had when it was first asked."""
    own = sorted(os.sched_getaffinity(0))
    return own[0], own[-1]


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """Whatever this thread runs or starts meanwhile runs on ``core``."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Network:
    """The fault proxy in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid
        assert process.stdout is not None
        self.address = str(json.loads(process.stdout.readline())["listening"])

    def order(self, **changes: Any) -> dict[str, int]:
        """Changes it, see ``faultproxy.Weather``; returns its counters."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(changes) + "\n")
        self._process.stdin.flush()
        counters: dict[str, int] = json.loads(self._process.stdout.readline())
        return counters

    def shape(self, rtt_ms: float, uplink_kbps: float = UPLINK_KBPS) -> None:
        """A round trip of ``rtt_ms`` and an uplink of so many kilobits per second (0: any)."""
        self.order(latency_ms=rtt_ms / 2, up_bytes_s=uplink_kbps * 125)


@contextmanager
def network(upstream: str) -> Iterator[Network]:
    """A proxy in front of ``upstream``."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.faultproxy", "--upstream", upstream],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    with process:
        try:
            yield Network(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()


@dataclass(frozen=True)
class Rig:
    """A running server, and the way to it."""

    bundle: Path
    server: RunningServer
    network: Network
    profile: Path | None = None
    """The device's: trees are then sized by measured cost."""

    @contextmanager
    def client(self, *spares: Rig, local: bool = False, **settings: Any) -> Iterator[Model]:
        """A model of this process: the target is here with ``local``, else at the server, and at
        ``spares`` where that one does not answer."""
        if local:
            yield self._load()
            return
        addresses = (self.network.address, *(spare.network.address for spare in spares))
        remote = RemoteSettings(addresses, **settings)
        model = self._load(remote)
        try:
            yield model
        finally:
            model.close()

    def _load(self, remote: RemoteSettings | None = None) -> Model:
        return edgespec_runtime.load(
            self.bundle, threads=1, check_hashes=False, profile=self.profile, remote=remote
        )

    def scrape(self, name: str) -> float:
        """One of the server's metrics."""
        with urllib.request.urlopen(f"http://{self.server.line['metrics']}/metrics") as answer:
            for line in answer.read().decode().splitlines():
                if line.startswith(name + " "):
                    return float(line.split()[1])
        raise LookupError(f"the server has no metric '{name}'")


@contextmanager
def rig(bundle: Path, *flags: object, profile: Path | None = None) -> Iterator[Rig]:
    """A server of ``bundle`` on the first core, with one engine thread; the rest of this process
    gets the second one."""
    servers, clients = cores()
    with ExitStack() as stack:
        with pinned(servers):
            server = stack.enter_context(running_server(bundle, *flags))
        way = stack.enter_context(network(server.address))
        os.sched_setaffinity(way.pid, {servers, clients})
        stack.enter_context(pinned(clients))
        yield Rig(bundle, server, way, profile)


def builtin(folder: Path) -> Path:
    """The built-in family with its draft, exported into ``folder`` for a server of several."""
    from edgespec_export.exporter import export_bundle
    from edgespec_export.family import export_request

    out = folder / "builtin.bundle"
    export_bundle(replace(export_request("draft", out), sessions=SEATS))
    return out
