"""What one step of training reads: conversations about scenes, packed, and their pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from edgespec_export.family import sentences
from edgespec_export.family.grounding import Gaze, Glossary
from edgespec_export.family.packing import Conversation, Packed, Row, Writer, pack
from edgespec_export.family.scenes import Scene, SpriteBank, patch_labels, render, sample_scene


@dataclass(frozen=True)
class Lesson:
    """One step's data: packed rows, their pictures in order, extra pictures for the tower."""

    packed: Packed
    images: NDArray[np.uint8]
    patches: NDArray[np.int64]
    gaze: Gaze | None = None


@dataclass(frozen=True)
class Size:
    """Rows per step, tokens per row, and additional dense pictures for the patch loss."""

    rows: int = 7
    tokens: int = 304
    dense: int = 24
    detailed: float = 0.8
    naming: float = 0.44


def fill(prefix: tuple[int, ...], first: list[Conversation], more: object, budget: int) -> Row:
    """A row of conversations from `first` and then from calls of `more` while they fit."""
    assert callable(more)
    chosen: list[Conversation] = []
    used = len(prefix)
    misses = 0
    while misses < 3:
        conversation: Conversation = first.pop(0) if first else more()
        if used + len(conversation.ids) <= budget:
            chosen.append(conversation)
            used += len(conversation.ids)
        else:
            misses += 1
    return Row(prefix, tuple(chosen))


def scene_row(writer: Writer, scene: Scene, rng: Generator, size: Size) -> Row:
    """Conversations about one picture: mostly one long description and several questions."""

    def more() -> Conversation:
        turns = 2 if rng.random() < 0.12 else 1
        return writer.conversation(
            [sentences.question(scene, rng, naming=size.naming) for _ in range(turns)], images=1
        )

    first = []
    if rng.random() < size.detailed:
        first.append(writer.conversation([sentences.detailed(scene, rng)], images=1))
    return fill(writer.prefix(1), first, more, size.tokens)


def other_row(writer: Writer, rng: Generator, budget: int) -> tuple[Row, list[Scene]]:
    """A row about two pictures, or about none."""
    if rng.random() < 0.35:
        row = fill(
            writer.prefix(0),
            [],
            lambda: writer.conversation([sentences.text_only(rng)], images=0),
            budget,
        )
        return row, []
    one, two = sample_scene(rng), sample_scene(rng)
    row = fill(
        writer.prefix(2),
        [],
        lambda: writer.conversation([sentences.two_images(one, two, rng)], images=2),
        budget,
    )
    return row, [one, two]


def lesson(
    step: int,
    writer: Writer,
    bank: SpriteBank,
    size: Size,
    *,
    seed: int,
    glossary: Glossary | None = None,
) -> Lesson:
    """The data of one step, a function of (seed, step)."""
    rng = np.random.default_rng([seed, 2, step])
    rows: list[Row] = []
    shown: list[Scene] = []
    for _ in range(size.rows - 1):
        scene = sample_scene(rng)
        rows.append(scene_row(writer, scene, rng, size))
        shown.append(scene)
    row, pictures = other_row(writer, rng, size.tokens)
    rows.append(row)
    shown += pictures
    shown += [sample_scene(rng, dense=True) for _ in range(size.dense)]
    images = np.stack([render(scene, bank, rng) for scene in shown])
    patches = np.stack([patch_labels(scene) for scene in shown])
    packed = pack(rows, writer.words.pad)
    gaze = None
    if glossary is not None:
        gaze = glossary.gaze(packed, [*patches[: size.rows - 1], None])
    return Lesson(packed, images, patches, gaze)
