"""What a step of the target costs: by context, rows and precision, beside transformers and memory.

    python benchmarks/steps.py --bundle FP32 --bundle INT8 --bundle INT4 --checkpoint DIR

Steps run through the runtime's own sessions, over caches that are filled beforehand. All sides are
loaded in one process and take turns, one computing at a time, points and sides in random order; the
first pass and the first step of every turn warm up and are not counted. Memory is read in between.
Prints Markdown: ms by context with attention's share, the ratio to transformers, the verify curve,
the share of the bound that memory sets, and times to the first token.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
for part in ("runtime", "export", ""):  # benchmarks are not installed
    if str(ROOT / part) not in sys.path:
        sys.path.insert(0, str(ROOT / part))

from benchmarks.steps_report import Clocked, figures_of, markdown  # noqa: E402
from benchmarks.steps_sides import (  # noqa: E402
    BundleSide,
    Point,
    Reader,
    Side,
    TransformersSide,
    attention_shares,
    label,
)
from edgespec.errors import BundleError, ConfigError, EdgespecError  # noqa: E402
from edgespec_runtime import Model, load  # noqa: E402

STEP_ROWS = (1, 8, 16)
"""Rows of the steps at every context: plain decoding and two trees."""
CURVE_CONTEXT = 512
"""Cached rows of the verify curve, or the next smaller of the contexts."""
STEPS = 3
"""Counted in a turn, behind one that is not."""


@dataclass(frozen=True)
class Plan:
    """What is clocked of every side."""

    contexts: tuple[int, ...]
    rows: tuple[int, ...]
    """Of the verify curve."""
    curve_context: int
    prompts: tuple[int, ...]
    left_out: tuple[str, ...]
    """What was asked for and does not fit, with the reason."""

    @property
    def steps(self) -> tuple[Point, ...]:
        """Those of the table by context."""
        return tuple(Point(context, rows) for context in self.contexts for rows in STEP_ROWS)

    @property
    def points(self) -> tuple[Point, ...]:
        """All steps."""
        curve = {Point(self.curve_context, rows) for rows in self.rows}
        return tuple(sorted({*self.steps, *curve}))


def main(given: Sequence[str] | None = None) -> int:
    arguments = parse(given)
    try:
        run(arguments)
    except EdgespecError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def run(arguments: argparse.Namespace) -> None:
    """Loads, measures, prints and writes."""
    make_room(arguments)
    loads = [os.getloadavg()]
    models = named(arguments.bundle, arguments.threads)
    if arguments.small_pages:
        models |= on_small_pages(models, arguments.threads)
    first = next(iter(models.values()))
    plan = planned(arguments, first)
    sides: list[Side] = [BundleSide(name, model, plan.points) for name, model in models.items()]
    if arguments.checkpoint:
        spec = first.steps["target"].spec
        sides.append(TransformersSide(arguments.checkpoint, spec, arguments.threads))
    clocked = measure(sides, Reader(arguments.threads), plan, arguments.repeats)
    loads.append(os.getloadavg())
    with tempfile.TemporaryDirectory(dir=arguments.work) as work:
        for name, model in models.items():
            clocked.attention[name] = attention_shares(model, plan.steps, Path(work))
    asked = {"threads": arguments.threads, "repeats": arguments.repeats}
    settings = {**asked, "step_rows": STEP_ROWS, **asdict(plan)}
    figures = figures_of(models, clocked, settings, loads)
    table = markdown(figures)
    print(table, end="")
    if arguments.markdown:
        arguments.markdown.write_text(table, encoding="utf-8")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def make_room(arguments: argparse.Namespace) -> None:
    """Folders of all that is written, before minutes are spent on it. Raises ConfigError."""
    files = [file for file in (arguments.json, arguments.markdown) if file is not None]
    for folder in (arguments.work, *(file.parent for file in files)):
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"{folder} cannot be made ({error.strerror}); name another folder"
            ) from None


def named(folders: Sequence[Path], threads: int) -> dict[str, Model]:
    """The bundles, loaded, by their targets' flavours; those that share one by their folders' names
    as well. Raises BundleError for what is no bundle, or one of another model."""
    models = [load(folder, engine="ort", threads=threads, check_hashes=False) for folder in folders]
    prints = [model.manifest.models["target"].fingerprint for model in models]
    for folder, found in zip(folders, prints, strict=True):
        if found != prints[0]:
            raise BundleError(
                f"{folder} is of another model than {folders[0]} (fingerprints {found[:12]} and "
                f"{prints[0][:12]}); name bundles of one checkpoint"
            )
    labels = [label(model.steps["target"].spec) for model in models]
    counts = Counter(labels)
    names = [
        own if counts[own] == 1 else f"{own} ({folder.name})"
        for own, folder in zip(labels, folders, strict=True)
    ]
    if len(set(names)) < len(names):
        raise ConfigError(f"--bundle names one twice ({', '.join(names)}); name each once")
    return dict(zip(names, models, strict=True))


def on_small_pages(models: Mapping[str, Model], threads: int) -> dict[str, Model]:
    """The same bundles again, their weights where malloc puts them."""
    return {
        f"{name}, small pages": load(
            model.bundle.path, engine="ort", threads=threads, check_hashes=False, huge_pages=False
        )
        for name, model in models.items()
    }


def planned(arguments: argparse.Namespace, model: Model) -> Plan:
    """What of ``arguments`` fits into the model. Raises ConfigError where no context does."""
    positions = int(model.manifest.text["max_positions"])
    most = int(model.steps["target"].spec.meta["tree_rows"]) + 1
    left_out: list[str] = []

    def kept(sizes: Sequence[int], limit: int, what: str) -> tuple[int, ...]:
        left_out.extend(
            f"{what} {size}: this model takes at most {limit} of its {positions} positions there"
            for size in sizes
            if size > limit
        )
        return tuple(sorted({size for size in sizes if size <= limit}))

    longest = positions - max(STEP_ROWS)
    contexts = kept(arguments.contexts, longest, "context")
    if not contexts:
        raise ConfigError(
            f"--contexts are {arguments.contexts}; this model has {positions} positions, and "
            f"{max(STEP_ROWS)} rows go behind them: name one of at most {longest}"
        )
    at = max((c for c in contexts if c <= CURVE_CONTEXT), default=contexts[0])
    rows = kept([1, *arguments.rows], min(most, positions - at), "rows")
    prompts = kept(arguments.prompts, positions - 1, "prompt")
    return Plan(contexts, rows, at, prompts, tuple(left_out))


def measure(sides: Sequence[Side], reader: Reader, plan: Plan, repeats: int) -> Clocked:
    """``repeats`` counted passes behind one that warms up."""
    rng, names = random.Random(0), [side.name for side in sides]
    clocked = Clocked.of(names)
    for number in range(repeats + 1):
        said = f"pass {number} of {repeats}" if number else "warming up"
        print(f"{said}, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
        found = clocked if number else Clocked.of(names)
        jobs: list[Point | int] = [*plan.points, *plan.prompts]
        for job in rng.sample(jobs, len(jobs)):
            for side in rng.sample(sides, len(sides)):
                turn(side, job, found)
            found.reads.append(reader.read())
    return clocked


def turn(side: Side, job: Point | int, found: Clocked) -> None:
    """A point's steps, or one prompt of as many tokens as ``job`` says."""
    if isinstance(job, int):
        found.prompts[side.name].setdefault(job, []).append(side.first_token(job))
        return
    side.step(job)
    times = found.steps[side.name].setdefault(job, [])
    times += [side.step(job) for _ in range(STEPS)]


def parse(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--bundle", type=Path, action="append", required=True, help="of one model; may be repeated")
    add("--checkpoint", type=Path, help="the model in Hugging Face's format: adds transformers")
    add("--contexts", type=_sizes, default="128,512,1024,2048,4096", help="cached rows")
    add("--rows", type=_sizes, default="1,2,4,8,16,32,64", help="of the verify curve")
    add("--prompts", type=_sizes, default="128,512,2048", help="tokens, for the first token's time")
    add("--small-pages", action="store_true", help="also without huge pages for the weights")
    add("--threads", type=_positive, default=2)
    add("--repeats", type=_positive, default=7, help="passes that count (7)")
    add("--work", type=Path, help="directory for ONNX Runtime's profiles, while they last")
    add("--json", type=Path, help="write all figures there")
    add("--markdown", type=Path, help="write the tables there as well")
    return parser.parse_args(given)


def _positive(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number from 1 on")
    return int(text)


def _sizes(text: str) -> list[int]:
    return [_positive(part) for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
