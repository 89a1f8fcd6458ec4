"""The bundle on an NVIDIA GPU: one call, some minutes, one JSON file.

    python benchmarks/gpu.py                              every section, LLaVA-1.5-7B's geometry
    python benchmarks/gpu.py --sections curve,replay      some of them
    python benchmarks/gpu.py --geometry tiny --engine ort-host --device cpu   the same code, no GPU
    python benchmarks/gpu.py --show FILE                  the tables of an earlier run

Weights of the large model are random: no text of it means anything, every time does. A section's
figures are written as soon as it is over, so that a call that is cut off keeps what it has; a
section that fails leaves its error in the file, and the next one runs.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
for part in ("runtime", "export", ""):  # the helpers of the tests are not installed
    if str(ROOT / part) not in sys.path:
        sys.path.insert(0, str(ROOT / part))

from benchmarks import gpu_builtin, gpu_replay, gpu_speed, gpu_transformers, gpu_truth  # noqa: E402
from benchmarks.gpu_checkpoint import GEOMETRIES  # noqa: E402
from benchmarks.gpu_machine import bandwidth, card, environment  # noqa: E402
from benchmarks.gpu_rig import Clock, OutOfTime, Rig  # noqa: E402
from benchmarks.gpu_tables import tables  # noqa: E402
from edgespec.flavour import Flavour  # noqa: E402

FLAVOURS = "cuda:fp16,portable:fp16,native:fp16,ort:fp16"


def machine(rig: Rig, figures: dict[str, Any]) -> None:
    """What everything else is measured on."""
    figures |= environment()
    figures["bandwidth_gb_s"] = bandwidth(rig.device)


SECTIONS: Mapping[str, Callable[[Rig, dict[str, Any]], None]] = {
    "environment": machine,
    "builtin": gpu_builtin.builtin,
    "export": Rig.export,
    "plain": gpu_speed.plain,
    "oracle": gpu_truth.oracle,
    "curve": gpu_speed.curve,
    "draft": gpu_speed.draft,
    "replay": gpu_replay.replay,
    "vision": gpu_speed.vision,
    "transformers": gpu_transformers.against_transformers,
    "equality": gpu_truth.equality,
    "memory": gpu_speed.memory,
}
"""In the order they run in: what others build on comes first, then what matters most."""


def main(words: list[str] | None = None) -> int:
    arguments = parser().parse_args(words)
    if arguments.show:
        print(tables(json.loads(arguments.show.read_text(encoding="utf-8"))))
        return 0
    chosen = arguments.sections.split(",") if arguments.sections else list(SECTIONS)
    unknown = sorted(set(chosen) - set(SECTIONS))
    if unknown:
        print(f"no section '{unknown[0]}'; there are: {', '.join(SECTIONS)}", file=sys.stderr)
        return 2
    device = arguments.device or ("cuda" if card() else "cpu")
    out = arguments.out or ROOT / "benchmarks" / "results" / f"{_name()}.json"
    report = _earlier(out)
    report |= {
        "said": "Random weights of the geometry named; a section with 'error' or 'skipped' did "
        "not run to its end.",
        "geometry": arguments.geometry,
        "engine": arguments.engine,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": _command(sys.argv[1:] if words is None else words),
    }
    rig = Rig(
        geometry=GEOMETRIES[arguments.geometry],
        device=device,
        engine=arguments.engine,
        flavours=tuple(map(Flavour.parse, arguments.flavours.split(","))),
        folder=arguments.work / arguments.geometry,
        clock=Clock(arguments.time_limit),
        new_tokens=arguments.new_tokens,
        repeats=arguments.repeats,
        report=report.setdefault("sections", {}),
    )
    try:
        for name in SECTIONS:
            if name in chosen:
                rig.report[name] = _section(rig, name)
                _write(out, report)
    finally:
        rig.close(arguments.keep)
    print(tables(report))
    return 0


def _section(rig: Rig, name: str) -> dict[str, Any]:
    """Runs one; what it raises stands beside the figures it had by then."""
    print(f"{name} ({rig.clock.left_s:.0f} s left)", file=sys.stderr, flush=True)
    started = time.perf_counter()
    found: dict[str, Any] = {"figures": {}}
    try:
        rig.clock.need(3)
        SECTIONS[name](rig, found["figures"])
    except OutOfTime as error:
        found["skipped"] = str(error)
    except Exception as error:  # one section must not cost the others
        found |= {"error": str(error) or repr(error), "trace": traceback.format_exc()[-3000:]}
        print(f"  {found['error']}", file=sys.stderr, flush=True)
    if rig.refused:
        found["refused"] = dict(rig.refused)
    # A file may be completed by a later call, so every section says when it ran.
    ended = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"ended": ended, "seconds": round(time.perf_counter() - started, 2), **found}


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    found.add_argument("--sections", help=f"some of: {', '.join(SECTIONS)}")
    found.add_argument("--geometry", choices=GEOMETRIES, default="llava-1.5-7b")
    found.add_argument("--flavours", default=FLAVOURS, help="of the random model, best first")
    found.add_argument("--engine", default="ort-cuda", help="ort-cuda, ort, or ort-host")
    found.add_argument("--device", choices=("cuda", "cpu"), help="torch's; default: what is here")
    found.add_argument("--out", type=Path, help="default: benchmarks/results/CARD-DATE.json")
    found.add_argument("--work", type=Path, default=Path("/dev/shm/edgespec-gpu"))
    found.add_argument("--keep", action="store_true", help="leave the bundle for another call")
    found.add_argument("--time-limit", type=float, default=400, help="seconds, all told")
    found.add_argument("--new-tokens", type=int, default=96)
    found.add_argument("--repeats", type=int, default=12)
    found.add_argument("--show", type=Path, metavar="FILE", help="print the tables of a file")
    return found


def _command(words: Sequence[str]) -> str:
    """The call as others can repeat it: without the places of this machine."""
    places = {n + k for n, word in enumerate(words) if word in ("--out", "--work") for k in (0, 1)}
    kept = (word for n, word in enumerate(words) if n not in places)
    return " ".join(["benchmarks/gpu.py", *kept])


def _earlier(out: Path) -> dict[str, Any]:
    """What a call before this one left, so that sections can be made up for."""
    if not out.is_file():
        return {}
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def _name() -> str:
    name = (card() or {}).get("name", "cpu")
    return f"{re.sub('[^a-z0-9]+', '-', name.lower())}-{time.strftime('%Y-%m-%d')}"


def _write(out: Path, report: dict[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".partial")
    partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    partial.replace(out)


if __name__ == "__main__":
    sys.exit(main())
