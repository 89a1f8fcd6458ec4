"""``edgespec profile``: what every operation of a bundle costs on this device, as a file."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgespec.cli.common import add_command, add_config, note, positive_int
from edgespec.cli.profile_outputs import card_table, check_outputs, report

if TYPE_CHECKING:
    from edgespec.latency import Card, DeviceProfile, Memory
    from edgespec_runtime import Model
    from edgespec_runtime.profiling.measure import Settings


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
        "--threads", type=int, default=0, metavar="N", help="engine threads (default: all cores)"
    )
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
    from edgespec.latency import card_of, measure_ceiling
    from edgespec_runtime.engines import open_engine
    from edgespec_runtime.model import Model
    from edgespec_runtime.profiling.measuring.memory import measure_memory

    outputs = check_outputs(arguments)
    settings = _settings(arguments)
    bundle = read_bundle(arguments.bundle)
    engine = open_engine(threads=arguments.threads)
    note("measuring this machine's ceiling ...")
    card = card_of(bundle, *measure_ceiling(), measured=True)
    note(card_table(card))
    note("reading the memory that the bundle takes ...")
    memory = measure_memory(bundle, card, engine.facts.threads)
    model = Model(bundle, engine)
    profile = _measure(model, settings, card, memory, arguments.device)
    return report(model, profile, outputs, arguments.json)


def _settings(arguments: argparse.Namespace) -> Settings:
    from edgespec_runtime.profiling.measure import Settings

    return Settings(
        quick=arguments.quick,
        max_nodes=arguments.max_nodes,
        max_context=arguments.max_context,
        time_limit=arguments.time_limit,
    )


def _measure(
    model: Model, settings: Settings, card: Card, memory: Memory, name: str | None
) -> DeviceProfile:
    from tqdm import tqdm

    from edgespec.latency import this_device
    from edgespec_runtime.profiling.measure import measure, profile_of
    from edgespec_runtime.profiling.telemetry.sampler import Sampler

    device = this_device()
    with tqdm(total=100, unit="%", disable=None, leave=False, desc="measuring") as bar:

        def listen(done: float) -> None:
            bar.update(int(100 * done) - bar.n)

        with Sampler() as sampler:
            measured = measure(model, settings, listen)
    return profile_of(
        model,
        measured,
        card,
        memory,
        device=replace(device, name=name) if name else device,
        telemetry=sampler.summary(),
    )
