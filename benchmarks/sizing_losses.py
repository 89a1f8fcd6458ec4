"""Where drafting cannot win: what sizing loses there against plain decoding."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from sizing_rig import rows_of, run_sides

import edgespec_runtime
from edgespec.bundle import read_bundle
from edgespec.latency import bundle_facts, load_profile
from edgespec_export.exporter import export_bundle
from edgespec_export.family import export_request
from edgespec_runtime.bench.data import Row

HOG = "while True: pass"


def losses(arguments: argparse.Namespace) -> dict[str, Any]:
    """Sizing against plain decoding where drafting cannot win; learning included, nothing is
    warmed up but the engine. Ratios of decoding speed, and of the time from call to last token."""
    load = partial(edgespec_runtime.load, profile=arguments.profile)
    rows = rows_of(arguments)
    report = {}
    print("| scenario | sized / plain, decoding | end to end |\n|---|--:|--:|")

    def scenario(name: str, model: Any, chosen: Sequence[Row], temperature: float = 0.0) -> None:
        if not chosen:
            print(f"| {name} | no such prompt | |", flush=True)
            return
        hog: list[subprocess.Popen[bytes]] = []

        def half_way(done: int, total: int) -> None:
            if name == "hog" and not hog and done >= total // 2:
                hog.append(subprocess.Popen([sys.executable, "-c", HOG]))

        sides: dict[str, dict[str, Any]] = {"plain": {"policy": "plain"}, "sized": {}}
        try:
            table = run_sides(
                model, chosen, sides, arguments.passes, temperature, half_way, warm_up=False
            )
        finally:
            for process in hog:
                process.kill()
        decode = {s: sum(sum(of[s].times) for of in table.values()) for s in sides}
        whole = {s: sum(sum(of[s].whole) for of in table.values()) for s in sides}
        ratios = (decode["plain"] / decode["sized"], whole["plain"] / whole["sized"])
        report[name] = ratios
        print(f"| {name} | {ratios[0]:.3f} | {ratios[1]:.3f} |", flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        bundle = with_random_draft(Path(scratch))
        facts = bundle_facts(read_bundle(bundle, check_hashes=False))
        profile = replace(load_profile(arguments.profile), bundle=facts)
        scenario("adversarial draft", edgespec_runtime.load(bundle, profile=profile), rows)
    scenario("T = 1.5", load(arguments.bundle), rows, 1.5)
    model = load(arguments.bundle)
    short = [r for r in rows if len(model.generate(list(r.images), r.turns[0]).token_ids) <= 4]
    scenario("one-word answers", load(arguments.bundle), short)
    scenario("hog", load(arguments.bundle), rows)
    return report


def with_random_draft(folder: Path) -> Path:
    """The built-in target with a draft whose weights are noise of the same spread."""
    request = export_request("draft", folder / "random.bundle")
    noisy = folder / "draft"
    shutil.copytree(str(request.draft), noisy)
    rng = np.random.default_rng(0)
    for file in noisy.glob("*.safetensors"):
        noise = {
            name: (rng.standard_normal(old.shape) * old.std()).astype(old.dtype)
            for name, old in load_file(file).items()
        }
        save_file(noise, file, metadata={"format": "pt"})
    export_bundle(replace(request, draft=str(noisy)))
    return folder / "random.bundle"
