"""What ``edgespec profile`` prints and writes, and the checks that it can be written at all."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgespec.cli.common import check_writable, print_json
from edgespec.errors import ConfigError, InputError

if TYPE_CHECKING:
    from edgespec.latency import Card, DeviceProfile
    from edgespec_runtime import Model


@dataclass(frozen=True)
class Outputs:
    """The files to write."""

    out: Path | None
    report: Path | None
    trace: Path | None


def check_outputs(arguments: argparse.Namespace) -> Outputs:
    """The files to write, each proven to be writable. Raises InputError."""
    given = {name: getattr(arguments, name) for name in ("out", "report", "trace")}
    paths = {name: Path(value).expanduser() if value else None for name, value in given.items()}
    if paths["out"] is None and not arguments.json:
        raise ConfigError("what is measured goes nowhere; add --out PROFILE, or --json")
    taken: dict[Path, str] = {}
    for name, path in paths.items():
        if path is None:
            continue
        other = taken.setdefault(path.resolve(), name)
        if other != name:
            raise InputError(f"--{name} would overwrite '{path}', which is also --{other}")
        if name == "out" and path.exists():
            _check_profile(path)
        check_writable(path, f"--{name}")
    return Outputs(**paths)


def _check_profile(path: Path) -> None:
    """Raises InputError for a file that something else than this command wrote."""
    from edgespec.latency import load_profile

    try:
        load_profile(path)
    except ConfigError as error:
        raise InputError(
            f"--out '{path}' exists and is not a profile of this edgespec, so it is not "
            f"overwritten: {error}"
        ) from None


def card_table(card: Card) -> str:
    """The static card for the human."""
    lines = [f"{'graph':<18}{'weights':>12}{'cache/token':>14}{'MFLOP/row':>12}"]
    for graph in card.graphs:
        cache = f"{graph.kv_bytes_per_token / 1024:.1f} kB" if graph.kv_bytes_per_token else "-"
        weights, flops = graph.weight_bytes / 2**20, graph.flops_per_row / 1e6
        lines.append(f"{graph.role:<18}{weights:>9.1f} MB{cache:>14}{flops:>12.1f}")
    lines.append(f"ceiling: {card.bandwidth_gb_s:.1f} GB/s, {card.gflops:.0f} GFLOP/s")
    return "\n".join(lines)


def report(model: Model, profile: DeviceProfile, outputs: Outputs, as_json: bool) -> int:
    """Writes what was asked for and prints the profile or its summary."""
    from edgespec.latency import save_profile
    from edgespec.latency.files import rounded

    if outputs.out:
        save_profile(profile, outputs.out)
    if as_json:
        print_json(rounded(profile.as_json()))
    return 0
