"""Scenes are deterministic, records agree with pictures, sentences agree with records."""

from __future__ import annotations

import re

import numpy as np
import pytest

from edgespec_export.family import descriptions, scenes, sentences
from edgespec_export.family.objects import COLOURS, NUMBERS, PLACES, a, join, objects

SIDE = 32


@pytest.fixture(scope="module")
def bank() -> scenes.SpriteBank:
    """Made-up drawings: discs, half black and half white, that stand out on any background."""
    rows, columns = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    disc = (rows**2 + columns**2 < 0.95).astype(np.uint8) * 255
    drawings = np.zeros((len(objects()), SIDE, SIDE, 4), np.uint8)
    drawings[..., 3] = disc
    drawings[:, : SIDE // 2, :, :3] = 255
    return scenes.SpriteBank({"plain": drawings}, seed=3, variants=3)


def sampled(index: int, *, dense: bool = False) -> scenes.Scene:
    return scenes.sample_scene(np.random.default_rng([11, index]), dense=dense)


def test_objects_have_distinct_names_and_plurals() -> None:
    things = objects()
    assert 100 <= len(things) <= 150
    assert len({thing.name for thing in things}) == len(things)
    assert all(len(thing.keywords) == 2 for thing in things)
    plurals = {thing.name: thing.plural for thing in things}
    assert plurals["fox"] == "foxes" and plurals["cherry"] == "cherries"
    assert plurals["mouse"] == "mice" and plurals["key"] == "keys"


def test_articles_and_lists() -> None:
    assert [a(word) for word in ("apple", "ufo", "dog", "umbrella")] == [
        "an apple", "a ufo", "a dog", "an umbrella",
    ]  # fmt: skip
    assert join(["a"]) == "a" and join(["a", "b", "c"]) == "a, b and c"


def test_scene_and_picture_are_functions_of_the_seed(bank: scenes.SpriteBank) -> None:
    def drawn() -> np.ndarray:
        rng = np.random.default_rng(5)
        return scenes.render(scenes.sample_scene(rng), bank, rng)

    first = drawn()
    assert first.shape == (scenes.SIDE, scenes.SIDE, 3) and first.dtype == np.uint8
    assert np.array_equal(first, drawn())
    assert sampled(1) == sampled(1) and sampled(1) != sampled(2)


@pytest.mark.parametrize("dense", [False, True])
def test_records_are_consistent(dense: bool) -> None:
    for index in range(200):
        scene = sampled(index, dense=dense)
        cells = [placed.cell for placed in scene.objects]
        assert cells == sorted(set(cells))
        assert 1 <= len(scene.kinds) <= (8 if dense else 4)
        assert sum(scene.count(kind) for kind in scene.kinds) == len(scene.objects)
        for placed in scene.objects:
            third = scenes.SIDE / 3
            assert placed.column * third - 1 < placed.x < (placed.column + 1) * third + 1
            assert placed.row * third - 1 < placed.y < (placed.row + 1) * third + 1


def test_picture_shows_the_objects_of_the_record(bank: scenes.SpriteBank) -> None:
    for index in range(20):
        scene = sampled(index)
        empty = scenes.Scene(scene.colour, ())
        with_objects, without = (
            scenes.render(shown, bank, np.random.default_rng(0), jpeg=False).astype(int)
            for shown in (scene, empty)
        )
        changed = np.abs(with_objects - without).sum(-1) > 60
        for cell in range(9):
            row, column = cell // 3, cell % 3
            third = scenes.SIDE // 3
            area = changed[row * third : (row + 1) * third, column * third : (column + 1) * third]
            if scene.at(cell) is not None:
                assert area.mean() > 0.15


def test_patch_labels_name_objects_and_background() -> None:
    scene = sampled(4)
    labels = scenes.patch_labels(scene)
    assert labels.shape == (2, 64)
    labels, cells = labels
    expected = {*scene.kinds, len(objects()) + scene.colour}
    assert set(labels.tolist()) <= expected
    for placed in scene.objects:
        patch = int(placed.y // 14) * 8 + int(placed.x // 14)
        assert labels[patch] in scene.kinds and 0 <= cells[patch] < 9


@pytest.mark.parametrize("manner", [0, 1, 2])
def test_descriptions_say_what_the_record_says(manner: int) -> None:
    for index in range(100):
        scene = sampled(index)
        text = descriptions.describe(scene, manner)
        assert f" {COLOURS[scene.colour]} background" in text or (
            f"background is {COLOURS[scene.colour]}" in text
        )
        for placed in scene.objects:
            assert f"n the {PLACES[placed.cell]}" in text
        named = {thing.name for thing in objects() if re.search(rf"\b{thing.name}\b", text)}
        spoken = {objects()[kind].name for kind in scene.kinds}
        keywords = {word for kind in scene.kinds for word in objects()[kind].keywords}
        assert spoken <= named <= spoken | keywords
        assert text == descriptions.describe(scene, manner)


def test_questions_agree_with_the_record() -> None:
    for index in range(100):
        scene = sampled(index)
        placed = scene.objects[0]
        name = objects()[placed.kind].name
        for exchange in sentences.naming(scene, placed.cell):
            assert name in exchange.answer.lower() and PLACES[placed.cell] in exchange.prompt
        missing = next(k for k in range(len(objects())) if scene.count(k) == 0)
        counts = {e.prompt: e.answer for e in sentences.about_kind(scene, placed.kind)}
        counts |= {e.prompt: e.answer for e in sentences.about_kind(scene, missing)}
        plural, other = objects()[placed.kind].plural, objects()[missing].plural
        assert counts[f"How many {plural} are there?"] == NUMBERS[scene.count(placed.kind)]
        assert counts[f"How many {other} are there?"] == "zero"
        empty = next(cell for cell in range(9) if scene.at(cell) is None)
        assert sentences.naming(scene, empty)[0].answer == "Nothing."


def test_relations_follow_the_grid() -> None:
    def at(kind: int, cell: int) -> scenes.Placed:
        return scenes.Placed(kind, cell, 0.0, 0.0, 30.0)

    assert descriptions.relation(at(0, 0), at(1, 8)) == "above and to the left of"
    assert descriptions.relation(at(0, 5), at(1, 3)) == "to the right of"
    scene = scenes.Scene(0, (at(0, 3), at(1, 5)))
    said = {e.prompt: e.answer for e in sentences.relations(scene, scene.objects[1])}
    first, second = objects()[0].name, objects()[1].name
    assert said[f"What is directly to the left of the {second}?"].lower() == f"{a(first)}."
    assert said[f"What is directly above the {second}?"] == "Nothing."
