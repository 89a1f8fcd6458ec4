"""A 7B checkpoint on a small host: exported, killed and resumed on the way, loaded, run.

    python benchmarks/big.py --work big                    # LLaVA-1.5-7B's geometry, 14 GB written
    python benchmarks/big.py --work big --layers 2         # the same with fewer layers, to try it

Writes a random checkpoint (kept in ``--work``), exports it to ``ort:int4`` with `edgespec export`,
kills that with SIGKILL when the given part of the layers is finished, resumes it, and runs the
bundle in a process of its own. Memory is that of the exporting process, asked of the kernel every
20 ms: VmHWM counts the pages of mapped files, anonymous memory does not. JSON on stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.gpu_checkpoint import GEOMETRIES, TILED, write_checkpoint  # noqa: E402

GEOMETRY = GEOMETRIES["llava-1.5-7b"]
ROWS = (1, 8, 16)
CONTEXT = 64
PROMPT = "w17 w23 w99 w4 w1234 w17 w23 w99 w8 w77"
TICK_S = 0.02
STATUS = ("VmHWM", "RssAnon", "VmRSS")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, help="directory of the checkpoint and the bundle")
    parser.add_argument("--layers", type=int, default=GEOMETRY.text["num_hidden_layers"])
    parser.add_argument("--precision", default="int4")
    parser.add_argument("--kill-at", type=float, default=0.5, help="part of the layers; 0: never")
    parser.add_argument("--tokens", type=int, default=24, help="of every text")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="the bundle, for another look")
    parser.add_argument("--run", type=Path, metavar="BUNDLE", help="only run a bundle")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    if arguments.run:
        figures = run(arguments.run, arguments)
    elif arguments.work:
        figures = whole(arguments)
    else:
        parser.error("give --work or --run")
    text = json.dumps(figures, indent=1)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n", encoding="utf-8")
    return 0


def whole(arguments: argparse.Namespace) -> dict[str, Any]:
    """Checkpoint, export, run."""
    target, out = arguments.work / f"checkpoint-{arguments.layers}", arguments.work / "bundle"
    if not target.exists():
        note(f"writing {target}")
        text = {**GEOMETRY.text, "num_hidden_layers": arguments.layers}
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        write_checkpoint(partial, GEOMETRY, text, 0, TILED)
        partial.rename(target)
    shutil.rmtree(out, ignore_errors=True)
    figures: dict[str, Any] = {
        "layers": arguments.layers,
        "precision": arguments.precision,
        "checkpoint_gb": size_gb(target),
        "load_average": os.getloadavg(),
    }
    if arguments.kill_at:
        layer = int(arguments.layers * arguments.kill_at)
        figures["killed"] = export(arguments, target, out, lambda: finished(out, layer))
    figures["export"] = export(arguments, target, out)
    figures["bundle_gb"] = size_gb(out)
    words = ["--run", out, "--threads", arguments.threads, "--tokens", arguments.tokens]
    words += ["--repeats", arguments.repeats]
    command = [sys.executable, __file__, *map(str, words)]
    figures["run"] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    if not arguments.keep:
        shutil.rmtree(out)
    return figures


def export(
    arguments: argparse.Namespace,
    target: Path,
    out: Path,
    until: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """`edgespec export --resume`, killed as soon as ``until`` says so; seconds and megabytes."""
    words = ["export", "--target", target, "--out", out, "--resume"]
    words += ["--precision", arguments.precision]
    started = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-m", "edgespec", *map(str, words)], stdout=2)
    most = dict.fromkeys(STATUS, 0.0)
    while not (ended := os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)):
        found = status(child.pid)
        most = {key: max(most[key], found.get(key, 0.0)) for key in STATUS}
        if until():
            child.send_signal(signal.SIGKILL)
        time.sleep(TICK_S)
    _, code, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(code)
    if child.returncode not in (0, -signal.SIGKILL) or ended is None:
        raise SystemExit(f"the export failed with exit code {child.returncode}")
    return {
        "killed": child.returncode != 0,
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_anonymous_mb": most["RssAnon"],
        "peak_rss_mb": most["VmHWM"],
    }


def finished(out: Path, layer: int) -> bool:
    """Whether a layer's weights are in the journal of the export to ``out``."""
    for journal in out.parent.glob(f".{out.name}.partial-*/export.journal"):
        return f'"text.layers.{layer}.' in journal.read_text(encoding="utf-8")
    return False


def run(bundle: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Loads a bundle and decodes with it, plainly and with look-up in the text so far."""
    from edgespec_runtime import load

    before = status(os.getpid())
    started = time.perf_counter()
    model = load(bundle, threads=arguments.threads)
    figures: dict[str, Any] = {"load_s": round(time.perf_counter() - started, 2)}
    given = {"max_new_tokens": arguments.tokens, "temperature": 0.0}
    said = {
        draft: model.generate(None, PROMPT, draft=draft, **given) for draft in ("none", "ngram")
    }
    for draft, answer in said.items():
        stats = answer.stats
        figures[draft] = {
            "prompt_tokens": answer.prompt_tokens,
            "tokens": len(answer.token_ids),
            "first_token_ms": round(stats.ttft_ms, 1),
            "ms_per_token": round(1e3 / stats.tokens_per_s, 1),
            "rounds": stats.rounds,
            "accepted_length": round(stats.accepted_length, 2),
        }
    figures["same_text"] = said["none"].token_ids == said["ngram"].token_ids
    figures["step_ms"] = steps(model, arguments.repeats)
    after = status(os.getpid())
    figures["before_mb"], figures["after_mb"] = before, after
    return figures


def steps(model: Any, repeats: int) -> dict[int, dict[str, float]]:
    """Milliseconds of one call over so many rows, behind CONTEXT: least and median."""
    from edgespec_runtime.prefill import causal_mask, prefill

    rng = np.random.default_rng(0)
    table = model.tables["target"]
    session = model.steps["target"].open(CONTEXT + max(ROWS))
    prefill(session, table[rng.integers(4, len(table), CONTEXT).tolist()])
    times: dict[int, list[float]] = {rows: [] for rows in ROWS}
    for _ in range(repeats + 1):  # the first one warms up
        for rows in ROWS:
            embeds = table[rng.integers(4, len(table), rows).tolist()]
            mask, positions = causal_mask(CONTEXT, rows), np.arange(CONTEXT, CONTEXT + rows)
            started = time.perf_counter()
            session.step(embeds, positions, mask)
            times[rows].append((time.perf_counter() - started) * 1e3)
            session.cache.commit(())
    return {
        rows: {"least": round(min(own[1:]), 1), "median": round(statistics.median(own[1:]), 1)}
        for rows, own in times.items()
    }


def status(process: int) -> dict[str, float]:
    """Memory of a process, in MB of 10^6 bytes; nothing where it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines)
    return {key: int(value.split()[0]) * 1024 / 1e6 for key, value in pairs if key in STATUS}


def size_gb(folder: Path) -> float:
    return round(sum(p.stat().st_size for p in folder.iterdir()) / 1e9, 2)


def note(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
