"""``edgespec frequencies``: which tokens a target emits, for drafts with a trimmed vocabulary."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgespec.cli.common import add_command, add_config, note, positive_int, print_json
from edgespec.errors import ConfigError

if TYPE_CHECKING:
    from edgespec_export.frequencies import Counted

SMALLEST = 256


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser = add_command(
        subparsers,
        "frequencies",
        "Count which tokens a target emits, so that a draft's output head can leave out the rest.",
        "edgespec frequencies --bundle llava.bundle --data questions.jsonl --out tokens.json",
    )
    parser.add_argument(
        "--tokenizer", metavar="DIR", help="checkpoint whose tokenizer reads --corpus"
    )
    parser.add_argument(
        "--corpus",
        action="extend",
        nargs="+",
        default=[],
        metavar="FILE",
        help="text files, one document a line",
    )
    parser.add_argument("--bundle", metavar="BUNDLE", help="its target answers --data, greedily")
    parser.add_argument(
        "--data",
        metavar="FILE",
        help="questions as JSON lines (id, image, turns, category, topic), images relative to it",
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="JSON file to write")
    parser.add_argument("--limit", type=positive_int, metavar="N", help="first N documents or rows")
    parser.add_argument(
        "--max-new-tokens", type=positive_int, metavar="N", help="length limit of an answer"
    )
    parser.add_argument(
        "--threads", type=int, default=0, metavar="N", help="engine threads (default: all cores)"
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    add_config(parser)
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    from edgespec_export.vocabulary import write_frequencies

    texts = (arguments.tokenizer, arguments.corpus)
    answers = (arguments.bundle, arguments.data)
    if not (all(texts) and not any(answers) or all(answers) and not any(texts)):
        raise ConfigError("give either --tokenizer and --corpus, or --bundle and --data")
    out = Path(arguments.out)
    if out.is_dir() or not out.parent.is_dir():  # found out now, not after an hour of counting
        raise ConfigError(f"'{out}' cannot be written; give a file in an existing directory")
    counted = _count_texts(arguments) if all(texts) else _count_answers(arguments)
    ids = write_frequencies(out, counted.vocab_size, counted.counts, counted.eos_ids)
    report(counted, ids, out, arguments.json)
    return 0


def _count_texts(arguments: argparse.Namespace) -> Counted:
    from tqdm import tqdm

    from edgespec_export.frequencies import count_texts

    files = [Path(file) for file in arguments.corpus]
    size = sum(file.stat().st_size for file in files if file.is_file())
    with tqdm(total=size, unit="B", unit_scale=True, disable=None, leave=False) as bar:
        return count_texts(arguments.tokenizer, files, arguments.limit, bar.update)


def _count_answers(arguments: argparse.Namespace) -> Counted:
    from tqdm import tqdm

    import edgespec_runtime
    from edgespec_export.frequencies import count_answers
    from edgespec_export.questions import read_questions

    questions = read_questions([Path(arguments.data)], arguments.limit)
    model = edgespec_runtime.load(arguments.bundle, threads=arguments.threads)
    with tqdm(total=len(questions), unit="answer", disable=None, leave=False) as bar:
        return count_answers(model, questions, arguments.max_new_tokens, bar.update)


def coverage(counted: Counted, ids: list[int]) -> dict[str, float]:
    """Share of all tokens seen that the 256, 512, 1024, ... most frequent ids make up."""
    seen = sum(counted.counts.values())
    shares = {}
    size = SMALLEST
    while True:
        covered = sum(counted.counts.get(token, 0) for token in ids[:size])
        shares[str(size)] = covered / seen
        if size >= len(ids):
            return shares
        size *= 2


def report(counted: Counted, ids: list[int], out: Path, as_json: bool) -> None:
    """How much the most frequent ids cover, or one JSON object."""
    seen = sum(counted.counts.values())
    shares = coverage(counted, ids)
    if as_json:
        print_json(
            {"out": str(out), "vocab_size": counted.vocab_size, "documents": counted.documents,
             "tokens_seen": seen, "ids": len(ids), "coverage": shares}
        )  # fmt: skip
        return
    for size, share in shares.items():
        note(f"  {size:>8} most frequent ids: {share:7.2%} of all tokens")
    print(
        f"wrote {out} ({len(ids)} of {counted.vocab_size} ids, seen in {seen} tokens of "
        f"{counted.documents} documents)"
    )
