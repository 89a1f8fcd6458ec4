"""The built-in family on the card: real weights, real texts, token for token."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu_question import Question, question_of
from benchmarks.gpu_rig import Rig, export_flavours, open_model
from benchmarks.gpu_transformers import HALF, SINGLE, Reference, flips
from benchmarks.gpu_truth import difference
from edgespec.errors import EdgespecError
from edgespec.flavour import Flavour
from edgespec_export.family import checkpoint_path, export_request, sample_folder
from edgespec_runtime.bench.data import read_sets, select
from edgespec_runtime.model import Model

FLAVOURS = ("ort:fp32", "native:fp32", "cuda:fp16", "native:fp16", "portable:fp16")
TASKS = ("detailed", "naming")
DRAFTED = "a chain of twelve, the policy where there is no profile"
PROMPTS, REPEATS = 2, 2
"""Prompts of each task; repeats of each behind one that warms up."""


@dataclass
class Side:
    """One prompt, plain or speculative, on one engine."""

    tokens: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    """Tokens of every round after the prefill."""
    ms: list[float] = field(default_factory=list)
    """After the first token, of every repeat."""
    host_ms: list[float] = field(default_factory=list)
    """Per round."""

    @property
    def median_ms(self) -> float:
        return statistics.median(self.ms)


def builtin(rig: Rig, figures: dict[str, Any]) -> None:
    """Every flavour on the card against ONNX Runtime's CPU engine and against transformers."""
    with tempfile.TemporaryDirectory() as folder:
        request = export_request("draft", Path(folder) / "builtin.bundle")
        flavours = tuple(map(Flavour.parse, FLAVOURS))
        written, refused = export_flavours(request, flavours)
        here = open_model(request.out, written[0], "ort", threads=2)
        rows = select(read_sets([sample_folder() / "in_domain.jsonl"]), TASKS, PROMPTS)
        rows = [row for row in rows if len(row.turns) == 1]
        questions = [question_of(here, row.turns[0], row.images[0]) for row in rows]
        truth = [_run(here, question, "none", 0) for question in questions]
        traces = [
            _run(here, question, "auto", 0)
            for row, question in zip(rows, questions, strict=True)
            if row.task == TASKS[0]
        ]
        figures |= {
            "prompts": [row.id for row in rows],
            "trace": [tokens for side in traces for tokens in side.accepted],
            "trace_of": f"long descriptions on the CPU, {DRAFTED}",
            "refused": refused,
        }
        theirs = Texts.of(rig.device, questions, [side.tokens for side in truth])
        figures["transformers"] = theirs.figures
        for flavour in written:
            rig.clock.need(10)
            try:
                model = open_model(request.out, flavour, rig.engine)
                figures[str(flavour)] = _flavour(model, questions, truth, theirs)
            except EdgespecError as error:
                figures[str(flavour)] = {"error": str(error)}


@dataclass
class Texts:
    """What transformers says to the questions on the card, in both precisions."""

    single: list[list[int]]
    half: Reference
    figures: dict[str, Any]

    @classmethod
    def of(cls, device: str, questions: Sequence[Question], truth: Sequence[list[int]]) -> Texts:
        checkpoint = checkpoint_path("target")
        single = Reference(checkpoint, device, SINGLE)
        texts = [
            single.generate(question, len(tokens), ends=True)
            for question, tokens in zip(questions, truth, strict=True)
        ]
        longest = max(range(len(truth)), key=lambda i: len(truth[i]))
        speed = single.clock(questions[longest], len(truth[longest]))
        single.close()
        equal = sum(a == b for a, b in zip(texts, truth, strict=True))
        figures = {"fp32_equal_to_cpu": f"{equal} of {len(texts)}", "fp32_speed": speed}
        return cls(texts, Reference(checkpoint, device, HALF), figures)


def _flavour(
    model: Model, questions: Sequence[Question], truth: Sequence[Side], theirs: Texts
) -> dict[str, Any]:
    plain = [_run(model, question, "none", REPEATS) for question in questions]
    drafted = [_run(model, question, "auto", REPEATS) for question in questions]
    count = len(questions)
    pairs = list(zip(questions, plain, drafted, strict=True))
    exact = model.manifest.flavours[0].precision == "fp32"
    same = sum(p.tokens == d.tokens for _, p, d in pairs)
    ratios = [p.median_ms / d.median_ms for _, p, d in pairs if len(p.tokens) > 8]
    figures: dict[str, Any] = {
        "speculative_equal_to_plain": f"{same} of {count}",
        "equal_to_cpu_fp32": f"{_equal(plain, [side.tokens for side in truth])} of {count}",
        "equal_to_transformers_fp32": f"{_equal(plain, theirs.single)} of {count}",
        "parting": [
            difference(model, question, {}, p.tokens, d.tokens)
            for question, p, d in pairs
            if p.tokens != d.tokens
        ],
        "plain_tokens_per_s": _speed(plain),
        "speculative_tokens_per_s": _speed(drafted),
        "speedup_decode": round(statistics.median(ratios), 3),
        "accepted_length": round(
            sum(sum(d.accepted) for d in drafted) / sum(len(d.accepted) for d in drafted), 3
        ),
        "host_ms_per_plain_round": _host(plain),
        "host_ms_per_speculative_round": _host(drafted),
    }
    if not exact:
        figures["against_transformers_fp16"] = [
            flips(p.tokens, theirs.half.logits_along(question, p.tokens))
            for question, p, _ in pairs
        ]
    return figures


def _run(model: Model, question: Question, draft: str, repeats: int) -> Side:
    side = Side()
    for repeat in range(repeats + 1):
        rounds: list[int] = []
        request = model.stream([question.image], question.text, draft=draft)
        request.listen(lambda r, seen=rounds: seen.append(len(r.tokens)))  # type: ignore[misc]
        side.tokens = [record.token for record in request]
        side.accepted = rounds[1:]
        stats = request.stats
        if repeat or not repeats:
            side.ms.append(stats.total_ms - stats.ttft_ms)
            side.host_ms.append(stats.host_ms / max(stats.rounds, 1))
    return side


def _equal(sides: Sequence[Side], texts: Sequence[Sequence[int]]) -> int:
    return sum(side.tokens == list(text) for side, text in zip(sides, texts, strict=True))


def _speed(sides: Sequence[Side]) -> float:
    tokens = sum(len(side.tokens) - 1 for side in sides)
    return round(1e3 * tokens / sum(side.median_ms for side in sides), 1)


def _host(sides: Sequence[Side]) -> float:
    return round(statistics.median(ms for side in sides for ms in side.host_ms), 4)
