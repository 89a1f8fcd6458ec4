"""Verifications a server does in a second, by sessions that send at once: no network, no gRPC.

    python benchmarks/serving.py [--bundle B] [--sessions 1,2,4,8,16] [--nodes 15] [--seconds 2]

Every session sends its next round as soon as it has the last one's reply: a tree of random guesses,
which costs what any tree of its size does. "queued" runs verifications one after another, "batched"
as many in one engine call as wait; the two take turns, so that a machine that changes its pace does
so for both. Without a bundle the built-in family is exported. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from edgespec_runtime.server.capacity import Capacity
from edgespec_runtime.server.embedded import EmbeddedBackend, open_backend
from edgespec_runtime.wire import verifier_pb2 as pb

SEATS = 8
TURNS = 3
PROMPT = 64
"""Tokens."""


@dataclass
class Clocked:
    """One way of serving one number of sessions."""

    seconds: float = 0.0
    rounds: int = 0
    batches: int = 0
    ms: list[float] = field(default_factory=list)

    def row(self) -> dict[str, float]:
        cuts = statistics.quantiles(self.ms, n=100)
        return {
            "verifications_per_s": round(self.rounds / self.seconds, 1),
            "p50_ms": round(statistics.median(self.ms), 2),
            "p99_ms": round(cuts[98], 2),
            "mean_batch": round(self.rounds / self.batches, 2),
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", help="with a graph for several sessions (export --sessions)")
    parser.add_argument("--sessions", default="1,2,4,8,16")
    parser.add_argument("--nodes", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=2.0, help="of every cell")
    parser.add_argument("--threads", type=int, default=0)
    given = parser.parse_args()
    sizes = [int(size) for size in given.sessions.split(",")]
    with bundle(given.bundle) as folder:
        result = asyncio.run(measure(folder, sizes, given))
    print(json.dumps({"nodes": given.nodes, "prompt": PROMPT, "sessions": result}, indent=1))
    return 0


@contextmanager
def bundle(given: str | None) -> Iterator[str]:
    if given:
        yield given
        return
    from edgespec_export.exporter import export_bundle
    from edgespec_export.family import export_request

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "builtin.bundle")
        export_bundle(replace(export_request("draft", out), sessions=SEATS))
        yield str(out)


async def measure(folder: str, sizes: list[int], given: Any) -> dict[int, dict[str, Any]]:
    backends = {
        name: open_backend(
            folder, threads=given.threads, capacity=Capacity(batch=batch, batching="engine")
        )
        for name, batch in (("queued", 1), ("batched", SEATS))
    }
    result = {}
    for size in sizes:
        cells = {name: Clocked() for name in backends}
        for _ in range(TURNS):
            for name, backend in backends.items():
                await turn(backend, size, given.nodes, given.seconds / TURNS, cells[name])
        result[size] = {name: cell.row() for name, cell in cells.items()}
        print(size, result[size], file=sys.stderr, flush=True)
    for backend in backends.values():
        await backend.stop()
    return result


async def turn(
    backend: EmbeddedBackend, size: int, nodes: int, seconds: float, cell: Clocked
) -> None:
    """Lets ``size`` sessions send for a while."""
    started_from = await backend.gauges()
    begun = perf_counter()
    await asyncio.gather(
        *(session(backend, bytes([i]) * 16, nodes, begun + seconds, cell) for i in range(size))
    )
    cell.seconds += perf_counter() - begun
    now = await backend.gauges()
    cell.rounds += now.rounds - started_from.rounds
    cell.batches += now.batches - started_from.batches


async def session(
    backend: EmbeddedBackend, name: bytes, nodes: int, until: float, cell: Clocked
) -> None:
    """Rounds until the time is over, in answers that are opened anew where the context ends."""
    info = await backend.info()
    rng = np.random.default_rng(name[0])
    vocab, epochs = info.limits.vocab, count(1)
    prompt = rng.integers(10, vocab // 2, PROMPT).tolist()
    while perf_counter() < until:
        opened = await backend.open(
            "benchmark",
            pb.OpenRequest(
                session_id=name,
                epoch=next(epochs),
                fingerprints=info.fingerprints,
                prompt_ids=prompt,
                sampling=pb.Sampling(top_p=1.0, repetition_penalty=1.0),
                max_new_tokens=info.limits.context - PROMPT,
                max_nodes=nodes,
            ),
        )
        length, prefix = opened.committed_len, opened.prefix_hash
        for number in count(1):
            if perf_counter() > until or length >= info.limits.context - PROMPT:
                break
            request = pb.VerifyRequest(
                session_id=name,
                epoch=opened.epoch,
                round=number,
                committed_len=length,
                prefix_hash=prefix,
                tree=pb.Tree(
                    token_ids=rng.choice(vocab, nodes, replace=False).tolist(),
                    parents=[max(0, i // 2) for i in range(nodes)],
                ),
            )
            sent = perf_counter()
            reply = await backend.verify("benchmark", request)
            cell.ms.append(1000 * (perf_counter() - sent))
            length, prefix = reply.committed_len, reply.prefix_hash
    await backend.close("benchmark", pb.CloseRequest(session_id=name, epoch=opened.epoch))


if __name__ == "__main__":
    sys.exit(main())
