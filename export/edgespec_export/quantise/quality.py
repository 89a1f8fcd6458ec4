"""What quantisation costs: a target against its own float32 form, on questions.

Perplexity, divergence (Kullback-Leibler, in nats a token) and agreement of the most likely token
are of the float32 target's greedy answers, which the other reads token by token; exact matches are
answers that it writes itself, from the question on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgespec.bundle import Bundle, GraphSpec, Manifest, read_bundle
from edgespec.errors import ConfigError
from edgespec.flavour import Flavour
from edgespec.precisions import Precisions
from edgespec_export.questions import Question, questions_of
from edgespec_runtime.engines import open_engine
from edgespec_runtime.model import Model
from edgespec_runtime.prefill import causal_mask

if TYPE_CHECKING:
    from edgespec_export.exporter import ExportRequest

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
QUESTIONS = 48
"""Where no number was given."""
ANSWER_TOKENS = 160
REFERENCE = Flavour("ort")
RUN_HERE = ("ort", "native", "portable")
"""Lowerings that ONNX Runtime runs on a CPU."""


@dataclass(frozen=True)
class Answered:
    """A question and what the float32 target says to it."""

    question: Question
    tokens: tuple[int, ...]
    logprobs: Doubles
    """[tokens, V], before each token."""


def check_quality(request: ExportRequest) -> None:
    """Raises ConfigError where nothing can be compared."""
    if request.quality is None:
        return
    if request.part != "whole":
        raise ConfigError("--quality runs the target; export a whole bundle, or leave it out")
    if all(f.precision == "fp32" or f.lowering not in RUN_HERE for f in request.flavours):
        raise ConfigError(
            "--quality compares quantised targets that a CPU runs with float32, and none was asked "
            "for; add --precision int8 or int4, or leave it out"
        )


def measured(
    request: ExportRequest, bundle: Bundle, export: Callable[[ExportRequest], Manifest]
) -> Manifest:
    """The bundle's manifest with "quality" among the facts of every target graph. ``export``
    writes the float32 target to compare with, where the bundle does not hold it."""
    assert request.quality is not None
    questions = questions_of(request.quality, QUESTIONS)
    with TemporaryDirectory() as folder:
        whole = bundle
        if REFERENCE not in bundle.manifest.flavours:
            out = Path(folder) / "reference.bundle"
            export(_reference(request, out))
            whole = read_bundle(out, check_hashes=False)
        answered = answers(_model(whole, REFERENCE), questions)
    figures = {
        flavour: compared(_model(bundle, flavour), answered)
        for flavour in bundle.manifest.flavours
        if flavour != REFERENCE and flavour.lowering in RUN_HERE
    }

    def told(spec: GraphSpec) -> GraphSpec:
        found = figures.get(spec.flavour) if spec.role == "target" else None
        return replace(spec, meta={**spec.meta, "quality": found}) if found else spec

    return replace(bundle.manifest, graphs=tuple(map(told, bundle.manifest.graphs)))


def answers(model: Model, questions: Sequence[Question]) -> list[Answered]:
    """What the float32 target says."""
    found = []
    for question in questions:
        pictures = [question.image] if question.image else None
        said = model.generate(
            pictures, question.prompt, draft="none", max_new_tokens=ANSWER_TOKENS, temperature=0.0
        ).token_ids
        found.append(Answered(question, said, _logprobs(_read(model, question, said))))
    return found


def compared(model: Model, answered: Sequence[Answered]) -> dict[str, Any]:
    """The figures of one quantised target."""
    own, theirs, apart, agree, exact, tokens = 0.0, 0.0, 0.0, 0, 0, 0
    for known in answered:
        found, wanted = _logprobs(_read(model, known.question, known.tokens)), known.logprobs
        own += _surprise(found, known.tokens)
        theirs += _surprise(wanted, known.tokens)
        apart += float((np.exp(wanted) * (wanted - found)).sum())
        agree += int((found.argmax(-1) == wanted.argmax(-1)).sum())
        tokens += len(known.tokens)
        pictures = [known.question.image] if known.question.image else None
        said = model.generate(
            pictures,
            known.question.prompt,
            draft="none",
            max_new_tokens=ANSWER_TOKENS,
            temperature=0.0,
        )
        exact += said.token_ids == known.tokens
    return {
        "against": str(REFERENCE),
        "questions": len(answered),
        "tokens": tokens,
        "perplexity": round(float(np.exp(own / tokens)), 5),
        "reference_perplexity": round(float(np.exp(theirs / tokens)), 5),
        "divergence": round(apart / tokens, 6),
        "agreement": round(agree / tokens, 5),
        "exact_match": round(exact / len(answered), 4),
    }


def _read(model: Model, question: Question, tokens: Sequence[int]) -> Floats:
    """Logits [tokens, V] before each of ``tokens``, which follow the question, all in one call."""
    pictures = [question.image] if question.image else []
    embeds = model.prompt_embeds(pictures, question.prompt)
    rows = np.concatenate([embeds, model.tables["target"][list(tokens[:-1])]])
    session = model.steps["target"].open(len(rows))
    (logits,) = session.step(rows, np.arange(len(rows)), causal_mask(0, len(rows)))
    return np.array(logits[len(embeds) - 1 :])


def _logprobs(logits: Floats) -> Doubles:
    scores: Doubles = logits.astype(np.float64)
    scores -= scores.max(-1, keepdims=True)
    scores -= np.log(np.exp(scores).sum(-1, keepdims=True))
    return scores


def _surprise(logprobs: Doubles, tokens: Sequence[int]) -> float:
    """Minus the sum of the tokens' log-probabilities."""
    return -float(logprobs[np.arange(len(tokens)), list(tokens)].sum())


def _model(bundle: Bundle, flavour: Flavour) -> Model:
    """The target of a flavour alone."""
    only = bundle.only(flavour)
    roles = ("vision", "projector", "target")
    graphs = tuple(g for g in only.manifest.graphs if g.role in roles)
    alone = replace(only, manifest=replace(only.manifest, graphs=graphs))
    return Model(alone, open_engine("ort"))


def _reference(request: ExportRequest, out: Path) -> ExportRequest:
    return replace(
        request, out=out, flavours=(REFERENCE,), draft=None, compressor=None, draft_variant=None,
        draft_vocab=None, sessions=0, parity=False, overwrite=False, configs=False,
        precisions=Precisions(), calibration=None, quality=None, resume=False,
    )  # fmt: skip
