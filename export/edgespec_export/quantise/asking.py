"""Questions with their answers as rows that enter a target's first layer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from edgespec.errors import InputError
from edgespec_export.assets import Assets
from edgespec_export.geometry import LlavaGeometry
from edgespec_export.graphs.vision import build_projector, build_vision
from edgespec_export.lowerings.ort import OrtLowering
from edgespec_export.plan import Model
from edgespec_export.precision import FP32
from edgespec_export.quantise.matrix import Floats
from edgespec_export.questions import Question
from edgespec_runtime.inputs import splice
from edgespec_runtime.prompt import ImageMark, Prompt, build_prompt
from edgespec_runtime.template import ChatTemplate
from edgespec_runtime.tokenizer import Tokenizer
from edgespec_runtime.vision import preprocess

EMBEDDING = "text.embed_tokens.weight"


def calibration_rows(model: Model, assets: Assets, questions: Sequence[Question]) -> list[Floats]:
    """[S, H] of every question: its prompt, its picture's visual tokens inside, and its answer
    where there is one. Raises InputError for a picture that a text model cannot see."""
    with TemporaryDirectory() as folder:
        prompts = list(_prompts(model, assets, questions, Path(folder)))
        pictures = _visual_tokens(model, questions, Path(folder))
        table = model.checkpoint.tensor(EMBEDDING)
        return [
            splice(prompt.ids, prompt.image_spans, table, visual)
            for prompt, visual in zip(prompts, pictures, strict=True)
        ]


def _prompts(
    model: Model, assets: Assets, questions: Sequence[Question], folder: Path
) -> Iterator[Prompt]:
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(assets.tokenizer, ensure_ascii=False), encoding="utf-8")
    text = assets.text
    tokenizer = Tokenizer(file, special_tokens=text["special_tokens"])
    template = ChatTemplate.from_source(assets.chat_template)
    image = None
    if "image_token" in text:
        image = ImageMark(text["image_token"], text["image_token_id"], text["visual_tokens"])
    for question in questions:
        pictures = [{"type": "image"}] if question.image else []
        said = [*pictures, {"type": "text", "text": question.prompt}]
        messages: list[dict[str, object]] = [{"role": "user", "content": said}]
        if question.answer:
            answer = [{"type": "text", "text": question.answer}]
            messages.append({"role": "assistant", "content": answer})
        yield build_prompt(
            messages,
            len(pictures),
            template,
            tokenizer,
            image=image,
            adds_special_tokens=text.get("adds_special_tokens"),
            max_context=int(text["max_positions"]),
        )


def _visual_tokens(
    model: Model, questions: Sequence[Question], folder: Path
) -> Iterator[Floats | None]:
    """[1, P, H] of every question's picture."""
    import onnxruntime

    geometry = model.geometry
    if not isinstance(geometry, LlavaGeometry):
        seeing = next((question for question in questions if question.image), None)
        if seeing is not None:
            raise InputError(f"{seeing.where} has a picture, but the target reads text alone")
        yield from [None] * len(questions)
        return
    lowering = OrtLowering(FP32)
    build_vision(model.checkpoint, geometry, lowering).save(folder, "vision")
    build_projector(model.checkpoint, geometry, lowering, "projector").save(folder, "projector")
    tower, projector = (
        onnxruntime.InferenceSession(
            str(folder / f"{name}.onnx"), providers=["CPUExecutionProvider"]
        )
        for name in ("vision", "projector")
    )
    assert model.processor is not None
    for question in questions:
        if question.image is None:
            yield None
            continue
        pixels = preprocess([question.image], model.processor)
        (features,) = tower.run(["features"], {"pixel_values": pixels})
        (embeds,) = projector.run(["image_embeds"], {"features": features})
        yield np.asarray(embeds)
