"""``edgespec env``: what is installed on this machine, as one block for a bug report."""

from __future__ import annotations

import argparse
from typing import Any

from edgespec.cli.common import add_command, add_config, print_json


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser = add_command(
        subparsers,
        "env",
        "Print what this machine is and has installed, for a bug report.",
        "edgespec env",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_config(parser)
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    from edgespec_runtime.environment.block import as_block
    from edgespec_runtime.environment.facts import facts_of
    from edgespec_runtime.environment.place import Place

    facts = facts_of(Place.here())
    if arguments.json:
        print_json(facts.as_json())
    else:
        print(as_block(facts))
    return 0
