"""benchmarks/big.py from end to end, on a checkpoint that is anything but big."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_a_tiny_checkpoint_goes_all_the_way(tmp_path: Path) -> None:
    words = ["--work", tmp_path, "--size", "tiny", "--tokens", "6", "--repeats", "2"]
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "big.py", *map(str, words), "--threads", "1"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["layers"] == 2 and "killed" in figures
    last = figures.get("export", figures["killed"])
    assert not last["killed"] and 0 < last["peak_anonymous_mb"] < 2000
    run = figures["run"]
    assert [run[draft]["tokens"] for draft in ("none", "ngram", "model")] == [6, 6, 6]
    assert run["model"]["draft_ms_per_round"] > 0
    assert set(run["step_ms"]) == {"1", "8", "16"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-tiny-2", "draft-tiny"]
