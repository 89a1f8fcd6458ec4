"""``edgespec simulate``: recorded answers on a device, under policies and budgets, not at hand."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgespec.cli.common import (
    add_budget,
    add_command,
    add_config,
    budget_of,
    note,
    positive_int,
    print_json,
)
from edgespec.errors import ConfigError, EdgespecError

if TYPE_CHECKING:
    from edgespec.latency import DeviceProfile
    from edgespec.sizing import Policy
    from edgespec.sizing.budgets import Budget
    from edgespec_runtime.simulate.answers import Answer, Group, Pool
    from edgespec_runtime.simulate.cells import Cell
    from edgespec_runtime.simulate.network import Network

DEFAULT = "default"


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser = add_command(
        subparsers,
        "simulate",
        "Predict what a draft would do on another device, from recorded answers.",
        "edgespec simulate --trace answers.jsonl --profile jetson-orin-nano --bundle llava.bundle "
        "--budget-ms-per-round 40",
    )
    _add_what(parser)
    _add_where(parser)
    add_budget(parser)
    parser.add_argument(
        "--noise", action="store_true", help="scatter costs as the profile's 95th percentiles say"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of what was not recorded, and of noise (default: 0)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.add_argument("--markdown", metavar="FILE", help="write the table here as well")
    add_config(parser)
    parser.set_defaults(run=run)
    return parser


def _add_what(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trace",
        action="append",
        required=True,
        metavar="FILE.jsonl",
        help="from edgespec bench --policy survey --record FILE.jsonl; may be repeated",
    )
    parser.add_argument(
        "--policy",
        action="append",
        default=[],
        metavar="NAME[:KEY=VALUE,...]",
        help="tree policy; may be repeated (default: sized, as with a profile everywhere)",
    )
    parser.add_argument(
        "--max-new-tokens", type=positive_int, metavar="N", help="cut answers after N tokens"
    )


def _add_where(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--profile",
        required=True,
        metavar="P",
        help="the device: a profile from edgespec profile, a device file, or a device's name",
    )
    parser.add_argument(
        "--bundle",
        metavar="BUNDLE",
        help="the traces' bundle: costs on a device that was not measured are estimated for it",
    )
    parser.add_argument(
        "--target-profile", metavar="P", help="another device that runs the target, with --rtt-ms"
    )
    parser.add_argument(
        "--rtt-ms", type=float, metavar="MS", help="the target is this round trip away"
    )
    parser.add_argument(
        "--uplink-kbps",
        type=float,
        metavar="KBPS",
        help="kilobits a second towards it (default: sending a tree takes no time of its own)",
    )


def run(arguments: argparse.Namespace) -> int:
    from edgespec_runtime.simulate.answers import gather
    from edgespec_runtime.simulate.cells import summarise
    from edgespec_runtime.simulate.lines import read_lines
    from edgespec_runtime.simulate.network import across
    from edgespec_runtime.simulate.replay import Conditions
    from edgespec_runtime.simulate.simulation import check_answers, fitting, simulate, unmet

    policies, budget, network = _policies(arguments), budget_of(arguments), _network(arguments)
    lines = read_lines([Path(path).expanduser() for path in arguments.trace])
    profile = _profile(arguments.profile, arguments.bundle)
    server = None
    if arguments.target_profile:
        server = _profile(arguments.target_profile, arguments.bundle)
        _check_server(server, profile, arguments.target_profile)
    answers, pools = gather(fitting(lines, profile, arguments.profile))
    check_answers(answers)
    conditions = Conditions(
        across(profile, network, server),
        budget,
        arguments.max_new_tokens,
        arguments.seed,
        arguments.noise,
    )
    for reason in unmet(answers, conditions)[:1]:
        note(f"a device would refuse this budget: {reason}")
    cells = summarise(simulate(answers, pools, policies, conditions), budget)
    _report(arguments, cells, profile, server, network, budget)
    return 0
