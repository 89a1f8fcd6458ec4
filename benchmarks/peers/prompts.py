"""What is asked: texts from a JSON-lines file, as token ids of the checkpoint's own tokenizer, and
for a LLaVA the pictures that they are about."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgespec.errors import PromptError
from edgespec_export.assets import Assets, read_assets
from edgespec_export.checkpoint import open_checkpoint
from edgespec_export.configuration import read_model
from edgespec_runtime.images import load_image
from edgespec_runtime.prompt import ImageMark, build_prompt
from edgespec_runtime.template import ChatTemplate
from edgespec_runtime.tokenizer import Tokenizer
from edgespec_runtime.vision import ImageProcessor

TEXTS = Path(__file__).with_name("prompts.jsonl")
PICTURES = Path(__file__).with_name("prompts_pictures.jsonl")


@dataclass(frozen=True)
class Picture:
    """A question's picture, in every form that a peer may take."""

    array: Path
    """uint8 [H, W, 3] in numpy's format: decoded, upright, RGB."""
    pixels: Path
    """float32 [1, 3, h, w] in numpy's format: as the checkpoint's own processor makes them."""
    text: str
    """The prompt as the chat template wrote it, with one mark in the picture's place."""
    mark: str
    mark_id: int


@dataclass(frozen=True)
class Question:
    """One prompt, as every peer gets it."""

    name: str
    ids: tuple[int, ...]
    """With as many of the mark's ids as the picture has visual tokens."""
    picture: Picture | None = None


def read_prompts(
    file: Path | None, checkpoint: Path, arrays: Path
) -> tuple[list[Question], list[int]]:
    """(questions, ids that end a text). Lines hold ``name`` and ``text``, and for a LLaVA
    ``image``, a path relative to the file; None stands for the built-in ones. The checkpoint's
    chat template is applied where it has one. Pictures are written below ``arrays``.

    Raises InputError for a checkpoint that edgespec does not take, or a file that does not fit it.
    """
    opened = open_checkpoint(checkpoint)
    assets = read_assets(opened, read_model(opened.config))
    sees = assets.processor is not None
    file = file or (PICTURES if sees else TEXTS)
    asker = _Asker(checkpoint, assets, arrays)
    questions = [asker.question(row, file.parent) for row in _rows(file, sees)]
    return questions, list(assets.generation["eos_token_ids"])


class _Asker:
    """Makes questions for one checkpoint."""

    def __init__(self, checkpoint: Path, assets: Assets, arrays: Path) -> None:
        text = assets.text
        self._adds: bool | None = text.get("adds_special_tokens")
        self._tokenizer = Tokenizer(
            checkpoint / "tokenizer.json", special_tokens=text["special_tokens"]
        )
        self._template = ChatTemplate.from_source(assets.chat_template)
        self._processor = self._mark = None
        if assets.processor is not None:
            self._processor = ImageProcessor.from_config(assets.processor)
            self._mark = ImageMark(
                text["image_token"], text["image_token_id"], text["visual_tokens"]
            )
        self._arrays = arrays

    def question(self, row: dict[str, str], folder: Path) -> Question:
        prompt = build_prompt(
            row["text"], int("image" in row), self._template, self._tokenizer,
            image=self._mark, adds_special_tokens=self._adds,
        )  # fmt: skip
        picture = self._picture(row, folder, prompt.text) if "image" in row else None
        return Question(row["name"], tuple(prompt.ids.tolist()), picture)

    def _picture(self, row: dict[str, str], folder: Path, text: str) -> Picture:
        assert self._processor is not None and self._mark is not None
        image = load_image(folder / row["image"])
        self._arrays.mkdir(parents=True, exist_ok=True)
        stem = row["name"].replace("/", "-")
        array, pixels = self._arrays / f"{stem}.npy", self._arrays / f"{stem}-pixels.npy"
        np.save(array, np.asarray(image))
        np.save(pixels, self._processor(image)[None])
        return Picture(array.resolve(), pixels.resolve(), text, self._mark.token, self._mark.id)


def _rows(file: Path, sees: bool) -> Iterator[dict[str, str]]:
    """The file's lines, each with what a question needs."""
    needed = ("name", "text", *(["image"] if sees else []))
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"cannot read the prompts {file}: {error}") from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _row(line, needed, f"{file}, line {number}")


def _row(line: str, needed: tuple[str, ...], where: str) -> dict[str, str]:
    try:
        row: Any = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in needed):
        named = ", ".join(f'"{key}"' for key in needed)
        raise PromptError(f"{where}: this checkpoint's questions are objects with {named}")
    return row
