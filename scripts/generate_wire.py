"""Builds the messages of the wire contract from its .proto file.

python scripts/generate_wire.py            write them
python scripts/generate_wire.py --check    exit with 1 where what lies there is not current
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "runtime"
PROTO = "edgespec_runtime/wire/verifier.proto"
BUILT = ("verifier_pb2.py", "verifier_pb2.pyi")


def generate(out: Path) -> list[Path]:
    """Writes the modules below ``out``; returns where they are."""
    from grpc_tools import protoc

    arguments = ["protoc", f"-I{ROOT}", f"--python_out={out}", f"--pyi_out={out}", PROTO]
    if protoc.main(arguments):
        raise SystemExit(f"protoc failed on {PROTO}")
    return [out / Path(PROTO).parent / name for name in BUILT]


def stale() -> list[str]:
    """Names of built modules that are not what the .proto file gives."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = generate(Path(folder))
        there = [ROOT / Path(PROTO).parent / file.name for file in fresh]
        return [
            new.name
            for new, old in zip(fresh, there, strict=True)
            if not old.is_file() or old.read_bytes() != new.read_bytes()
        ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    if not parser.parse_args().check:
        generate(ROOT)
        return 0
    old = stale()
    if old:
        print(f"not current: {', '.join(old)}; run python {sys.argv[0]}", file=sys.stderr)
    return int(bool(old))


if __name__ == "__main__":
    raise SystemExit(main())
