"""Measure the family: does the target look, and does the draft guess the target's words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from edgespec_export.family import models, sentences, train
from edgespec_export.family.generate import decode
from edgespec_export.family.models import Llava
from edgespec_export.family.packing import IGNORE, Conversation, Packed, Row, Writer, pack
from edgespec_export.family.scenes import Scene, SpriteBank, render, sample_scene

ROWS = 64


@dataclass(frozen=True)
class Question:
    """One prompt about one picture ([side, side, 3] uint8) and the right answer."""

    image: torch.Tensor
    prompt: str
    answer: str


@dataclass(frozen=True)
class Drafting:
    """How well the draft guesses the target's greedy text.

    `agreement`: share of tokens whose top-1 guess is right. `accepted`: mean tokens per round for a
    chain of `depth`, with the bonus token.
    """

    agreement: float
    accepted: float
    depth: int
    tokens: int


def questions(file: Path, task: str) -> list[Question]:
    """The single-turn questions of one task in a sample file."""
    found: list[Question] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if entry["category"] != task or len(entry["turns"]) != 1:
            continue
        image = np.asarray(Image.open(file.parent / entry["image"]).convert("RGB"))
        prompt, answer = entry["turns"][0], entry["answers"][0]
        found.append(Question(torch.from_numpy(image.copy()), prompt, answer))
    return found


def fresh(bank: SpriteBank, *, seed: int, scenes: int) -> list[Question]:
    """Naming questions about newly composed scenes, one in each wording in turn."""
    found: list[Question] = []
    for index in range(scenes):
        rng = np.random.default_rng([seed, 10, index])
        scene = sample_scene(rng)
        image = torch.from_numpy(render(scene, bank, rng).copy())
        for placed in scene.objects[:2]:
            exchange = sentences.naming(scene, placed.cell)[index % 4]
            found.append(Question(image, exchange.prompt, exchange.answer))
    return found


def long_questions(bank: SpriteBank, *, seed: int, scenes: int) -> list[Question]:
    """Requests for long descriptions of newly composed scenes."""
    found: list[Question] = []
    for index in range(scenes):
        rng = np.random.default_rng([seed, 11, index])
        scene: Scene = sample_scene(rng)
        image = torch.from_numpy(render(scene, bank, rng).copy())
        exchange = sentences.detailed(scene, rng)
        found.append(Question(image, exchange.prompt, exchange.answer))
    return found


def blank(asked: Sequence[Question]) -> list[Question]:
    """The same questions about grey pictures."""
    return [Question(torch.full_like(q.image, 127), q.prompt, q.answer) for q in asked]


def shuffled(asked: Sequence[Question]) -> list[Question]:
    """The same questions, each about the picture of a question far away."""
    half = len(asked) // 2
    return [
        Question(asked[(i + half) % len(asked)].image, q.prompt, q.answer)
        for i, q in enumerate(asked)
    ]


def answers(
    model: Llava,
    writer: Writer,
    asked: Sequence[Question],
    *,
    limit: int = 16,
    device: str = "cpu",
) -> list[list[int]]:
    """Greedy answers as token ids."""
    model.eval()
    found: list[list[int]] = []
    for start in range(0, len(asked), ROWS):
        some = asked[start : start + ROWS]
        images = torch.stack([q.image for q in some]).to(device)
        found += decode(model, writer, images, [q.prompt for q in some], limit=limit)
    return found


def exact(
    model: Llava,
    writer: Writer,
    asked: Sequence[Question],
    *,
    limit: int = 16,
    device: str = "cpu",
) -> float:
    """The share of questions that are answered exactly right."""
    heard = answers(model, writer, asked, limit=limit, device=device)
    right = [
        writer.tokenizer.decode(ids).strip() == q.answer
        for ids, q in zip(heard, asked, strict=True)
    ]
    return sum(right) / len(right)


@torch.no_grad()
def drafting(
    target: Llava,
    draft: Llava,
    wide: Writer,
    narrow: Writer,
    asked: Sequence[Question],
    *,
    depth: int = 8,
    limit: int = 200,
    device: str = "cpu",
) -> Drafting:
    """Compare the draft's guesses with the target's greedy texts, given the target's prefix."""
    spoken = answers(target, wide, asked, limit=limit, device=device)
    right = total = rounds = 0
    for question, ids in zip(asked, spoken, strict=True):
        said = [*ids, wide.words.eos]
        begin = wide.prompt(question.prompt, images=1)
        conversation = Conversation((*begin, *said), (*[False] * len(begin), *[True] * len(said)))
        packed: Packed = pack([Row(narrow.prefix(1), (conversation,))], narrow.words.pad)
        visual = models.visual_tokens(
            draft, question.image[None].to(device), tokens=narrow.visual_tokens
        )
        states = train.hidden_states(draft, visual.flatten(0, 1), packed, narrow.words.image)
        guesses = draft.lm_head(states).argmax(-1).cpu()
        match = (guesses == packed.labels[packed.labels != IGNORE]).tolist()
        right += sum(match)
        total += len(match)
        rounds += _rounds(match, depth)
    return Drafting(right / total, total / rounds, depth, total)


def _rounds(match: Sequence[bool], depth: int) -> int:
    """Rounds that a text takes when chains of `depth` are accepted up to the first wrong guess."""
    at = rounds = 0
    while at < len(match):
        accepted = 0
        while accepted < depth and at + accepted < len(match) and match[at + accepted]:
            accepted += 1
        at += accepted + 1
        rounds += 1
    return rounds
