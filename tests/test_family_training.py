"""A training that is interrupted and resumed ends with the same bits as one that is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgespec.errors import InputError  # noqa: E402
from edgespec_export.family import (  # noqa: E402
    batches,
    distill,
    loop,
    models,
    packing,
    pipeline,
    tokenizer,
    tower,
    train,
)
from edgespec_export.family.objects import objects  # noqa: E402
from edgespec_export.family.scenes import SpriteBank  # noqa: E402
from edgespec_export.family.sentences import Exchange  # noqa: E402

VISION = models.VisionShape(hidden=32, layers=1, heads=1, intermediate=32)
TEXT = models.TextShape(hidden=64, layers=2, heads=1, kv_heads=1, intermediate=32)
SIZE = batches.Size(rows=2, tokens=140, dense=1)


@pytest.fixture(scope="module")
def bank() -> SpriteBank:
    drawings = np.random.default_rng(0).integers(0, 256, (len(objects()), 8, 8, 4), np.uint8)
    return SpriteBank({"noise": drawings}, seed=0, variants=1)


@pytest.fixture(scope="module")
def writer() -> packing.Writer:
    trained = tokenizer.train(tokenizer.corpus(seed=0, scenes=30), size=1200)
    return packing.Writer(trained, models.VISUAL_TOKENS)


def same(one: Path, other: Path) -> bool:
    first, second = (
        torch.load(path, map_location="cpu", weights_only=True) for path in (one, other)
    )
    assert first["model"].keys() == second["model"].keys()
    return first["step"] == second["step"] and all(
        torch.equal(first["model"][key], second["model"][key]) for key in first["model"]
    )


def schedule(stop_after: int | None) -> loop.Schedule:
    return loop.Schedule(steps=4, rate=1e-3, warmup=2, save_every=2, stop_after=stop_after)


def test_target_training_resumes_to_the_same_bits(
    tmp_path: Path, bank: SpriteBank, writer: packing.Writer
) -> None:
    def teach(state: Path, stop_after: int | None) -> bool:
        model = models.build(TEXT, writer.words, seed=0, vision=VISION)
        plan = schedule(stop_after)
        return train.teach(model, writer, bank, plan, state=state, seed=0, size=SIZE)

    assert teach(tmp_path / "whole.pt", None)
    assert not teach(tmp_path / "parts.pt", 3)
    assert not same(tmp_path / "whole.pt", tmp_path / "parts.pt")
    assert teach(tmp_path / "parts.pt", None)
    assert same(tmp_path / "whole.pt", tmp_path / "parts.pt")


def test_tower_training_resumes_to_the_same_bits(tmp_path: Path, bank: SpriteBank) -> None:
    def pretrain(state: Path, stop_after: int | None) -> bool:
        seer = tower.Seer(VISION, 64, seed=0)
        return tower.pretrain(seer, bank, schedule(stop_after), state=state, seed=0, rows=2)

    assert pretrain(tmp_path / "whole.pt", None)
    assert not pretrain(tmp_path / "parts.pt", 2)
    assert pretrain(tmp_path / "parts.pt", None)
    assert same(tmp_path / "whole.pt", tmp_path / "parts.pt")


def test_draft_training_resumes_and_leaves_the_tower_alone(
    tmp_path: Path, bank: SpriteBank, writer: packing.Writer
) -> None:
    target = models.build(TEXT, writer.words, seed=0, vision=VISION)
    narrow = packing.Writer(writer.tokenizer, models.POOLED_TOKENS)
    told = [distill.Told(0, (Exchange("detailed", "Describe it.", "The image shows a dog."),))]

    def distil(state: Path, stop_after: int | None) -> None:
        draft = models.build(TEXT, writer.words, seed=1, vision=VISION)
        pictures = torch.from_numpy(
            np.stack([distill.picture(bank, index, seed=1)[0] for index in range(4)])
        )
        distill.begin(draft, target, narrow, pictures)
        plan = schedule(stop_after)
        size = batches.Size(rows=2, tokens=200, dense=0)
        distill.distil(
            draft, target, told, writer, narrow, bank, plan, state=state, seed=0, size=size
        )
        for mine, his in zip(
            draft.model.vision_tower.parameters(),
            target.model.vision_tower.parameters(),
            strict=True,
        ):
            assert torch.equal(mine, his)

    distil(tmp_path / "whole.pt", None)
    distil(tmp_path / "parts.pt", 3)
    distil(tmp_path / "parts.pt", None)
    assert same(tmp_path / "whole.pt", tmp_path / "parts.pt")


def test_growing_keeps_the_function(bank: SpriteBank, writer: packing.Writer) -> None:
    small = models.build(TEXT, writer.words, seed=0, vision=VISION)
    deep = models.TextShape(hidden=64, layers=4, heads=1, kv_heads=1, intermediate=32)
    large = models.build(deep, writer.words, seed=1, vision=VISION)
    train.grow(small, large)
    lesson = batches.lesson(0, writer, bank, SIZE, seed=0)
    images = torch.from_numpy(lesson.images)
    used = int((lesson.packed.ids == writer.words.image).sum())
    outcomes = []
    for model in (small, large):
        visual = models.project(model, models.features(model, images)).flatten(0, 1)[:used]
        outcomes.append(train.hidden_states(model, visual, lesson.packed, writer.words.image))
    assert torch.allclose(outcomes[0], outcomes[1], atol=1e-6)


def test_shared_prefix_equals_separate_conversations(
    bank: SpriteBank, writer: packing.Writer
) -> None:
    model = models.build(TEXT, writer.words, seed=0, vision=VISION)
    lesson = batches.lesson(1, writer, bank, SIZE, seed=0)
    visual = models.project(model, models.features(model, torch.from_numpy(lesson.images[:1])))
    said = [
        writer.conversation([Exchange("t", f"Question {n}?", f"Answer {n}.")], images=1)
        for n in range(3)
    ]
    image = writer.words.image
    rows = [packing.Row(writer.prefix(1), tuple(said))]
    shared = train.hidden_states(model, visual[0], packing.pack(rows, writer.words.pad), image)
    alone = [
        train.hidden_states(
            model,
            visual[0],
            packing.pack([packing.Row(writer.prefix(1), (one,))], writer.words.pad),
            image,
        )
        for one in said
    ]
    assert torch.allclose(shared, torch.cat(alone), atol=1e-5)


def test_a_second_training_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    with pytest.raises(InputError, match="resume"):
        pipeline.run(tmp_path)
