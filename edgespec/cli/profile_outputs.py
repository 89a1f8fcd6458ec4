"""What ``edgespec profile`` prints and writes, and the checks that it can be written at all."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgespec.cli.common import check_writable, note, print_json
from edgespec.errors import ConfigError, InputError

if TYPE_CHECKING:
    from edgespec.latency import Card, Curve, DeviceProfile
    from edgespec_runtime.profiling.measure import Measured
    from edgespec_runtime.profiling.telemetry.reading import Reading
    from edgespec_runtime.profiling.timeline import Timeline

SHOWN = (1, 2, 4, 8, 16, 32, 64)
"""Sizes of the printed table."""
WIDTH = 31
"""Of its first column."""
NOISY = 1.4
"""p95 / median above which a profile is doubted."""


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
        raise ConfigError("nothing would keep what is measured; add --out PROFILE, or --json")
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
            f"--out '{path}' exists and is not a profile that this edgespec reads, so it is not "
            f"overwritten ({error})"
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


def write(
    profile: DeviceProfile,
    readings: Sequence[Reading],
    timeline: Timeline | None,
    outputs: Outputs,
    as_json: bool,
) -> None:
    """Writes what was asked for, and prints the profile or its summary."""
    from edgespec.latency import save_profile
    from edgespec.latency.files import rounded

    if outputs.out:
        save_profile(profile, outputs.out)
    if outputs.report:
        from edgespec_runtime.profiling.report import write_report

        write_report(profile, outputs.report, readings=readings)
    if outputs.trace and timeline:
        timeline.write(outputs.trace)
    if as_json:
        print_json(rounded(profile.as_json()))
    else:
        print("\n".join(_summary(profile)))
    for name, path in vars(outputs).items():
        if path:
            note(f"{name}: {path}")


def warnings(measured: Measured) -> Iterator[str]:
    """Whether what was measured can be relied on."""
    yield (
        f"rounds of whole requests took {1 / measured.agreement:.2f} times what these costs add up "
        f"to (median); every point was clocked {measured.repeats} times or more"
    )
    if measured.noise > NOISY:
        yield (
            f"this machine was busy: p95 was {measured.noise:.2f} times the median; measure again "
            "when nothing else runs, or give --threads fewer than there are cores"
        )


def _summary(profile: DeviceProfile) -> Iterator[str]:
    """Costs, and how near they come to the ceiling, for the human."""
    costs, card = profile.costs, profile.card
    yield f"{'ms by rows':<{WIDTH}}" + "".join(f"{size:>9}" for size in SHOWN)
    for context in dict.fromkeys((costs.verify.contexts[0], costs.verify.contexts[-1])):
        yield _row(f"verify, {context} cached", costs.verify, context)
    calls = (("first draft call", costs.draft_first), ("further draft call", costs.draft_step))
    for name, curve in (*calls, ("first chain call", costs.chain_first)):
        if curve:
            yield _row(f"{name}, {curve.contexts[0]} cached", curve, curve.contexts[0])
    if costs.chain_next:
        yield _row("further chain call", costs.chain_next, costs.chain_next.contexts[0])
    yield ""
    if (remote := profile.remote) is not None:
        trip, tail = remote.round_trip_ms, remote.round_trip_p95_ms
        yield f"{remote.url}: round trip {trip:.2f} ms, {tail:.2f} ms at the 95th percentile"
        yield _row("verify there", remote.verify, 0)
        yield ""
    for name, role, size, context, ms in _ceilings(profile):
        if card.graph(role) is None:
            continue  # it is a server's
        share = card.floor_ms(role, size, context, 1 if name == "prefill" else None) / ms
        yield f"{name:<12}{size:>6} rows{context:>7} cached{ms:>10.2f} ms, {share:>4.0%} of ceiling"
    yield (
        f"host {costs.host_round_ms:.2f} ms a round and {1e3 * costs.host_token_ms:.0f} us a token;"
        f" drafted rounds {costs.commit_ms:.2f} ms more; a drawn token {costs.pick_ms:.2f} ms"
    )
    memory = profile.memory
    yield (
        f"memory {memory.base_mb:.0f} MB, with the target {memory.target_mb:.0f} MB more, with the "
        f"draft {memory.draft_mb:.0f} MB more; noise {profile.noise:.2f} (1 is a quiet machine); "
        f"{profile.seconds:.0f} s"
    )


def _row(name: str, curve: Curve, context: int) -> str:
    sizes = [size for size in SHOWN if size <= curve.sizes[-1]]
    return f"{name:<{WIDTH}}" + "".join(f"{curve.at(size, context):>9.2f}" for size in sizes)


def _ceilings(profile: DeviceProfile) -> Iterator[tuple[str, str, int, int, float]]:
    """(name, role, rows, cached rows, measured ms) of the operations that are set against what the
    machine could do at best."""
    costs = profile.costs
    verify, context = costs.verify, costs.verify.contexts[0]
    yield "verify", "target", 1, context, verify.at(1, context)
    yield "verify", "target", verify.sizes[-1], context, verify.at(verify.sizes[-1], context)
    yield "prefill", "target", costs.prefill.sizes[0], 0, costs.prefill.median_ms[0][0]
    for name, role, curve in (
        ("draft step", "draft", costs.draft_step),
        ("chain call", "draft_chain", costs.chain_next),
    ):
        if curve:
            yield name, role, 1, curve.contexts[0], curve.at(1, curve.contexts[0])
