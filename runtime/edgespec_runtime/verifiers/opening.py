"""What a request asks of its target, and a verifier for it on this device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgespec.bundle import GraphSpec
from edgespec.sampling import Sampler
from edgespec_runtime.engines.base import StepGraph
from edgespec_runtime.inputs import VisualInputs, splice
from edgespec_runtime.prompt import Prompt
from edgespec_runtime.verifiers.local import LocalVerifier

if TYPE_CHECKING:
    from edgespec_runtime.images import ImageSource


@dataclass(frozen=True, eq=False)
class Question:
    """One request, as its target sees it."""

    prompt: Prompt
    pictures: Sequence[ImageSource]
    visual: VisualInputs
    """The pictures' visual tokens, for whoever computes them here."""
    sampler: Sampler
    max_new_tokens: int
    max_nodes: int
    """Of a tree."""
    levels: int
    """Of a tree."""
    features: bool
    """Whether verdicts are to carry the target's features."""


def open_here(step: StepGraph, table: npt.NDArray[np.float32], question: Question) -> LocalVerifier:
    """The target on this device, with a fresh cache."""
    prompt, visual = question.prompt, question.visual
    capacity = len(prompt.ids) + question.max_new_tokens + question.max_nodes + 1
    named = names_best(step.spec, question.sampler)
    return LocalVerifier(
        step.open(capacity, target_outputs(named, question.features)),
        table,
        lambda: splice(prompt.ids, prompt.image_spans, table, visual.target),
        prompt.ids.tolist(),
        question.sampler,
        features=question.features,
        named=named,
    )


def names_best(spec: GraphSpec, sampler: Sampler) -> bool:
    """Whether a target graph's own arg-max is all that ``sampler`` needs, so that no logits need
    leave the engine."""
    return sampler.plain_argmax and any(tensor.name == "best_ids" for tensor in spec.outputs)


def target_outputs(named: bool, features: bool) -> tuple[str, ...]:
    """What a target's session is opened with for a ``LocalVerifier``."""
    first = ("best_ids", "best_logits") if named else ("logits",)
    return (*first, "hidden") if features else first
