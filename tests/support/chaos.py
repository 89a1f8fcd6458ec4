"""Many clients, a few servers, a bad network: a run of it, and the verdict over its history."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc

import edgespec_runtime
from edgespec_runtime import Model
from edgespec_runtime.remote import RemoteSettings
from edgespec_runtime.wire import verifier_pb2 as pb
from edgespec_runtime.wire.fingerprints import fingerprints
from tests.support.chatter import Chatter, Ledger, oracle, questions
from tests.support.faultproxy import FaultProxy
from tests.support.gremlin import WEIGHTS, Gremlin, Victim, schedule
from tests.support.history import Findings, check, percentile
from tests.support.replicas import KINDS, Replicas
from tests.support.servers import RunningServer, running_server
from tests.support.unchecked import stripped_client

MODES = ("hybrid", "remote", "auto")
POLL_S = 0.1


@dataclass(frozen=True)
class Plan:
    """A run. It ends when both ``tokens`` and ``faults`` are reached, or at ``cap_s``."""

    clients: int = 24
    models: int = 6
    """Devices: each has connections of its own, shared by its clients."""
    servers: int = 2
    replicas: int = 0
    """With any, servers run their targets in so many replicas under Ray, and it is those that are
    killed and stopped."""
    tokens: int = 100_000
    faults: int = 150
    questions: int = 48
    answer: int = 96
    """Tokens of a middling answer."""
    kv_mb: float = 8.0
    """Of a server's cache: with less than all clients need it evicts by itself."""
    calm: bool = False
    """Whether there is peace once there were enough faults; else they go on to the end."""
    pace: float = 1.5
    """Stretches the times of the faults."""
    seed: int = 0
    cap_s: float = 1800.0
    checks: bool = True
    """False: the negative control, in which nobody checks rounds and prefixes."""


@dataclass
class Report:
    """What happened."""

    plan: Plan
    findings: Findings
    faults: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    """What users were told in place of text: none, if pauses stay pauses."""
    waits_s: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        return self.findings.clean and not self.errors

    @property
    def complete(self) -> bool:
        """Whether there was as much as was planned."""
        enough = sum(self.faults.values()) >= self.plan.faults
        return enough and self.findings.tokens >= self.plan.tokens

    def as_json(self) -> dict[str, Any]:
        """Plain values; notes and errors are cut to the first few."""
        return {
            "clean": self.clean,
            "tokens": self.findings.tokens,
            "lost": self.findings.lost,
            "doubled": self.findings.doubled,
            "wrong": self.findings.wrong,
            "two_answers": self.findings.two_answers,
            "faults": dict(sorted(self.faults.items())),
            "counts": dict(sorted(self.counts.items())),
            "round_ms": {
                "p50": round(percentile(self.waits_s, 0.5) * 1e3, 1),
                "p99": round(percentile(self.waits_s, 0.99) * 1e3, 1),
                "max": round(max(self.waits_s, default=0.0) * 1e3, 1),
            },
            "seconds": round(self.seconds, 1),
            "errors": self.errors[:10],
            "notes": self.findings.notes[:10],
            "plan": asdict(self.plan),
        }


def run(bundle: Path, plan: Plan, tell: Callable[[str], None] = lambda text: None) -> Report:
    """Runs the plan with servers and clients of ``bundle``. ``tell`` hears of the progress."""
    local = edgespec_runtime.load(bundle, threads=1)
    asked = questions(plan.questions, tokens=plan.answer, seed=plan.seed)
    right = oracle(local, asked)
    tell(f"the oracle has {len(right)} answers, {sum(map(len, right.values()))} tokens")
    ledger, started = Ledger(), time.monotonic()
    with ExitStack() as stack:
        if not plan.checks:
            stack.enter_context(stripped_client())
        stack.enter_context(ledger.listening())
        servers = [stack.enter_context(_server(bundle, plan)) for _ in range(plan.servers)]
        proxies = [
            stack.enter_context(FaultProxy(server.address, seed=plan.seed + i))
            for i, server in enumerate(servers)
        ]
        addresses = [proxy.address for proxy in proxies]
        models = [stack.enter_context(_device(bundle, addresses, i)) for i in range(plan.models)]
        total = Counter[str]()
        gremlins = [
            Gremlin(
                _victim(server, plan),
                proxy,
                schedule(plan.seed * 100 + i, plan.pace, KINDS if plan.replicas else WEIGHTS),
                partial(crowd_out, server.address, local, plan.clients),
                lambda: plan.calm and sum(gremlin.count for gremlin in gremlins) >= plan.faults,
            )
            for i, (server, proxy) in enumerate(zip(servers, proxies, strict=True))
        ]
        chatters = [
            Chatter(f"c{i}", models[i % len(models)], asked, ledger, seed=plan.seed + i)
            for i in range(plan.clients)
        ]
        try:
            for thread in (*chatters, *gremlins):
                thread.start()
            _watch(plan, ledger, gremlins, chatters, tell)
        finally:
            for gremlin in gremlins:
                gremlin.stop()
                total.update(gremlin.done)
            for chatter in chatters:
                chatter.stop()
            for chatter in chatters:
                chatter.join()
        for error in _errors(gremlins, chatters):
            raise error
    return Report(
        plan,
        check(ledger.commits, ledger.told, right),
        total,
        ledger.counts,
        ledger.errors,
        ledger.waits_s,
        time.monotonic() - started,
    )


def _watch(
    plan: Plan,
    ledger: Ledger,
    gremlins: Sequence[Gremlin],
    chatters: Sequence[Chatter],
    tell: Callable[[str], None],
) -> None:
    """Until there is enough of everything, too little time, or a thread that broke."""
    end, told = time.monotonic() + plan.cap_s, time.monotonic()
    while time.monotonic() < end:
        faults = sum(gremlin.count for gremlin in gremlins)
        if ledger.tokens >= plan.tokens and faults >= plan.faults:
            return
        if _errors(gremlins, chatters):
            return
        if time.monotonic() - told > 10:
            told = time.monotonic()
            tell(f"{ledger.tokens} tokens, {faults} faults, {len(ledger.errors)} errors")
        time.sleep(POLL_S)


def _errors(gremlins: Sequence[Gremlin], chatters: Sequence[Chatter]) -> list[Exception]:
    """What is no fault of the network's."""
    found = [*(gremlin.error for gremlin in gremlins), *(chatter.error for chatter in chatters)]
    return [error for error in found if error is not None]


def _victim(server: RunningServer, plan: Plan) -> Victim:
    return Replicas(server, plan.seed) if plan.replicas else server


@contextmanager
def _server(bundle: Path, plan: Plan) -> Iterator[RunningServer]:
    flags = ["--grace-s", "1", "--log-level", "warning", "--kv-mb", plan.kv_mb]
    if plan.replicas:
        flags += ["--engine", "ray", "--ray-replicas", plan.replicas]
    module = "edgespec" if plan.checks else "tests.support.unchecked"
    with running_server(bundle, *flags, module=module) as server:
        yield server


@contextmanager
def _device(bundle: Path, addresses: Sequence[str], number: int) -> Iterator[Model]:
    """A client's model; devices differ in mode and in the server that they prefer."""
    first = number % len(addresses)
    settings = RemoteSettings(
        endpoints=(*addresses[first:], *addresses[:first]),
        deadline_ms=2_000.0,
        open_deadline_ms=5_000.0,
        connect_s=120.0,
        patience_s=120.0,
        mode=MODES[number % len(MODES)],
        ahead=number % 2 == 0,
    )
    model = edgespec_runtime.load(bundle, threads=1, remote=settings, check_hashes=False)
    try:
        yield model
    finally:
        model.close()


def crowd_out(address: str, model: Model, sessions: int, wait_s: float = 1.0) -> None:
    """Opens so many sessions at a server that those of others have to go. A server that does not
    answer within ``wait_s`` has lost them anyway."""
    request = pb.OpenRequest(
        epoch=1,
        fingerprints=fingerprints(model.bundle),
        prompt_ids=[5],
        sampling=pb.Sampling(top_p=1.0, repetition_penalty=1.0),
        max_new_tokens=1,
        max_nodes=1,
    )
    with grpc.insecure_channel(address) as channel:
        call: Any = channel.unary_unary("/edgespec.v1.Verifier/Open")
        for _ in range(sessions):
            request.session_id = secrets.token_bytes(16)
            try:
                call(request.SerializeToString(), timeout=wait_s)
            except grpc.RpcError as error:
                told: Any = error
                if told.code() is grpc.StatusCode.INVALID_ARGUMENT:
                    raise  # our own mistake: nobody is crowded out by it
                return
