"""Load for a server: sessions that verify in closed loops, and a client that never stops."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import grpc
import numpy as np
import psutil
from hybrid_rig import Rig

from edgespec_runtime import Model
from edgespec_runtime.bench.data import Row
from edgespec_runtime.remote.session import Session
from edgespec_runtime.wire import verifier_pb2 as pb
from edgespec_runtime.wire.prefix import Prefix, context_digest
from tests.support.history import percentile

SERVICE = "/edgespec.v1.Verifier/"
GUESSED = 3
"""Right guesses in every tree: with the bonus a round brings one more."""
NODES = 12
WARM_S = 1.5
SAMPLE_S = 5.0
SETTLING = 0.25
"""Share of a soak before memory is judged: caches and allocators fill."""


@dataclass(frozen=True)
class Script:
    """An answer that is known, to be verified again and again."""

    request: pb.OpenRequest
    tokens: tuple[int, ...]


class Scripts:
    """Answers of the target, and the opens that lead to them."""

    def __init__(self, scripts: Sequence[Script]) -> None:
        self._scripts = scripts

    def __getitem__(self, number: int) -> Script:
        return self._scripts[number % len(self._scripts)]

    def long(self) -> Scripts:
        """Those of long answers: of short ones a server does little but open sessions."""
        most = max(len(script.tokens) for script in self._scripts)
        return Scripts([script for script in self._scripts if 2 * len(script.tokens) >= most])

    @staticmethod
    def record(here: Rig, rows: Sequence[Row], tokens: int) -> Scripts:
        """Asks the server once; keeps what a client sent it first."""
        made, opens = [], list[bytes]()
        write = Session.open

        def listen(session: Session, sent: Any) -> bytes:
            opens.append(write(session, ()))
            return opens[-1]

        with here.client(mode="remote") as model, patch.object(Session, "open", listen):
            for row in rows:
                opens.clear()
                answer = model.generate(list(row.images), row.turns[0], max_new_tokens=tokens)
                request = pb.OpenRequest.FromString(opens[0])
                request.max_nodes = NODES
                made.append(Script(request, answer.token_ids))
        return Scripts(made)


@dataclass
class Tally:
    """Of all sessions, after warming up."""

    waits_s: list[float] = field(default_factory=list)
    tokens: int = 0
    wrong: int = 0


def load(here: Rig, scripts: Scripts, sessions: int, seconds: float) -> dict[str, Any]:
    """``sessions`` closed loops straight at the server (no proxy): the next verification follows
    the reply, and a new session the end of an answer."""
    tally = Tally()
    rounds, batches = (here.scrape(f"edgespec_{name}_total") for name in ("rounds", "batches"))
    asyncio.run(_loops(here.server.address, scripts, sessions, seconds, tally))
    rounds = here.scrape("edgespec_rounds_total") - rounds
    batches = here.scrape("edgespec_batches_total") - batches
    return {
        "sessions": sessions,
        "per_s": len(tally.waits_s) / seconds,
        "tokens_per_s": tally.tokens / seconds,
        "p50_ms": percentile(tally.waits_s, 0.5) * 1e3,
        "p99_ms": percentile(tally.waits_s, 0.99) * 1e3,
        "mean_batch": rounds / batches if batches else 0.0,
        "wrong": tally.wrong,
    }


async def _loops(
    address: str, scripts: Scripts, sessions: int, seconds: float, tally: Tally
) -> None:
    start = time.perf_counter() + WARM_S
    own = [("grpc.use_local_subchannel_pool", 1)]  # devices do not share a connection
    channels = [grpc.aio.insecure_channel(address, own) for _ in range(sessions)]
    try:
        await asyncio.gather(
            *(
                _loop(channel, scripts, number, start, seconds, tally)
                for number, channel in enumerate(channels)
            )
        )
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))


async def _loop(
    channel: grpc.aio.Channel,
    scripts: Scripts,
    number: int,
    start: float,
    seconds: float,
    tally: Tally,
) -> None:
    verify = channel.unary_unary(
        SERVICE + "Verify", pb.VerifyRequest.SerializeToString, pb.VerifyReply.FromString
    )
    rng = random.Random(number)
    while time.perf_counter() < start + seconds:
        script = scripts[number]
        number += 1
        async for request, expected in _answer(channel, script, rng):
            sent = time.perf_counter()
            reply = await verify(request)
            came = time.perf_counter()
            if start <= sent and came < start + seconds:
                tally.waits_s.append(came - sent)
                tally.tokens += len(reply.path) + 1
            tally.wrong += reply.prefix_hash != expected
            if came > start + seconds:
                break


async def _answer(channel: grpc.aio.Channel, script: Script, rng: random.Random) -> Any:
    """Opens a session and yields its rounds, each with the hash that must come of it."""
    opening = pb.OpenRequest()
    opening.CopyFrom(script.request)
    opening.session_id = secrets.token_bytes(16)
    open_ = channel.unary_unary(
        SERVICE + "Open", pb.OpenRequest.SerializeToString, pb.OpenReply.FromString
    )
    close = channel.unary_unary(
        SERVICE + "Close", pb.CloseRequest.SerializeToString, pb.CloseReply.FromString
    )
    await open_(opening)
    prefix = Prefix(context_digest(opening), script.tokens[:1])
    number = 0
    while prefix.length + GUESSED + 1 <= len(script.tokens):
        number += 1
        right = script.tokens[prefix.length : prefix.length + GUESSED + 1]
        request = pb.VerifyRequest(
            session_id=opening.session_id,
            epoch=1,
            round=number,
            committed_len=prefix.length,
            prefix_hash=prefix.value,
            tree=_tree(right, rng),
        )
        prefix.extend(right)
        yield request, prefix.value
    await close(pb.CloseRequest(session_id=opening.session_id, epoch=1))


def _tree(right: Sequence[int], rng: random.Random) -> pb.Tree:
    """A chain of ``GUESSED`` right guesses, then a chain below them that the target leaves."""
    wrong = [(right[-1] + 1 + rng.randrange(20)) % 256 for _ in range(NODES - GUESSED)]
    return pb.Tree(token_ids=[*right[:GUESSED], *wrong], parents=list(range(NODES)))


def keep_asking(
    model: Model, rows: Sequence[Row], tokens: int, seconds: float, between: Callable[[], None]
) -> int:
    """One answer after the other; ``between`` is called behind each. How many there were."""
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        row = rows[count % len(rows)]
        model.generate(
            list(row.images),
            row.turns[0],
            max_new_tokens=tokens,
            temperature=0.0 if count % 2 else 0.8,
            seed=count,
        )
        count += 1
        between()
    return count


class Memory:
    """Resident memory of the server and of this process over time."""

    def __init__(self, server: int) -> None:
        self._processes = {"server": psutil.Process(server), "client": psutil.Process()}
        self._started = time.monotonic()
        self._samples: list[tuple[float, dict[str, float]]] = []

    def sample(self) -> None:
        """Takes a sample where the last one is old enough."""
        now = time.monotonic() - self._started
        if self._samples and now - self._samples[-1][0] < SAMPLE_S:
            return
        held = {name: p.memory_info().rss / 2**20 for name, p in self._processes.items()}
        self._samples.append((now, held))

    def lines(self) -> dict[str, dict[str, Any]]:
        """A line through each process's samples once caches are full. Flat: what the line grows
        by in that time is below 2 % of the memory, or below 4 MB."""
        settled = self._samples[int(len(self._samples) * SETTLING) :]
        minutes = np.array([at for at, _ in settled]) / 60
        found = {}
        for name in self._processes:
            held = np.array([sample[name] for _, sample in settled])
            slope = float(np.polyfit(minutes, held, 1)[0]) if len(held) > 2 else float("nan")
            growth = slope * float(minutes[-1] - minutes[0])
            found[name] = {
                "start_mb": float(held[0]),
                "end_mb": float(held[-1]),
                "slope_mb_per_min": slope,
                "flat": bool(growth < max(0.02 * float(held.mean()), 4.0)),
                "samples": [(round(at, 1), round(sample[name], 2)) for at, sample in self._samples],
            }
        return found
