"""What is asked: texts from a JSON-lines file, as token ids of the checkpoint's own tokenizer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from edgespec_export.assets import read_assets
from edgespec_export.checkpoint import open_checkpoint
from edgespec_export.configuration import read_model
from edgespec_runtime.prompt import build_prompt
from edgespec_runtime.template import ChatTemplate
from edgespec_runtime.tokenizer import Tokenizer

BUILT_IN = Path(__file__).with_name("prompts.jsonl")


@dataclass(frozen=True)
class Question:
    """One prompt, as every peer gets it."""

    name: str
    ids: tuple[int, ...]


def read_prompts(file: Path, checkpoint: Path) -> tuple[list[Question], list[int]]:
    """(questions, ids that end a text). Lines hold ``name`` and ``text``; the checkpoint's chat
    template is applied where it has one. Raises InputError for a checkpoint that edgespec does not
    take."""
    opened = open_checkpoint(checkpoint)
    assets = read_assets(opened, read_model(opened.config))
    tokenizer = Tokenizer(
        checkpoint / "tokenizer.json", special_tokens=assets.text["special_tokens"]
    )
    template = ChatTemplate.from_source(assets.chat_template)
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]

    def ids(text: str) -> tuple[int, ...]:
        adds: bool = assets.text["adds_special_tokens"]
        prompt = build_prompt(text, 0, template, tokenizer, image=None, adds_special_tokens=adds)
        return tuple(prompt.ids.tolist())

    return [Question(row["name"], ids(row["text"])) for row in lines], list(
        assets.generation["eos_token_ids"]
    )
