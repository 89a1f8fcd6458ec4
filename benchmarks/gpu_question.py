"""A prompt with a picture in every form in which somebody wants it; the target led along a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec_runtime.inputs import VisualInputs, splice
from edgespec_runtime.loading import processors_of
from edgespec_runtime.model import Model
from edgespec_runtime.prefill import causal_mask, prefill
from edgespec_runtime.prompt import ImageMark, Prompt, build_prompt
from edgespec_runtime.template import ChatTemplate
from edgespec_runtime.vision import preprocess

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Question:
    """A prompt with one picture, in every form in which somebody wants it."""

    text: str
    image: Any
    prompt: Prompt
    pixels: Floats
    embeds: Floats
    """[L, H], as the target takes it in."""

    @property
    def ids(self) -> list[int]:
        ids: list[int] = self.prompt.ids.tolist()
        return ids


def question_of(model: Model, text: str, image: Any) -> Question:
    """What ``model`` makes of a text behind a picture."""
    facts, bundle = model.manifest.text, model.bundle
    template = bundle.file("chat_template.jinja").read_text(encoding="utf-8")
    prompt = build_prompt(
        text, 1, ChatTemplate.from_source(template), model.tokenizer,
        image=ImageMark(facts["image_token"], facts["image_token_id"], facts["visual_tokens"]),
    )  # fmt: skip
    processor = processors_of(bundle)[0]
    assert processor is not None
    pixels = preprocess([image], processor)
    seen = VisualInputs(dict(model.graphs), pixels, None).target
    embeds = splice(prompt.ids, prompt.image_spans, model.tables["target"], seen)
    return Question(text, image, prompt, pixels, embeds)


def logits_along(model: Model, question: Question, tokens: Sequence[int]) -> Floats:
    """[len(tokens), V]: what the target says where each of ``tokens`` stands, led along them."""
    session = model.steps["target"].open(len(question.embeds) + len(tokens) + 1, ("logits",))
    outputs, _ = prefill(session, question.embeds)
    found = [np.array(outputs[0])]
    behind = model.tables["target"][list(tokens[:-1])]
    if len(behind):
        start = session.cache.length
        positions = range(start, start + len(behind))
        found.append(np.array(session.step(behind, positions, causal_mask(start, len(behind)))[0]))
    return np.concatenate(found)
