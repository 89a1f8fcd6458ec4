"""``edgespec demo``: the built-in family, plain and speculative decoding side by side."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgespec.cli.common import (
    add_command,
    add_decoding,
    add_engine,
    flavours_to_run,
    needs_extra,
    note,
    positive_int,
    print_json,
    tell_engine,
)
from edgespec.errors import EdgespecError

if TYPE_CHECKING:
    from edgespec_runtime import Model, Record, Stats

PROMPT = "Describe this image in detail."
GREEN, RESET = "\x1b[32m", "\x1b[0m"


@dataclass(frozen=True)
class Side:
    """One way of decoding: its records, and the medians of its runs."""

    records: tuple[Record, ...]
    stats: Stats

    @property
    def text(self) -> str:
        return "".join(record.text for record in self.records)

    @property
    def tokens(self) -> list[int]:
        return [record.token for record in self.records]


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser = add_command(
        subparsers,
        "demo",
        "Export the built-in family and watch it describe a picture, plain and speculative.",
        "edgespec demo --image my-picture.png",
    )
    parser.add_argument("--image", metavar="FILE", help="a picture (default: a built-in scene)")
    parser.add_argument("--prompt", default=PROMPT, help=f"default: {PROMPT}")
    parser.add_argument("--repeats", type=positive_int, default=5, help="timed runs of each side")
    parser.add_argument("--bundle-out", metavar="BUNDLE", help="keep the exported bundle here")
    add_decoding(parser)
    add_engine(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.set_defaults(run=run)
    actions = parser.add_subparsers(dest="action", metavar="[train]", required=False)
    train = add_command(
        actions,
        "train",
        "Train the built-in family from nothing (needs the extra [train] and npm; hours on a CPU).",
        "edgespec demo train --out my-family",
    )
    train.add_argument("--out", required=True, metavar="DIR", help="checkpoints and progress")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--resume", action="store_true", help="go on with what --out holds")
    train.set_defaults(run=run_train)
    return parser


def run(arguments: argparse.Namespace) -> int:
    import edgespec_runtime

    with needs_extra("edgespec demo", "ort,export"):
        import edgespec_export.exporter  # noqa: F401 - what is missing is named here
        from edgespec_export.family import export_request, sample_image

    from edgespec.cli.export import export_with_progress

    with tempfile.TemporaryDirectory(prefix="edgespec-demo-") as scratch:
        out = Path(arguments.bundle_out or Path(scratch, "builtin.bundle"))
        note("exporting the built-in family ...")
        request = replace(export_request("draft", out), flavours=flavours_to_run(arguments))
        export_with_progress(request)
        model = edgespec_runtime.load(
            out, engine=arguments.engine, flavour=arguments.flavour, threads=arguments.threads
        )
        tell_engine(model)
        image = Path(arguments.image) if arguments.image else sample_image()
        note(f"picture: {image.name}; prompt: {arguments.prompt}\n")
        plain, speculative = compare(model, image, arguments)
    return report(plain, speculative, arguments.json)


def compare(model: Model, image: Path, arguments: argparse.Namespace) -> tuple[Side, Side]:
    """Runs both ways in turn, ``repeats`` times after a warm-up, on one engine."""
    runs: dict[str, list[Side]] = {"none": [], "model": []}
    for repeat in range(arguments.repeats + 1):
        for draft, sides in runs.items():
            request = model.stream(
                image,
                arguments.prompt,
                draft=draft,
                policy=arguments.policy,
                max_new_tokens=arguments.max_new_tokens,
                temperature=0.0,
            )
            records = tuple(request)
            if repeat:
                sides.append(Side(records, request.stats))
    return _median(runs["none"]), _median(runs["model"])


def _median(sides: list[Side]) -> Side:
    """The run whose speed is the median one (the lower of two)."""
    speed = statistics.median_low(side.stats.tokens_per_s for side in sides)
    return next(side for side in sides if side.stats.tokens_per_s == speed)


def report(plain: Side, speculative: Side, as_json: bool) -> int:
    """Text, table, verdict. Texts that differ are a failure of edgespec: exit code 1."""
    identical = plain.tokens == speculative.tokens
    rate = plain.stats.tokens_per_s
    speedup = speculative.stats.tokens_per_s / rate if rate else 0.0
    if as_json:
        sides = {"plain": plain, "speculative": speculative}
        rows = {name: {"text": s.text, **asdict(s.stats)} for name, s in sides.items()}
        print_json({**rows, "speedup": speedup, "identical": identical})
    else:
        print(_coloured(speculative.records) if sys.stdout.isatty() else speculative.text)
        print()
        print(_table(plain.stats, speculative.stats, speedup))
        print(f"texts identical: {'yes' if identical else 'NO'}")
    if not identical:
        raise EdgespecError("plain and speculative texts differ; please report this as a bug")
    return 0


def _coloured(records: tuple[Record, ...]) -> str:
    """Accepted draft tokens in green, the target's own (bonus) tokens plain."""
    text = "".join(f"{GREEN}{r.text}{RESET}" if r.from_draft else r.text for r in records)
    return f"{text}\n({GREEN}green{RESET}: proposed by the draft, accepted by the target)"


def _table(plain: Stats, speculative: Stats, speedup: float) -> str:
    def per_round(total: float, stats: Stats) -> str:
        return f"{total / stats.rounds:.2f}" if stats.rounds else "-"

    rows = [
        ("", "plain", "speculative"),
        ("tokens/s", f"{plain.tokens_per_s:.0f}", f"{speculative.tokens_per_s:.0f}"),
        ("speedup", "1.00x", f"{speedup:.2f}x"),
        (
            "accepted length (with bonus)",
            f"{plain.accepted_length:.2f}",
            f"{speculative.accepted_length:.2f}",
        ),
        ("draft ms per round", "-", per_round(speculative.draft_ms, speculative)),
        (
            "verify ms per round",
            per_round(plain.verify_ms, plain),
            per_round(speculative.verify_ms, speculative),
        ),
        (
            "host ms per round",
            per_round(plain.host_ms, plain),
            per_round(speculative.host_ms, speculative),
        ),
        ("first token ms", f"{plain.ttft_ms:.0f}", f"{speculative.ttft_ms:.0f}"),
    ]
    return "\n".join(f"{label:<30}{left:>10}{right:>14}" for label, left, right in rows)


def run_train(arguments: argparse.Namespace) -> int:
    with needs_extra("edgespec demo train", "train"):
        from edgespec_export.family.pipeline import run as train_family
    result = train_family(Path(arguments.out), resume=arguments.resume, seed=arguments.seed)
    print(f"wrote {result}")
    return 0
