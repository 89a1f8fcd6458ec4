"""``edgespec plan``: what fits on a device, before anything is copied there."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from edgespec.cli.common import add_command, add_config, positive_int, print_json
from edgespec.errors import ConfigError

if TYPE_CHECKING:
    from edgespec.planning.inventory import Inventory


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser = add_command(
        subparsers,
        "plan",
        "Say what memory a bundle, or a model that is not at hand, takes on a device.",
        "edgespec plan --model llava-1.5-7b --device jetson-agx-orin --context 2048",
    )
    parser.add_argument("--bundle", metavar="BUNDLE", help="from edgespec export")
    parser.add_argument(
        "--model",
        metavar="M",
        help="in place of --bundle, before exporting: models by their sizes (a file, or a name as "
        "in configs/models)",
    )
    parser.add_argument(
        "--device",
        required=True,
        metavar="D",
        help="a device's name as in configs/devices, or a file like those",
    )
    parser.add_argument(
        "--context",
        type=positive_int,
        metavar="N",
        help="tokens of prompt, picture and answer (default: 2048, or the most there is)",
    )
    parser.add_argument(
        "--precision",
        action="append",
        default=[],
        metavar="P",
        help="fp32, fp16, bf16, int8 or int4; may be repeated (default: what the device's engines "
        "take)",
    )
    parser.add_argument(
        "--nodes", type=positive_int, default=64, metavar="N", help="largest tree (default: 64)"
    )
    parser.add_argument(
        "--sessions",
        type=positive_int,
        default=1,
        metavar="N",
        help="answers at the same time (default: 1)",
    )
    parser.add_argument(
        "--usable-mb",
        type=positive_int,
        metavar="MB",
        help="memory that is free there (default: as the device's file assumes)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    add_config(parser)
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    from edgespec.latency.lookup import sheet_for
    from edgespec.planning.plan import plan
    from edgespec.planning.report import plain_of, text_of
    from edgespec.planning.room import device_of

    device = device_of(sheet_for(arguments.device), arguments.usable_mb)
    answer = plan(
        _inventory(arguments),
        device,
        context=arguments.context,
        precisions=arguments.precision,
        nodes=arguments.nodes,
        sessions=arguments.sessions,
    )
    if arguments.json:
        print_json(plain_of(answer))
    else:
        print(text_of(answer))
    return 0


def _inventory(arguments: argparse.Namespace) -> Inventory:
    from edgespec.bundle import read_bundle
    from edgespec.latency.geometry import load_geometry
    from edgespec.planning.by_sizes import of_geometry
    from edgespec.planning.exported import of_bundle

    if bool(arguments.bundle) == bool(arguments.model):
        raise ConfigError(
            "what is to be planned for? Give --bundle, or --model for one that is not exported yet"
            + (", not both" if arguments.bundle else "")
        )
    if arguments.model:
        return of_geometry(load_geometry(arguments.model))
    return of_bundle(read_bundle(arguments.bundle, check_hashes=False))
