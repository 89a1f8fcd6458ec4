"""Flags and printing that several commands share."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgespec.errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    from edgespec.flavour import Flavour
    from edgespec.sizing.budgets import Budget
    from edgespec_runtime import Model


def positive_int(text: str) -> int:
    """An integer >= 1, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def add_command(subparsers: Any, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    """A subcommand whose help ends with an example."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    return parser


def add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file with flags as keys; flags given here win"
    )


# Not read from the registry: its modules import numpy, which no --help should wait for.
POLICIES = "chain, eagle2, opt-tree, plain, rolling, sage, sequoia, sized, survey, threshold, tree"


def add_decoding(parser: argparse.ArgumentParser) -> None:
    """Flags of anything that generates text."""
    parser.add_argument("--max-new-tokens", type=positive_int, metavar="N", help="length limit")
    parser.add_argument(
        "--policy",
        metavar="NAME[:KEY=VALUE,...]",
        help=f"tree policy: {POLICIES}; e.g. eagle2:nodes=12,depth=8,top_k=2",
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=0,
        metavar="N",
        help="engine threads (default: the profile's, or all cores)",
    )


def add_exact(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--exact",
        action="store_true",
        help="decode plainly through the kernels that verify trees: with rounded weights, too, "
        "speculation then gives the plain text; costs what a second row costs (docs/precision.md)",
    )


# Not read from the engines: their module reads more than --help should wait for.
ENGINES = ("auto", "ort", "ort-cuda", "ort-tensorrt-rtx", "tensorrt", "tensorrt-rtx")


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Flags of what runs the graphs."""
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="auto",
        help="what runs the graphs: the best that can run here (auto), ONNX Runtime on the CPU "
        "(ort) or with a GPU provider, or engines from `edgespec build`",
    )
    parser.add_argument(
        "--flavour",
        metavar="LOWERING[:PRECISION]",
        help="of those that the bundle holds (default: the one that suits the engine)",
    )


def flavours_to_run(arguments: argparse.Namespace) -> tuple[Flavour, ...]:
    """What to export so that the engine asked for can run it. Raises ConfigError."""
    from edgespec.flavour import Flavour
    from edgespec_runtime.engines.choice import flavours_for

    if arguments.flavour:
        return (Flavour.parse(arguments.flavour),)
    return flavours_for(arguments.engine)


def tell_engine(model: Model) -> None:
    """A line for the human: what runs, and why; others for what runs slower than it could."""
    if model.choice is not None:
        note(str(model.choice))
    for line in model.notes:
        note(line)


def add_sizing(parser: argparse.ArgumentParser) -> None:
    """Flags of sizing by measured cost: the profile, and limits."""
    parser.add_argument(
        "--profile",
        metavar="FILE",
        help="from `edgespec profile` on this device: trees are sized by measured cost",
    )
    add_budget(parser)
    parser.add_argument(
        "--coupling",
        choices=("on", "off"),
        default="on",
        help="whether a draft may rank by the noise that the target draws with at temperature > 0; "
        "changes speed alone (default: on)",
    )


def add_budget(parser: argparse.ArgumentParser) -> None:
    """Flags of limits; ``budget_of`` reads them."""
    limits = (
        ("--budget-ms-per-round", "MS", "longest round (95th percentile)"),
        ("--budget-ttft-ms", "MS", "time to the first token"),
        ("--budget-p95-itl-ms", "MS", "95th percentile of the time between tokens"),
        ("--budget-memory-mb", "MB", "resident memory"),
    )
    for flag, unit, what in limits:
        parser.add_argument(flag, type=float, default=math.inf, metavar=unit, help=f"limit: {what}")


def budget_of(arguments: argparse.Namespace) -> Budget:
    """The limits asked for. Raises ConfigError for one that is no positive number."""
    from edgespec.sizing.budgets import Budget

    return Budget(
        ms_per_round=arguments.budget_ms_per_round,
        ttft_ms=arguments.budget_ttft_ms,
        p95_itl_ms=arguments.budget_p95_itl_ms,
        memory_mb=arguments.budget_memory_mb,
    )


@contextmanager
def needs_extra(command: str, extra: str) -> Iterator[None]:
    """Imports inside tell the user which extra to install when a package is missing."""
    try:
        yield
    except ImportError as error:
        package = (error.name or "").split(".")[0]
        if package.startswith("edgespec"):
            raise  # our own module: a bug, not a missing package
        raise MissingDependencyError(package, command, extra) from None


def check_writable(path: Path, flag: str) -> None:
    """Opens the file for appending, which changes nothing in it. Raises InputError."""
    existed = path.exists()
    try:
        path.open("a").close()
        if not existed:
            path.unlink()
    except OSError as error:
        raise InputError(f"{flag} cannot be written to '{path}': {error.strerror}") from None


def print_json(value: Any) -> None:
    """One JSON object on stdout."""
    print(json.dumps(value, ensure_ascii=False))


def note(text: str) -> None:
    """A line for the human, on stderr."""
    print(text, file=sys.stderr, flush=True)
