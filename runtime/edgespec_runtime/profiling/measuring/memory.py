"""Resident memory of a bundle, read in fresh processes: what an importing test suite or a warm
runtime holds would be counted otherwise.

Run as a module it prints one JSON object: megabytes before and after loading.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edgespec.bundle import Bundle, Manifest, read_bundle
from edgespec.errors import EngineError
from edgespec.flavour import Flavour
from edgespec.latency import Card, Memory
from edgespec_runtime.engines.choice import Choice

MB = 2**20
PROMPT = 64
"""Tokens of the prompt that is run before reading: its cache and buffers are counted."""
ALL, TARGET, NOTHING = "all", "target", "nothing"
DRAFTING = ("draft", "compressor")
"""How the roles of the draft's graphs begin."""


def measure_memory(bundle: Bundle, card: Card, choice: Choice, threads: int) -> Memory:
    """Loads ``bundle`` twice in processes of its own, without and with the draft's graphs, runs
    every graph once over a prompt of ``PROMPT`` tokens and a picture, and reads VmRSS: pages of
    mapped files (the token tables) count as far as they were touched. What an engine holds in an
    accelerator's memory is added.

    Raises EngineError where such a process fails.
    """
    target, draft = card.graph("target"), card.graph("draft")
    words = (str(bundle.path), choice.engine, str(choice.flavour), str(threads))
    base, without = _resident(words, TARGET if target else NOTHING)
    draft_mb = 0.0
    if draft is not None:
        draft_mb = max(_resident(words, ALL)[1] - without, 0.0)
    return Memory(
        base_mb=base,
        target_mb=max(without - base, 0.0),
        draft_mb=draft_mb,
        target_kv_bytes=target.kv_bytes_per_token if target else 0,
        draft_kv_bytes=draft.kv_bytes_per_token if draft else 0,
    )


def _resident(words: Sequence[str], part: str) -> tuple[float, float]:
    """Megabytes (before loading, after running ``part``) of a process of its own."""
    # The module may come from a path that only this process knows of.
    known = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    result = subprocess.run(
        [sys.executable, "-m", __name__, *words, part], capture_output=True, text=True, env=known
    )
    if result.returncode != 0:
        killed = result.returncode < 0
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise EngineError(
            f"loading '{words[0]}' in a process of its own, to read its memory, "
            f"{'was killed: is there enough memory?' if killed else f'failed: {reason}'}"
        )
    figures = json.loads(result.stdout)
    return float(figures["base_mb"]), float(figures["loaded_mb"])


def without_draft(manifest: Manifest) -> Manifest:
    """The target's side of a bundle."""
    kept = tuple(graph for graph in manifest.graphs if not graph.role.startswith(DRAFTING))
    return replace(manifest, graphs=kept, compressor=None)


def resident_mb() -> float:
    """VmRSS of this process."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    if found is None:
        raise EngineError("/proc/self/status tells no VmRSS; memory cannot be read here")
    return int(found.group(1)) * 1024 / MB


def main(path: str, name: str, flavour: str, threads: str, part: str) -> None:
    """Reads, loads, runs and reads again."""
    import numpy as np

    from edgespec_runtime.engines import open_engine
    from edgespec_runtime.profiling.measuring.hollow import model_to_measure
    from edgespec_runtime.profiling.measuring.prompts import PromptBench
    from edgespec_runtime.profiling.measuring.rigs import Source
    from edgespec_runtime.profiling.measuring.rounds import RoundBench
    from edgespec_runtime.profiling.measuring.samples import Samples
    from edgespec_runtime.profiling.measuring.sizes import smallest

    bundle = read_bundle(path, check_hashes=False).only(Flavour.parse(flavour))
    engine = open_engine(name, threads=int(threads), bundle=bundle, huge_pages=True)
    base = resident_mb() + engine.held_mb
    if part == NOTHING:
        print(json.dumps({"base_mb": base, "loaded_mb": base}))
        return
    if part == TARGET:
        bundle = Bundle(bundle.path, without_draft(bundle.manifest))
    model = model_to_measure(bundle, engine)
    sizes, source, samples = smallest(model.manifest, PROMPT), Source(model), Samples()
    for job in PromptBench(model, sizes, source).jobs():
        job(samples)
    rounds = RoundBench(model, sizes, source)
    for hand in rounds.deal(np.random.default_rng(0)):
        for planned in hand:
            rounds.run(planned, samples)
    print(json.dumps({"base_mb": base, "loaded_mb": resident_mb() + engine.held_mb}))


if __name__ == "__main__":
    main(*sys.argv[1:])
