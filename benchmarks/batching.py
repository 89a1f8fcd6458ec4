"""Verifications of several sessions: one engine call for all, against one call after another.

    edgespec export --target ... --sessions 8 --out B          # or --family: the built-in target
    python benchmarks/batching.py --bundle B [--padded N] [--json]

Every cell has ``sessions`` sessions of unequal contexts, each with a chain of ``rows`` rows to
verify. Ways alternate call by call, so they share the machine's noise; medians are given.
``--padded``: a bundle of the same target with ``--lowering native``, whose step graph takes the
sessions along its batch axis, under masks over the whole capacity: the way that was not chosen.
``--cpu``: the CPU time of one thread instead of the wall time of ``--threads``, for busy machines.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter, thread_time
from typing import Any

import numpy as np

from edgespec.bundle import Bundle, read_bundle
from edgespec.errors import InputError
from edgespec.flavour import Flavour
from edgespec_runtime.engines import Ask, StepPool, open_engine
from edgespec_runtime.kv import CacheShape, KVCache, blank_rows
from edgespec_runtime.prefill import causal_mask

SESSIONS = (1, 2, 4, 8, 16)
ROWS = (1, 8, 16)
CONTEXTS = (100, 400, 700)
REPEATS = 9


@dataclass(frozen=True)
class Cell:
    """Milliseconds that all sessions' verifications take, by way."""

    sessions: int
    rows: int
    context: int
    ms: Mapping[str, float]

    def per_second(self, way: str) -> float:
        return 1000 * self.sessions / self.ms[way]


class Load:
    """Sessions with contexts of zeros: attention takes as long as over any other rows."""

    def __init__(self, bundle: Bundle, threads: int, slots: int) -> None:
        target, packed = bundle.manifest.graph("target"), bundle.manifest.graph("target_packed")
        if target is None or packed is None:
            raise InputError(f"{bundle.path} has no packed graph; export it with --sessions")
        graph = open_engine(threads=threads).load_step(target, bundle.path, packed)
        self.meta = target.meta
        self.capacity = int(self.meta["max_positions"]) + max(ROWS)
        shape = CacheShape(*(int(self.meta[key]) for key in ("layers", "kv_heads", "head_dim")))
        self.rows = blank_rows(shape, self.capacity, slots)
        self.pool: StepPool = graph.open_pool()
        caches = [KVCache.over(self.rows[:, :, slot : slot + 1]) for slot in range(slots)]
        self.sessions = [self.pool.open(cache) for cache in caches]

    def asks(self, sessions: int, rows: int, context: int) -> list[Ask]:
        """One for each session; contexts differ by up to a fifth."""
        rng = np.random.default_rng(sessions)
        made = []
        for session in self.sessions[:sessions]:
            length = context + int(rng.integers(-context // 10, context // 10 + 1))
            session.cache.length, session.cache.pending = length, 0
            embeds = rng.standard_normal((rows, int(self.meta["hidden"])), dtype=np.float32)
            positions = list(range(length, length + rows))
            made.append(Ask(0.05 * embeds, positions, causal_mask(length, rows)))
        return made

    def ways(self, asks: Sequence[Ask]) -> dict[str, Callable[[], Any]]:
        pairs = list(zip(self.sessions, asks, strict=False))

        def queued() -> None:
            for session, ask in pairs:
                session.step(ask.embeds, ask.positions, ask.mask)
                session.cache.pending = 0

        def together() -> None:
            self.pool.step(pairs)
            for session, _ in pairs:
                session.cache.pending = 0

        return {"queue": queued, "batch": together}


class Padded:
    """The step graph of lowering native, sessions along its batch axis."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        import onnxruntime

        spec = bundle.manifest.graph("target")
        if spec is None or spec.lowering != "native":
            raise InputError(f"{bundle.path} is not of lowering native")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = onnxruntime.InferenceSession(
            str(bundle.path / spec.file), options, providers=["CPUExecutionProvider"]
        )
        self._wrap = onnxruntime.OrtValue.ortvalue_from_numpy
        self._vocab = int(spec.meta["vocab"])

    def way(self, rows: Any, asks: Sequence[Ask]) -> Callable[[], None]:
        """``rows``: the pool's [layers, 2, slots, KV, capacity, D]."""
        count, width, capacity = len(asks), len(asks[0].embeds), rows.shape[4]
        masks = np.zeros((count, 1, width, capacity), dtype=np.bool_)
        for mask, ask in zip(masks, asks, strict=True):
            mask[0, :, : ask.mask.shape[1]] = ask.mask
        given = {
            "inputs_embeds": np.stack([ask.embeds for ask in asks]),
            "position_ids": np.array([ask.positions for ask in asks]),
            "past_length": np.array([ask.positions[0] for ask in asks]),
            "logit_index": np.arange(width),
            "tree_mask": masks,
        }
        logits = np.zeros((count, width, self._vocab), dtype=np.float32)
        binding = self._session.io_binding()
        for name, array in given.items():
            binding.bind_ortvalue_input(name, self._wrap(array))
        binding.bind_ortvalue_output("logits", self._wrap(logits))
        for layer, pair in enumerate(rows):
            for kind, cache in zip(("key", "value"), pair, strict=True):
                value = self._wrap(cache[:count])
                binding.bind_ortvalue_input(f"past_{kind}.{layer}", value)
                binding.bind_ortvalue_output(f"present_{kind}.{layer}", value)
        keep = (given, logits)  # what is bound

        def run() -> None:
            assert keep
            self._session.run_with_iobinding(binding)

        return run


def clocked(ways: Mapping[str, Callable[[], Any]], clock: Callable[[], float]) -> dict[str, float]:
    """Median milliseconds of each, alternated, after one warm-up."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for repeat in range(REPEATS + 1):
        for way, run in ways.items():
            started = clock()
            run()
            if repeat:
                times[way].append(1000 * (clock() - started))
    return {way: median(found) for way, found in times.items()}


def measure(
    load: Load, padded: Padded | None, counts: Sequence[int], clock: Callable[[], float]
) -> list[Cell]:
    cells = []
    for sessions in counts:
        for rows in ROWS:
            for context in CONTEXTS:
                if context * 1.1 + rows > load.capacity:
                    continue
                asks = load.asks(sessions, rows, context)
                ways = load.ways(asks)
                if padded:
                    ways["padded"] = padded.way(load.rows, asks)
                cells.append(Cell(sessions, rows, context, clocked(ways, clock)))
    return cells


def table(cells: Sequence[Cell]) -> str:
    """Markdown: verifications a second, and how often the queue's."""
    ways = [way for way in cells[0].ms if way != "queue"]
    head = ["sessions", "rows", "context", "queue /s", *(f"{way} /s" for way in ways), *ways]
    lines = ["| " + " | ".join(head) + " |", "|" + "--:|" * len(head)]
    for cell in cells:
        rates = [f"{cell.per_second(way):.0f}" for way in ("queue", *ways)]
        ratios = [f"{cell.ms['queue'] / cell.ms[way]:.2f}x" for way in ways]
        shown = [str(cell.sessions), str(cell.rows), str(cell.context), *rates, *ratios]
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines)


def builtin(folder: Path, lowering: str, sessions: int) -> Path:
    """The built-in target, exported for a server."""
    from edgespec_export.exporter import export_bundle
    from edgespec_export.family import export_request

    out = folder / f"{lowering}.bundle"
    request = export_request("draft", out)
    export_bundle(replace(request, flavours=(Flavour(lowering),), sessions=sessions))
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--bundle", metavar="DIR", help="exported with --sessions")
    parser.add_argument("--padded", metavar="DIR", help="the same target with --lowering native")
    parser.add_argument("--family", action="store_true", help="both, of the built-in target")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu", action="store_true", help="CPU time of one thread")
    parser.add_argument("--sessions", type=int, nargs="+", default=SESSIONS)
    parser.add_argument("--json", action="store_true")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if flags.family:
            flags.bundle = builtin(Path(folder), "ort", 8)
            flags.padded = builtin(Path(folder), "native", 0)
        elif not flags.bundle:
            parser.error("give --bundle or --family")
        threads, clock = (1, thread_time) if flags.cpu else (flags.threads, perf_counter)
        load = Load(read_bundle(flags.bundle), threads, max(flags.sessions))
        padded = Padded(read_bundle(flags.padded), threads) if flags.padded else None
        cells = measure(load, padded, flags.sessions, clock)
    print(json.dumps([asdict(cell) for cell in cells], indent=1) if flags.json else table(cells))
    return 0


if __name__ == "__main__":
    sys.exit(main())
