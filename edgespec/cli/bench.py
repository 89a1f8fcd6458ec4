"""``edgespec bench``: methods against plain decoding, over sets of pictures and prompts."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgespec.cli.bench_outputs import Outcome, check_outputs, recording, report
from edgespec.cli.common import (
    add_command,
    add_config,
    add_engine,
    add_exact,
    add_sizing,
    budget_of,
    flavours_to_run,
    needs_extra,
    note,
    positive_int,
    tell_engine,
)
from edgespec.errors import EdgespecError

if TYPE_CHECKING:
    from edgespec_export.exporter import ExportRequest
    from edgespec_runtime.bench.data import Row
    from edgespec_runtime.bench.measure import Listener, Settings, Turn
    from edgespec_runtime.bench.methods import Method, Plan, Source
    from edgespec_runtime.model import Model

    Load = Callable[[Path], Model]


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser = add_command(
        subparsers,
        "bench",
        "Measure methods against plain decoding over a set of pictures and prompts.",
        "edgespec bench --bundle llava.bundle --data mmspec.jsonl --task-field topic "
        "--plot speed.svg",
    )
    _add_what(parser)
    _add_how(parser)
    add_engine(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON list of cells instead")
    parser.add_argument("--markdown", metavar="FILE", help="write the table here as well")
    parser.add_argument(
        "--plot", metavar="FILE.svg|png", help="draw the speedups (needs the extra [plot])"
    )
    parser.add_argument(
        "--record",
        metavar="FILE.jsonl",
        help="write every run's tokens and rounds, line by line; for edgespec simulate record with "
        "--policy survey --repeats 1 (feature-level drafts: --policy survey:verify=0)",
    )
    add_config(parser)
    parser.set_defaults(run=run)
    return parser


def _add_what(parser: argparse.ArgumentParser) -> None:
    def many(flag: str, **keywords: Any) -> None:
        parser.add_argument(flag, action="append", default=[], **keywords)

    many("--bundle", metavar="BUNDLE", help="may be repeated (default: the built-in family)")
    many(
        "--method",
        metavar="NAME",
        help="a kind of draft among the bundles, ngram, or KIND+ngram; may be repeated "
        "(default: every bundle's own draft)",
    )
    many("--policy", metavar="NAME[:KEY=VALUE,...]", help="tree policy; may be repeated")
    many("--temperature", type=float, metavar="T", help="may be repeated (default: 0)")
    many(
        "--data",
        metavar="FILE.jsonl",
        help="prompts in MMSpec's fields id, image, turns, category, topic; may be repeated "
        "(default: the built-in sets)",
    )
    many("--task", metavar="NAME", help="only this task; may be repeated (default: all)")
    parser.add_argument(
        "--task-field",
        default="category",
        choices=("category", "topic"),
        help="field that names a row's task (default: category; MMSpec's six tasks are its topics)",
    )
    parser.add_argument(
        "--prompts", type=positive_int, default=10, metavar="N", help="rows per task (default: 10)"
    )
    parser.add_argument(
        "--first-turn", action="store_true", help="ask only the first turn of every conversation"
    )


def _add_how(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--repeats",
        type=positive_int,
        default=3,
        metavar="N",
        help="counted runs of every prompt, after one that warms up (default: 3)",
    )
    parser.add_argument("--max-new-tokens", type=positive_int, metavar="N", help="length limit")
    parser.add_argument(
        "--threads",
        type=int,
        default=0,
        metavar="N",
        help="engine threads (default: the profile's, or all cores)",
    )
    add_exact(parser)
    add_sizing(parser)
    parser.add_argument(
        "--seed", type=int, default=0, help="the n-th row is sampled with seed + n (default: 0)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Checks everything that can be checked, measures, reports; 1 where a text was not exact."""
    import edgespec_runtime

    settings = _settings(arguments)
    outputs = check_outputs(arguments)
    with ExitStack() as stack:
        rows = _rows(arguments)
        plan = _plan(arguments, stack)
        listener = stack.enter_context(recording(outputs.get("record")))
        load = partial(
            edgespec_runtime.load,
            engine=arguments.engine,
            flavour=arguments.flavour,
            threads=arguments.threads,
            exact=arguments.exact,
            profile=arguments.profile,
            budget=budget_of(arguments),
        )
        outcome = _measure(plan, rows, settings, load, listener)
    return report(outcome, outputs, arguments.json)


def builtin_requests(folder: Path) -> list[ExportRequest]:
    """The built-in drafts, one bundle each, to be written into ``folder``."""
    from edgespec_export.family import DRAFTS, export_request

    return [export_request(role, folder / f"builtin-{role}") for role, _ in DRAFTS]


def builtin_data() -> list[Path]:
    """The built-in prompt sets."""
    from edgespec_export.family import sample_folder

    return [sample_folder() / f"{domain}.jsonl" for domain in ("in_domain", "out_of_domain")]


def _settings(arguments: argparse.Namespace) -> Settings:
    from edgespec.sampling import SamplingParams
    from edgespec.sizing import parse_policy
    from edgespec_runtime.bench.measure import DEFAULT, Settings

    policies = tuple(dict.fromkeys(arguments.policy)) or (DEFAULT,)
    temperatures = tuple(dict.fromkeys(arguments.temperature)) or (0.0,)
    for policy in policies:
        if policy != DEFAULT:
            parse_policy(policy)
    for temperature in temperatures:
        SamplingParams(temperature=temperature, seed=arguments.seed)
    return Settings(
        policies,
        temperatures,
        arguments.repeats,
        arguments.max_new_tokens,
        arguments.seed,
        arguments.coupling == "on",
    )


def _rows(arguments: argparse.Namespace) -> list[Row]:
    from edgespec_runtime.bench.data import check_images, read_sets, select

    paths = [Path(path).expanduser() for path in arguments.data] or builtin_data()
    rows = read_sets(paths, arguments.task_field)
    rows = select(rows, arguments.task, arguments.prompts, arguments.first_turn)
    check_images(rows)
    return rows


def _plan(arguments: argparse.Namespace, stack: ExitStack) -> Plan:
    from edgespec_runtime.bench.methods import plan, read_sources

    bundles = [Path(path) for path in arguments.bundle]
    if not bundles:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="edgespec-bench-"))
        bundles = _export_builtin(Path(scratch), arguments)
    sources = read_sources(bundles)
    chosen = plan(sources, arguments.method)
    for source in sources:
        if source not in [used for used, _ in chosen]:
            note(f"left out: bundle {source.name} offers none of the methods asked for")
    return chosen


def _export_builtin(folder: Path, arguments: argparse.Namespace) -> list[Path]:
    with needs_extra("edgespec bench without --bundle", "ort,export"):
        requests = builtin_requests(folder)
    flavours = flavours_to_run(arguments)
    from edgespec.cli.export import export_with_progress

    note("exporting the built-in family ...")
    for request in requests:
        export_with_progress(replace(request, flavours=flavours))
    return [request.out for request in requests]


def _measure(
    plan: Plan, rows: Sequence[Row], settings: Settings, load: Load, listener: Listener
) -> Outcome:
    """Bundle by bundle; what stops it on the way leaves what has been measured."""
    from tqdm import tqdm

    from edgespec_runtime.bench.measure import measure

    def turns_of(source: Source, methods: Sequence[Method]) -> Iterator[Turn]:
        # A scope of its own: one bundle is let go before the next one is loaded.
        model = load(source.path)
        tell_engine(model)
        yield from measure(model, source.name, methods, rows, settings, listener)

    outcome = Outcome([])
    total = len(plan) * len(settings.temperatures) * sum(len(row.turns) for row in rows)
    try:
        with tqdm(total=total, unit="prompt", disable=None, leave=False) as bar:
            for source, methods in plan:
                for turn in turns_of(source, methods):
                    outcome.turns.append(turn)
                    bar.set_description(f"{turn.row.domain} {turn.row.task}", refresh=False)
                    bar.update()
    except (KeyboardInterrupt, EdgespecError) as error:
        outcome.stopped_by = error
    return outcome
