"""``edgespec generate``: text from a bundle, streamed to stdout; statistics to stderr."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from edgespec.cli.common import (
    add_command,
    add_config,
    add_decoding,
    add_engine,
    add_exact,
    add_sizing,
    budget_of,
    note,
    print_json,
    tell_engine,
)
from edgespec.cli.remote import add_remote, remote_of

if TYPE_CHECKING:
    from edgespec_runtime import Model, Stats


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser = add_command(
        subparsers,
        "generate",
        "Generate text about images with a bundle; the text is the target's own, token for token.",
        'edgespec generate --bundle llava.bundle --image cat.jpg --prompt "What is this?"',
    )
    parser.add_argument("--bundle", required=True, metavar="BUNDLE", help="directory from export")
    parser.add_argument(
        "--image", action="append", default=[], metavar="FILE", help="may be repeated; none is fine"
    )
    parser.add_argument("--prompt", required=True, help='the question; "-" reads it from stdin')
    parser.add_argument(
        "--draft",
        default="auto",
        metavar="NAME",
        help="auto: the bundle's draft if it has one (default); none: plain decoding; model; "
        "ngram: look-up in the text so far, needs no draft; model+ngram",
    )
    add_decoding(parser)
    add_engine(parser)
    add_exact(parser)
    add_sizing(parser)
    parser.add_argument("--temperature", type=float, help="0 is greedy")
    parser.add_argument("--top-p", type=float, help="nucleus sampling")
    parser.add_argument("--top-k", type=int, help="0 is off")
    parser.add_argument("--min-p", type=float, help="0 is off")
    parser.add_argument("--repetition-penalty", type=float, help="1 is off")
    parser.add_argument("--seed", type=int, help="same seed, same text, with or without a draft")
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="stop string; may be repeated"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    add_remote(parser)
    add_config(parser)
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    import edgespec_runtime

    prompt = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    model = edgespec_runtime.load(
        arguments.bundle,
        engine=arguments.engine,
        flavour=arguments.flavour,
        threads=arguments.threads,
        profile=arguments.profile,
        budget=budget_of(arguments),
        remote=remote_of(arguments),
        exact=arguments.exact,
        huge_pages=False,  # they pay from the second answer on
    )
    try:
        return _generate(model, arguments, prompt)
    finally:
        model.close()


def _generate(model: Model, arguments: argparse.Namespace, prompt: str) -> int:
    from edgespec.latency import estimate_note

    tell_engine(model)
    if model.profile and (said := estimate_note(model.profile)):
        note(said)
    if model.draft_left_out:
        note(model.draft_left_out)
    settings = {
        "draft": arguments.draft,
        "policy": arguments.policy,
        "coupled": arguments.coupling == "on",
        "max_new_tokens": arguments.max_new_tokens,
        "stop": arguments.stop,
        "temperature": arguments.temperature,
        "top_p": arguments.top_p,
        "top_k": arguments.top_k,
        "min_p": arguments.min_p,
        "repetition_penalty": arguments.repetition_penalty,
        "seed": arguments.seed,
    }
    if arguments.json:
        print_json(model.generate(arguments.image, prompt, **settings).as_json())
        return 0
    request = model.stream(arguments.image, prompt, **settings)
    begun = False
    try:
        for record in request:
            begun = True
            print(record.text, end="", flush=True)
    finally:  # what ends an answer early is told on a line of its own
        if begun:
            print()
    note(describe(request.stats))
    if request.remote:
        note(describe_remote(request.remote))
    if request.sizing and not request.sizing["drift"]["profile_fits"]:
        note(
            "the device is no longer as the profile says (power mode, heat or load?); curves are "
            "corrected while decoding, `edgespec profile` measures them anew"
        )
    return 0


def describe_remote(remote: dict[str, Any]) -> str:
    """One line about the servers for the human."""
    trip, ahead, by_mode = remote["round_trip_ms"], remote["drafted_ahead"], remote["mode_rounds"]
    alone, here = by_mode.get("draft", 0), by_mode.get("local", 0)
    return (
        f"verified by {remote['endpoint'] or 'no server'}: {remote['rounds']} rounds asked for, "
        f"{remote['streamed']} streamed"
        + (f", {here} verified on this device" if here else "")
        + (f", {alone} written by the draft alone: NOT the target's text" if alone else "")
        + (f", round trip {trip:.1f} ms" if trip is not None else "")
        + f"; {remote['bytes_up']} bytes up, {remote['bytes_down']} down; "
        f"{remote['retries']} retries, {remote['reopens']} reopens"
        + (f"; {ahead['hits']} of {ahead['tried']} rounds drafted ahead" if ahead else "")
    )


def describe(stats: Stats) -> str:
    """One line of statistics for the human."""
    return (
        f"{stats.tokens_per_s:.1f} tokens/s, first token after {stats.ttft_ms:.0f} ms, "
        f"{stats.accepted_length:.2f} tokens per round (bonus counted) in {stats.rounds} rounds; "
        f"draft {stats.draft_ms:.0f} ms, verify {stats.verify_ms:.0f} ms, "
        f"host {stats.host_ms:.0f} ms"
    )
