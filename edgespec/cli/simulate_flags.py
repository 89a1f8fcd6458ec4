"""Flags of ``edgespec simulate``."""

from __future__ import annotations

import argparse
from typing import Any

from edgespec.cli.common import add_budget, add_command, add_config, positive_int


def build_parser(subparsers: Any) -> argparse.ArgumentParser:
    """The command's parser, which does not know yet what to run."""
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
        "--model",
        metavar="M",
        help="in place of --bundle: models that are not at hand, by their sizes (a file, or a "
        "name as in configs/models); the traces then only say how a draft is followed",
    )
    parser.add_argument(
        "--target-profile",
        metavar="P",
        help="another device that runs the target, with --rtt-ms: a profile, a device file, or a "
        "device's name",
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
    parser.add_argument(
        "--ahead",
        choices=("on", "off"),
        help="whether a draft that is a model of its own drafts on while it waits for a target "
        "elsewhere (default: on)",
    )
