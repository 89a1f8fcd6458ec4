"""``edgespec build``: TensorRT engines from a bundle's graphs, on the device that will run them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgespec.cli.common import (
    add_command,
    add_config,
    check_writable,
    needs_extra,
    note,
    positive_int,
    print_json,
)

if TYPE_CHECKING:
    from edgespec.engines import BuiltEngines
    from edgespec_export.tensorrt.build import BuildRequest, Outcome

SWITCHES = (
    ("weight-streaming", "leave weights in host memory and stream them, for too little GPU memory"),
    ("version-compatible", "let newer releases of the same TensorRT run the engines"),
    ("refit", "let weights be replaced in the engines later"),
    ("strip", "leave weights out of the engines; they are put back from the bundle"),
)


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser = add_command(
        subparsers,
        "build",
        "Build TensorRT engines from a bundle's graphs, on the device that will run them.",
        "edgespec build --bundle llava.bundle --flavour native:fp16 --context 2048",
    )
    parser.add_argument("--bundle", required=True, metavar="BUNDLE", help="from `edgespec export`")
    parser.add_argument(
        "--flavour",
        metavar="LOWERING[:PRECISION]",
        help="which graphs, e.g. native:fp16 (default: what suits this TensorRT best)",
    )
    rows = (
        ("--context", "rows of text and image a session may have (default: the model's context)"),
        ("--max-rows", "most rows of a call that verifies or drafts (default: 128)"),
        ("--prefill-rows", "most rows of a prefill call (default: 1024)"),
        ("--workspace-mb", "most scratch memory of a kernel, in MB (default: TensorRT's)"),
    )
    for flag, what in rows:
        parser.add_argument(flag, type=positive_int, metavar="N", help=what)
    parser.add_argument(
        "--profiles",
        metavar="NAME,...",
        help="sizes that kernels are chosen for: prefill,tree,single (default; with TensorRT-RTX "
        "prefill,tree, as single stores all weights a second time there)",
    )
    parser.add_argument(
        "--timing-cache", metavar="FILE", help="kernel timings, kept for later builds"
    )
    for flag, what in SWITCHES:
        parser.add_argument(f"--{flag}", action="store_true", help=what)
    parser.add_argument(
        "--role", action="append", metavar="NAME", help="only this graph; may be given again"
    )
    parser.add_argument(
        "--library", default="auto", help="auto (default), tensorrt or tensorrt_rtx"
    )
    parser.add_argument(
        "--compute-capability",
        nargs="+",
        metavar="X.Y",
        help="GPUs to build for, e.g. 8.6 8.9 (TensorRT-RTX; default: this machine's)",
    )
    parser.add_argument(
        "--parse-only", action="store_true", help="say what would be refused; build nothing"
    )
    parser.add_argument("--overwrite", action="store_true", help="build again what is there")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_config(parser)
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    request = request_of(arguments)
    if arguments.parse_only:
        return parse_only(request, arguments.json)
    report(build_with_progress(request), arguments.json)
    return 0


def request_of(arguments: argparse.Namespace) -> BuildRequest:
    """What was asked for."""
    with needs_extra("edgespec build", "export"):
        from edgespec_export.tensorrt.build import BuildRequest
        from edgespec_export.tensorrt.network import Settings
    cache = Path(arguments.timing_cache) if arguments.timing_cache else None
    if cache:
        check_writable(cache, "--timing-cache")
    switches = [flag for flag, _ in SWITCHES if getattr(arguments, flag.replace("-", "_"))]
    return BuildRequest(
        bundle=Path(arguments.bundle),
        flavour=arguments.flavour,
        context=arguments.context,
        prefill_rows=arguments.prefill_rows,
        max_rows=arguments.max_rows,
        profiles=tuple(arguments.profiles.split(",") if arguments.profiles else ()),
        roles=tuple(arguments.role or ()),
        library=arguments.library,
        settings=Settings(
            flags=tuple(switches),
            workspace_mb=arguments.workspace_mb,
            compute_capabilities=tuple(arguments.compute_capability or ()),
            timing_cache=cache,
        ),
        overwrite=arguments.overwrite,
    )


def build_with_progress(request: BuildRequest) -> Outcome:
    """Builds, telling on stderr what is at work."""
    from tqdm import tqdm

    from edgespec_export.tensorrt.build import build_engines

    with tqdm(total=100, bar_format="{desc} {percentage:3.0f}%", disable=None, leave=False) as bar:

        def announce(engines: BuiltEngines, roles: Sequence[str]) -> None:
            with bar.external_write_mode(file=sys.stderr):
                note(f"{engines.tag}: {', '.join(roles) or 'nothing is missing'}")

        def progress(role: str, phase: str, share: float) -> None:
            bar.set_description(f"{role}: {phase}", refresh=False)
            bar.update(round(100 * share) - bar.n)

        return build_engines(request, progress, announce)


def report(outcome: Outcome, as_json: bool) -> None:
    """The plans with their sizes, or one JSON object."""
    engines, seconds = outcome.engines, outcome.seconds
    if as_json:
        plans = [
            {"role": plan.role, "bytes": plan.size, "seconds": seconds.get(plan.role),
             "kept": plan.role not in seconds, "decomposed_attention": plan.decomposed}
            for plan in engines.plans
        ]  # fmt: skip
        print_json(
            {"engines": str(engines.folder), "library": engines.library,
             "version": engines.version, "flavour": engines.flavour,
             "compute_capabilities": list(engines.compute_capabilities),
             "device": engines.device, "l4t": engines.l4t, "context": engines.context,
             "capacity": engines.capacity, "prefill_rows": engines.prefill_rows,
             "max_rows": engines.max_rows, "profiles": list(engines.profiles),
             "flags": list(engines.flags), "plans": plans}
        )  # fmt: skip
        return
    for plan in engines.plans:
        took = f"{seconds[plan.role]:6.1f} s" if plan.role in seconds else "    kept"
        apart = "   attention without a fused kernel: slower" if plan.decomposed else ""
        note(f"  {plan.role:<16} {plan.size / 1e6:9.1f} MB {took}{apart}")
    print(f"wrote {engines.folder}")


def parse_only(request: BuildRequest, as_json: bool) -> int:
    """What would be refused, per graph; exit code 1 if anything would."""
    from edgespec_export.tensorrt.checking import check_graphs

    rows = check_graphs(request)
    refused = any(row.problems for row in rows)
    if as_json:
        found = [{"role": r.role, "by": r.by, "problems": list(r.problems)} for r in rows]
        print_json({"bundle": str(request.bundle), "graphs": found, "accepted": not refused})
        return int(refused)
    for row in rows:
        print(f"{row.role:<16} {row.by}: {'refused' if row.problems else 'accepted'}")
        for problem in row.problems:
            print(f"    {problem}")
    return int(refused)
