"""What a newcomer downloads and waits for: environment sizes and import time.

    python benchmarks/footprint.py            # makes throw-away environments with plain pip

Sizes are of the whole environment and of its parts: packages, pip and setuptools themselves, and
the bytecode that pip writes. Import time is the median of fresh processes.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INSTALLER = ("pip", "setuptools", "pkg_resources", "_distutils_hack")


def main() -> int:
    result = {extras: measure(extras) for extras in ("ort", "ort,export")}
    print(json.dumps(result, indent=1))
    return 0


def measure(extras: str) -> dict[str, float]:
    """One environment: megabytes (10^6 bytes) and milliseconds."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = Path(folder, "bin", "python")
        pip = [str(python), "-m", "pip", "install", "--quiet", f"{ROOT}[{extras}]"]
        subprocess.run(pip, check=True, stderr=subprocess.DEVNULL)
        (packages,) = Path(folder, "lib").glob("python3*/site-packages")
        bytecode = sum(p.stat().st_size for p in packages.rglob("*.pyc"))
        own = sum(size(packages / name) for name in INSTALLER)
        code = "import edgespec_runtime; edgespec_runtime.load"
        return {
            "total_mb": size(Path(folder)) / 1e6,
            "installer_mb": own / 1e6,
            "bytecode_mb": bytecode / 1e6,
            "torch": float(any(packages.glob("torch*"))),
            "python_ms": run_ms(python, "pass"),
            "import_ms": run_ms(python, "import edgespec_runtime"),
            "import_and_first_use_ms": run_ms(python, code),
        }


def size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else ()
    return sum(p.stat().st_size for p in files if p.is_file() and not p.is_symlink())


def run_ms(python: Path, code: str) -> float:
    """Median wall time of a fresh interpreter, start-up included."""
    times = []
    for _ in range(11):
        started = time.perf_counter()
        subprocess.run([python, "-c", code], check=True)
        times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times)


if __name__ == "__main__":
    sys.exit(main())
