"""``edgespec profile``: what every operation of a bundle costs on this device, as a file."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgespec.cli.common import add_command, add_config, add_engine, note, positive_int
from edgespec.cli.profile_outputs import card_table, check_outputs, warnings, write
from edgespec.cli.remote import add_connection, connection_of
from edgespec.errors import ConfigError

if TYPE_CHECKING:
    from tqdm import tqdm

    from edgespec.bundle import Bundle
    from edgespec_runtime import Model
    from edgespec_runtime.engines.choice import Choice
    from edgespec_runtime.profiling.elsewhere import Elsewhere
    from edgespec_runtime.profiling.measure import Measured, Settings
    from edgespec_runtime.profiling.measuring.sizes import Sizes
    from edgespec_runtime.remote import RemoteSettings

AUTO = -1
"""``--threads auto``."""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser = add_command(
        subparsers,
        "profile",
        "Measure what every operation of a bundle costs on this device.",
        "edgespec profile --bundle llava.bundle --out orin.yaml --report orin.html",
    )
    parser.add_argument("--bundle", required=True, metavar="BUNDLE", help="directory from export")
    parser.add_argument("--out", metavar="PROFILE", help="the profile, a YAML file")
    parser.add_argument(
        "--device", metavar="NAME", help="what to call this device (default: its own name)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer sizes and repeats, in under a minute"
    )
    parser.add_argument(
        "--max-nodes",
        type=positive_int,
        default=64,
        metavar="N",
        help="nodes of the largest tree (default: 64)",
    )
    parser.add_argument(
        "--max-context",
        type=positive_int,
        metavar="N",
        help="tokens of the longest context (default: all that the bundle takes)",
    )
    parser.add_argument(
        "--time-limit",
        type=float,
        metavar="SECONDS",
        help="add no repeats after this time; fails where it does not suffice for five of each",
    )
    parser.add_argument(
        "--threads",
        type=_threads,
        default=0,
        metavar="N|auto",
        help="engine threads (default: all cores); auto: as many as steps are fastest with, which "
        "is clocked first. Commands that are given the profile use as many",
    )
    add_engine(parser)
    add_connection(parser)
    parser.add_argument("--report", metavar="FILE.html", help="the profile as a page to look at")
    parser.add_argument(
        "--trace",
        metavar="FILE.json",
        help="a few real rounds as a timeline for Perfetto or chrome://tracing",
    )
    parser.add_argument("--json", action="store_true", help="print the profile as one JSON object")
    add_config(parser)
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Checks everything that can be checked, measures, writes; nothing is written before."""
    from edgespec.bundle import read_bundle
    from edgespec.latency import card_of, measure_ceiling, this_device
    from edgespec_runtime.engines import open_engine
    from edgespec_runtime.engines.choice import choose, shown
    from edgespec_runtime.profiling.measure import profile_of
    from edgespec_runtime.profiling.measuring.hollow import model_to_measure
    from edgespec_runtime.profiling.measuring.memory import measure_memory
    from edgespec_runtime.profiling.recording import record_rounds
    from edgespec_runtime.profiling.telemetry.sampler import Sampler

    settings, remote = _settings(arguments), connection_of(arguments)
    outputs = check_outputs(arguments)
    found = read_bundle(arguments.bundle)
    choice = choose(found, arguments.engine, arguments.flavour)
    bundle = shown(found, choice)
    _check_target(bundle, remote, arguments)
    sizes, device = _sizes(bundle, arguments), this_device()
    note(str(choice))
    threads = _chosen(bundle, choice) if arguments.threads == AUTO else arguments.threads
    engine = open_engine(choice.engine, threads=threads, bundle=bundle, huge_pages=True)
    note("measuring this machine's ceiling and the bundle's memory ...")
    card = card_of(bundle, *measure_ceiling(), measured=True)
    note(card_table(card))
    memory = measure_memory(bundle, card, choice, engine.facts.threads)
    model = model_to_measure(bundle, engine)
    elsewhere = _look(bundle, remote, sizes) if remote else None
    timeline = record_rounds(model) if outputs.trace else None
    with Sampler() as sampler:
        measured = _measure(model, sizes, settings)
    profile = profile_of(
        model,
        measured,
        card,
        memory,
        device=replace(device, name=arguments.device or device.name),
        telemetry=sampler.summary(),
        elsewhere=elsewhere,
    )
    write(profile, sampler.readings, timeline, outputs, arguments.json)
    for line in (*warnings(measured), *sampler.troubles):
        note(line)
    return 0


def _threads(text: str) -> int:
    """Of ``--threads``. Raises ArgumentTypeError."""
    if text == "auto":
        return AUTO
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is neither a number of threads nor auto")
    return int(text)


def _chosen(bundle: Bundle, choice: Choice) -> int:
    """The number of threads that steps are fastest with; told."""
    from tqdm import tqdm

    from edgespec_runtime.profiling.measuring.threads import choose_threads

    with tqdm(total=100, unit="%", disable=None, leave=False, desc="threads") as bar:
        found = choose_threads(bundle, choice, lambda done: _move(bar, done))
    note(str(found))
    return found.threads


def _check_target(
    bundle: Bundle, remote: RemoteSettings | None, arguments: argparse.Namespace
) -> None:
    """Raises ConfigError for a device's part of a bundle of which too little can be measured."""
    if bundle.manifest.graph("target") is not None:
        return
    if bundle.manifest.graph("draft") is None:
        raise ConfigError(
            f"{bundle.path} holds neither a target nor a draft: there is nothing to measure; "
            "export with --draft"
        )
    if remote is None:
        raise ConfigError(
            f"{bundle.path} is a device's part without a target; say with --remote which server "
            "has it, or profile the whole bundle"
        )
    if arguments.trace:
        raise ConfigError("--trace shows rounds with the target here; this bundle holds none")


def _look(bundle: Bundle, remote: RemoteSettings, sizes: Sizes) -> Elsewhere:
    """Asks the server, with a bar; its connections are closed again."""
    from tqdm import tqdm

    from edgespec_runtime.entry import remote_target
    from edgespec_runtime.profiling.elsewhere import look_elsewhere

    target = remote_target(bundle, remote)
    try:
        with tqdm(total=100, unit="%", disable=None, leave=False, desc="server") as bar:
            return look_elsewhere(
                target, bundle.manifest, sizes, listener=lambda done: _move(bar, done)
            )
    finally:
        target.close()


def _settings(arguments: argparse.Namespace) -> Settings:
    from edgespec_runtime.profiling.measure import QUICK, Settings

    settings = QUICK if arguments.quick else Settings()
    return replace(settings, time_limit=arguments.time_limit)


def _sizes(bundle: Bundle, arguments: argparse.Namespace) -> Sizes:
    from edgespec_runtime.profiling.measuring.sizes import sizes_of

    return sizes_of(
        bundle.manifest,
        quick=arguments.quick,
        max_nodes=arguments.max_nodes,
        max_context=arguments.max_context,
    )


def _measure(model: Model, sizes: Sizes, settings: Settings) -> Measured:
    from tqdm import tqdm

    from edgespec_runtime.profiling.measure import measure

    with tqdm(total=100, unit="%", disable=None, leave=False, desc="measuring") as bar:
        return measure(model, sizes, settings, lambda done: _move(bar, done))


def _move(bar: tqdm[Any], done: float) -> None:
    bar.update(int(100 * done) - bar.n)
