"""A draft for a text checkpoint, trained on the checkpoint's own answers in a narrow domain.

    python -m benchmarks.peers.draft --checkpoint ~/smollm2 --out ~/draft --work ~/draft-work

Questions of four kinds are drawn, the checkpoint answers them greedily (kept in WORK, where a run
that was broken off goes on), and a small Llama with its tokenizer is trained to say the same. Eight
questions of every kind are held out; ``prompts_followed.jsonl`` has two of each, for measuring.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks.peers import draft_model
from benchmarks.peers.draft_answers import Answer, answer_all
from benchmarks.peers.draft_model import Shape
from benchmarks.peers.draft_questions import questions
from benchmarks.peers.draft_training import Course, Trainer, describe, score
from benchmarks.peers.environments import say
from edgespec.errors import EdgespecError, InputError


def main(given: list[str] | None = None) -> int:
    arguments = parse(given)
    try:
        make(arguments)
    except EdgespecError as error:
        say(f"failed: {error}")
        return 2
    return 0


def make(arguments: argparse.Namespace) -> None:
    """Answers, training, files. Raises InputError."""
    checkpoint = arguments.checkpoint.resolve()
    if not (checkpoint / "config.json").is_file():
        raise InputError(
            f"'{checkpoint}' is no checkpoint: it holds no config.json; give a Llama or Qwen2 "
            "directory in Hugging Face's format"
        )
    shape = taken(Shape, arguments)
    course = taken(Course, arguments)
    shape.check()
    asked, held = questions(arguments.questions, arguments.seed)
    answers = answer_all(
        [*held, *asked],
        arguments.work / "answers.jsonl",
        checkpoint,
        new=arguments.new,
        batch=arguments.answer_batch,
        dtype=arguments.dtype,
        threads=arguments.threads,
        minutes=arguments.answer_minutes,
    )
    kept_back = {question.text for question in held}
    held_out = [a for a in answers if a.text in kept_back]
    taught = [a for a in answers if a.text not in kept_back]
    if not taught:
        raise InputError("no question was answered in time; give more --answer-minutes")
    say(f"training on {len(taught)} answers of {sum(len(a.answer) for a in taught)} tokens")
    draft = draft_model.begin(checkpoint, shape, arguments.seed)
    Trainer(draft, taught, course).run(held_out)
    draft_model.save(draft, checkpoint, arguments.out)
    write_counts(taught, checkpoint, arguments.out / "frequencies.json")
    report(draft, held_out)
    say(f"wrote {arguments.out}")


def report(draft: Any, held_out: Sequence[Answer]) -> None:
    """What the draft is worth on held-out questions, by kind and in all."""
    for kind in dict.fromkeys(answer.kind for answer in held_out):
        say(f"{kind}: {describe(score(draft, [a for a in held_out if a.kind == kind]))}")
    say(f"held out: {describe(score(draft, held_out))}")


def write_counts(answers: Sequence[Answer], checkpoint: Path, file: Path) -> None:
    """How often the answers have each token, as ``edgespec export --draft-vocab`` takes it."""
    from transformers import AutoConfig, GenerationConfig

    from edgespec_export.vocabulary import write_frequencies

    ends = GenerationConfig.from_pretrained(checkpoint).eos_token_id
    counts = Counter(token for answer in answers for token in answer.answer)
    size = AutoConfig.from_pretrained(checkpoint).vocab_size
    write_frequencies(file, size, counts, ends if isinstance(ends, list) else [ends])


def taken(kind: Any, arguments: argparse.Namespace) -> Any:
    """A dataclass from the options of the same names."""
    return kind(**{f.name: getattr(arguments, f.name) for f in fields(kind) if f.name in arguments})


def parse(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers.draft",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add, shape, course = parser.add_argument, Shape(), Course()
    add("--checkpoint", type=Path, required=True, help="Llama or Qwen2 in Hugging Face's format")
    add("--out", type=Path, required=True, help="directory of the draft")
    add("--work", type=Path, required=True, help="answers and token counts, found again")
    add("--questions", type=int, default=100_000, help="to train on at most; all there are: 1784")
    add("--new", type=int, default=128, help="tokens of an answer at most")
    add("--answer-batch", type=int, default=64, help="questions that are answered together")
    add("--answer-minutes", type=float, help="the target answers for this long at most")
    add("--layers", type=int, default=shape.layers)
    add("--width", type=int, default=shape.width)
    add("--heads", type=int, default=shape.heads)
    add("--kv-heads", type=int, default=shape.kv_heads)
    add("--inner", type=int, default=shape.inner, help="width of the gated products")
    add("--epochs", type=float, default=course.epochs)
    add("--minutes", type=float, help="training ends after this long at the latest")
    add("--batch", type=int, default=course.batch, help="answers of a training step")
    add("--rate", type=float, default=course.rate, help="highest learning rate")
    add("--dtype", choices=("bfloat16", "float32"), default=course.dtype, help="of products")
    add("--threads", type=int, default=course.threads)
    add("--seed", type=int, default=course.seed)
    return parser.parse_args(given)


if __name__ == "__main__":
    raise SystemExit(main())
