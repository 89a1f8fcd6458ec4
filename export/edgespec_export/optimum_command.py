"""``edgespec export`` under optimum's option names: -m/--model, --task, --dtype, output.

All other flags are those of ``edgespec export``, taken from its parser. Imports neither optimum nor
anything heavy: optimum-cli reads the flags at every start.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

from edgespec.errors import ConfigError, EdgespecError

TASKS = ("auto", "image-text-to-text")
RENAMED = ("help", "target", "out", "precision", "config")
"""Flags of ``edgespec export`` that are called otherwise here, or are not needed."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The command's flags, added to the parser that optimum made for it."""
    from edgespec.cli import build_parser

    parser.add_argument(
        "-m", "--model", required=True, metavar="MODEL", help="target: a directory or a hub id"
    )
    parser.add_argument("output", metavar="OUTPUT", help="directory to write: the bundle")
    parser.add_argument(
        "--task", default="auto", help=f"{' or '.join(TASKS)} (default: auto, which is the same)"
    )
    own = build_parser()[1]["export"]
    precision = next(action for action in own._actions if action.dest == "precision")
    parser.add_argument("--dtype", dest="precision", default=precision.default, metavar="P",
                        help=precision.help)  # fmt: skip
    for action in own._actions:
        if action.dest not in RENAMED:
            parser._add_action(action)  # as argparse's own ``parents`` do


def run(arguments: argparse.Namespace) -> int:
    """Exports; returns the exit code. The bundle also gets the target's configuration files, as
    they lie beside the graphs of optimum's other exports."""
    from edgespec.cli.export import export_with_progress, report, request_of

    try:
        if arguments.task not in TASKS:
            raise ConfigError(
                f"task '{arguments.task}' is not exported by edgespec; there is: {TASKS[1]}"
            )
        arguments.target, arguments.out = arguments.model, arguments.output
        request = replace(request_of(arguments), configs=True)
        report(export_with_progress(request), request.out, arguments.json)
    except EdgespecError as error:
        print(f"edgespec: {error}", file=sys.stderr)
        return error.exit_code
    return 0
