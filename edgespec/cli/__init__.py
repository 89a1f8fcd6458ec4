"""``edgespec ...``: parses, then reaches into the exporter or the runtime inside the command.

Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 the user's input,
130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from edgespec import __version__
from edgespec.cli import (
    bench,
    build,
    demo,
    distill,
    doctor,
    env,
    export,
    frequencies,
    generate,
    plan,
    profile,
    serve,
    simulate,
)
from edgespec.config import apply_settings, read_settings
from edgespec.errors import EdgespecError

COMMANDS = (
    export, plan, build, generate, serve, profile, bench, simulate, distill, frequencies, demo,
    env, doctor,
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    try:
        arguments = _parse(argv)
        return int(arguments.run(arguments) or 0)
    except EdgespecError as error:
        print(f"edgespec: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("edgespec: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our stdout has gone (`| head`); a second error at exit is not wanted.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser, commands = build_parser()
    # A settings file becomes its command's defaults first, so that explicit flags still win.
    early = argparse.ArgumentParser(prog="edgespec", add_help=False, allow_abbrev=False)
    early.add_argument("command", nargs="?")
    early.add_argument("--config")
    found, _ = early.parse_known_args(argv)
    if found.command in commands and found.config:
        apply_settings(commands[found.command], read_settings(found.config), found.config)
    return parser.parse_args(argv)


def build_parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The whole parser, and the parsers of its commands by name."""
    parser = argparse.ArgumentParser(
        prog="edgespec",
        description="Makes vision-language models talk fast on edge devices without changing a "
        "word of what they say.",
        epilog="Start with: edgespec demo",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"edgespec {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands = {}
    for command in COMMANDS:
        sub = command.add_parser(subparsers)
        commands[sub.prog.split()[-1]] = sub
    return parser, commands
