"""A 7B checkpoint on a small host: exported, killed and resumed on the way, loaded, run.

    python benchmarks/big.py --work big                    # LLaVA-1.5-7B's geometry, 14 GB written
    python benchmarks/big.py --work big --size 13b         # 13B's, 27 GB
    python benchmarks/big.py --work big --layers 2         # the same with fewer layers, to try it
    python benchmarks/big.py --run big/bundle --exact      # only runs what --keep has left

Writes a random checkpoint and a draft (kept in ``--work``), exports both to ``ort:int4`` with
`edgespec export`, kills that with SIGKILL when the given part of the layers is finished, resumes
it, and runs the bundle in a process of its own. No text means anything: a draft's guesses are
rejected, and what a round with them takes is what is measured. Memory is that of the process, asked
of the kernel: VmHWM counts the pages of mapped files, anonymous memory does not. JSON on stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.big_run import STATUS, run, status  # noqa: E402
from benchmarks.gpu_checkpoint import GEOMETRIES, TILED, write_checkpoint  # noqa: E402
from edgespec.bundle import JOURNAL  # noqa: E402

_7B = GEOMETRIES["llava-1.5-7b"]
_13B = {  # llava-hf/llava-1.5-13b-hf, by its config.json
    "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40,
    "num_attention_heads": 40, "num_key_value_heads": 40,
}  # fmt: skip
SIZES = {
    "7b": _7B,
    "13b": replace(_7B, name="llava-1.5-13b", text={**_7B.text, **_13B}),
    "tiny": GEOMETRIES["tiny"],
}
TICK_S = 0.02


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, help="directory of the checkpoint and the bundle")
    parser.add_argument("--size", choices=SIZES, default="7b")
    parser.add_argument("--layers", type=int, help="of the text model; default: the size's own")
    parser.add_argument("--precision", default="int4")
    parser.add_argument("--kill-at", type=float, default=0.5, help="part of the layers; 0: never")
    parser.add_argument("--tokens", type=int, default=24, help="of every text")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--exact", action="store_true", help="load the bundle so")
    parser.add_argument("--keep", action="store_true", help="the bundle, for another look")
    parser.add_argument("--export-only", action="store_true", help="do not run it")
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
    layers = arguments.layers or int(SIZES[arguments.size].text["num_hidden_layers"])
    out = arguments.work / "bundle"
    target, draft = checkpoints(arguments.work, arguments.size, layers)
    shutil.rmtree(out, ignore_errors=True)
    words = ["--target", target, "--draft", draft, "--compressor", SIZES[arguments.size].compressor]
    figures: dict[str, Any] = {
        "size": arguments.size,
        "layers": layers,
        "precision": arguments.precision,
        "checkpoint_gb": size_gb(target),
        "load_average": os.getloadavg(),
    }
    if arguments.kill_at:
        layer = int(layers * arguments.kill_at)
        figures["killed"] = export(arguments, words, out, lambda: finished(out, layer))
    if not out.exists():  # a small export may be done before it is killed
        figures["export"] = export(arguments, words, out)
    figures["bundle_gb"] = size_gb(out)
    if not arguments.export_only:
        figures["run"] = run_alone(out, arguments)
    if not arguments.keep:
        shutil.rmtree(out)
    return figures


def checkpoints(work: Path, size: str, layers: int) -> tuple[Path, Path]:
    """A random target and a draft of 160M on the same tower, written where they are not there."""
    geometry = SIZES[size]
    texts = {
        f"checkpoint-{size}-{layers}": {**geometry.text, "num_hidden_layers": layers},
        f"draft-{size}": {**geometry.text, **geometry.draft},
    }
    for seed, (name, text) in enumerate(texts.items()):
        if not (work / name).exists():
            note(f"writing {work / name}")
            partial = work / f"{name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            write_checkpoint(partial, geometry, text, seed, TILED)
            partial.rename(work / name)
    target, draft = (work / name for name in texts)
    return target, draft


def export(
    arguments: argparse.Namespace,
    models: Sequence[str | Path],
    out: Path,
    until: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """`edgespec export --resume`, killed as soon as ``until`` says so; seconds and megabytes."""
    words = ["export", *models, "--out", out, "--resume", "--precision", arguments.precision]
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
    journals = out.parent.glob(f".{out.name}.partial-*/{JOURNAL}")
    try:
        return any(
            f'"text.layers.{layer}.' in file.read_text(encoding="utf-8") for file in journals
        )
    except OSError:  # it was finished meanwhile
        return False


def run_alone(bundle: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """``run`` in a process of its own."""
    given = {key: getattr(arguments, key) for key in ("threads", "tokens", "repeats")}
    words = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    words += ["--exact"] * arguments.exact
    command = [sys.executable, __file__, "--run", str(bundle), *words]
    found: dict[str, Any] = json.loads(
        subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    )
    return found


def size_gb(folder: Path) -> float:
    return round(sum(p.stat().st_size for p in folder.iterdir()) / 1e9, 2)


def note(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
