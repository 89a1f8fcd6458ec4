"""``edgespec simulate``: recorded answers on a device, under policies and budgets, not at hand."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgespec.cli.common import budget_of, check_writable, note, print_json
from edgespec.cli.simulate_flags import build_parser
from edgespec.errors import ConfigError, EdgespecError

if TYPE_CHECKING:
    from edgespec.bundle import Bundle
    from edgespec.latency import DeviceProfile
    from edgespec.latency.geometry import Geometry
    from edgespec.sizing import Policy
    from edgespec_runtime.simulate.cells import Cell
    from edgespec_runtime.simulate.network import Network

DEFAULT = "default"


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser = build_parser(subparsers)
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    from edgespec.latency.geometry import load_geometry
    from edgespec_runtime.simulate.answers import gather
    from edgespec_runtime.simulate.cells import summarise
    from edgespec_runtime.simulate.lines import read_lines
    from edgespec_runtime.simulate.network import moved
    from edgespec_runtime.simulate.replay import Conditions
    from edgespec_runtime.simulate.report import markdown
    from edgespec_runtime.simulate.simulation import as_if, check_answers, fitting, simulate, unmet

    policies, budget, network = _policies(arguments), budget_of(arguments), _network(arguments)
    if arguments.markdown:
        check_writable(Path(arguments.markdown).expanduser(), "--markdown")
    lines = read_lines([Path(path).expanduser() for path in arguments.trace])
    geometry = load_geometry(arguments.model) if arguments.model else None
    bundle = _bundle(arguments, geometry)
    profile = _profile(arguments.profile, bundle, target_here=not arguments.target_profile)
    server = local = None
    if arguments.target_profile:
        server = _profile(arguments.target_profile, bundle)
        _check_server(server, profile, arguments.target_profile)
        local = _local(arguments.profile, bundle)
    lines = as_if(lines, geometry) if geometry else fitting(lines, profile, arguments.profile)
    answers, pools = gather(lines)
    check_answers(answers)
    conditions = Conditions(
        moved(profile, network, server),
        budget,
        arguments.max_new_tokens,
        arguments.seed,
        arguments.noise,
        network,
        local,
        arguments.ahead != "off",
    )
    refused = unmet(answers, conditions)
    if refused:
        note(f"{len(refused)} of {len(answers)} requests would be refused there: {refused[0]}")
    cells = summarise(simulate(answers, pools, policies, conditions), budget)
    table = markdown(
        cells,
        profile,
        budget,
        server=server,
        network=network,
        ahead=conditions.ahead,
        noise=arguments.noise,
    )
    if arguments.json:
        print_json(_as_json(arguments, cells, profile, server))
    else:
        print(table)
    if arguments.markdown:
        _write(Path(arguments.markdown).expanduser(), table)
    return 0


def _policies(arguments: argparse.Namespace) -> dict[str, Policy]:
    """By name as it was given."""
    from edgespec.sizing import Sized, parse_policy

    names = dict.fromkeys(arguments.policy) or {"sized": None}
    return {name: Sized() if name == DEFAULT else parse_policy(name) for name in names}


def _network(arguments: argparse.Namespace) -> Network | None:
    from edgespec_runtime.simulate.network import Network

    if arguments.rtt_ms is not None:
        return Network(arguments.rtt_ms, arguments.uplink_kbps or 0.0)
    for flag in ("target_profile", "uplink_kbps", "ahead"):
        if getattr(arguments, flag) is not None:
            name = flag.replace("_", "-")
            raise ConfigError(
                f"--{name} is of a target elsewhere; say with --rtt-ms how far away it is"
            )
    return None


def _bundle(arguments: argparse.Namespace, geometry: Geometry | None) -> Bundle | None:
    """What costs are estimated of."""
    from edgespec.bundle import read_bundle

    if geometry is None:
        from edgespec_runtime.engines.choice import chosen

        if not arguments.bundle:
            return None
        return chosen(read_bundle(arguments.bundle, check_hashes=False))
    if arguments.bundle:
        raise ConfigError("--bundle and --model both say what is to be estimated; give one")
    note(
        f"{geometry.title} is not at hand: costs are estimated from its sizes, and how often its "
        "draft is followed is taken from the traces, which are of other models"
    )
    return geometry.as_bundle()


def _profile(given: str, bundle: Bundle | None, *, target_here: bool = True) -> DeviceProfile:
    from edgespec.latency import estimate_note, profile_for

    profile = profile_for(given, bundle, target_here=target_here)
    if said := estimate_note(profile):
        note(said)
    return profile


def _local(given: str, bundle: Bundle | None) -> DeviceProfile | None:
    """The device with a target of its own, None where it has no room for that."""
    from edgespec.latency import profile_for

    try:
        return profile_for(given, bundle)
    except ConfigError as error:
        note(f"no decoding on the device alone: {error}")
        return None


def _check_server(server: DeviceProfile, profile: DeviceProfile, path: str) -> None:
    if server.bundle.target != profile.bundle.target:
        raise ConfigError(
            f"--target-profile '{path}' is of another target ({server.bundle.name}, "
            f"{server.bundle.target[:12]}) than --profile ({profile.bundle.name}, "
            f"{profile.bundle.target[:12]}); profile the same target there"
        )


def _as_json(
    arguments: argparse.Namespace,
    cells: Sequence[Cell],
    profile: DeviceProfile,
    server: DeviceProfile | None,
) -> dict[str, Any]:
    """Stable keys; limits and devices that were not given are null."""
    limits = ("budget_ms_per_round", "budget_ttft_ms", "budget_p95_itl_ms", "budget_memory_mb")
    given = {name: getattr(arguments, name) for name in limits}
    return {
        "device": profile.device.name,
        "power_mode": profile.device.power_mode,
        "kind": profile.kind,
        "bundle": profile.bundle.name,
        "target_device": server.device.name if server else None,
        "rtt_ms": arguments.rtt_ms,
        "uplink_kbps": arguments.uplink_kbps,
        "ahead": arguments.ahead != "off" if arguments.rtt_ms is not None else None,
        **{name: value if math.isfinite(value) else None for name, value in given.items()},
        "seed": arguments.seed,
        "noise": arguments.noise,
        "cells": [cell.as_json() for cell in cells],
    }


def _write(path: Path, table: str) -> None:
    try:
        path.write_text(table + "\n", encoding="utf-8")
    except OSError as error:
        raise EdgespecError(f"writing '{path}' failed: {error.strerror}") from None
