"""``edgespec doctor``: what is missing on this machine, and the commands that get it."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from edgespec.cli.common import add_command, add_config, print_json


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser = add_command(
        subparsers,
        "doctor",
        "Say what is missing on this machine, or for a bundle on it, and how to get it.",
        "edgespec doctor --bundle llava.bundle",
    )
    parser.add_argument("--bundle", metavar="BUNDLE", help="also check this bundle here")
    parser.add_argument(
        "--profile", default="", metavar="FILE", help="also check this profile of the bundle's"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_config(parser)
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """1 where there is a problem, 0 with warnings."""
    from edgespec.errors import ConfigError
    from edgespec_runtime.environment.bundles import bundle_checks
    from edgespec_runtime.environment.check import as_lines, exit_code
    from edgespec_runtime.environment.doctor import machine_checks
    from edgespec_runtime.environment.facts import facts_of
    from edgespec_runtime.environment.place import Place
    from edgespec_runtime.environment.remedies import platform_of

    if arguments.profile and not arguments.bundle:
        raise ConfigError("--profile is checked for a bundle; give that with --bundle")
    facts = facts_of(Place.here())
    checks = machine_checks(facts)
    if arguments.bundle:
        checks += bundle_checks(facts, arguments.bundle, arguments.profile)
    if arguments.json:
        print_json({"platform": platform_of(facts), "checks": [asdict(check) for check in checks]})
    else:
        print(as_lines(checks))
    return exit_code(checks)
