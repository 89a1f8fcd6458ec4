"""The shipped checkpoints load strictly, agree with each other, and really look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers: Any = pytest.importorskip("transformers")

from PIL import Image  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

import edgespec_export.family as family  # noqa: E402
from edgespec_export.family import evaluate, models, packing  # noqa: E402

FOLDER = Path(family.__file__).parent
TARGET, DRAFT = FOLDER / "checkpoints" / "target", FOLDER / "checkpoints" / "draft"
LLAVA = transformers.LlavaForConditionalGeneration
CHANCE = 1 / 127


@pytest.fixture(scope="module")
def writer() -> packing.Writer:
    return packing.Writer(Tokenizer.from_file(str(TARGET / "tokenizer.json")), models.VISUAL_TOKENS)


@pytest.fixture(scope="module")
def target() -> Any:
    return LLAVA.from_pretrained(TARGET, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def draft() -> Any:
    return LLAVA.from_pretrained(DRAFT, dtype=torch.float32).eval()


@pytest.mark.parametrize("folder", [TARGET, DRAFT], ids=["target", "draft"])
def test_loads_strictly(folder: Path) -> None:
    model, found = LLAVA.from_pretrained(folder, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    assert not found["mismatched_keys"]
    assert next(model.parameters()).dtype == torch.float16
    assert (folder / "model.safetensors").stat().st_size < 23e6


def test_draft_has_the_tower_and_the_tokenizer_of_the_target(target: Any, draft: Any) -> None:
    mine, his = draft.model.vision_tower.state_dict(), target.model.vision_tower.state_dict()
    assert mine.keys() == his.keys()
    assert all(torch.equal(mine[key], his[key]) for key in mine)
    assert (TARGET / "tokenizer.json").read_bytes() == (DRAFT / "tokenizer.json").read_bytes()


def test_processor_writes_the_prompt_the_target_was_trained_on(writer: packing.Writer) -> None:
    processor = transformers.AutoProcessor.from_pretrained(TARGET)
    picture = min((FOLDER / "samples").glob("in_domain/*.jpg"))
    prompt = "What is in the centre?"
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    assert text == f"USER: <image>\n{prompt} ASSISTANT:"
    image = Image.open(picture).convert("RGB")
    batch = processor(images=image, text=text, return_tensors="pt")
    wanted = [*writer.prefix(1), *writer.prompt(prompt, images=1)]
    assert batch["input_ids"][0].tolist() == wanted
    raw = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    mine = models.pixels(raw.view(1, image.height, image.width, 3))
    assert torch.allclose(batch["pixel_values"], mine, atol=1e-5)


def test_names_what_it_sees_in_domain(target: Any, writer: packing.Writer) -> None:
    asked = evaluate.questions(FOLDER / "samples" / "in_domain.jsonl", "naming")
    assert len(asked) >= 90
    assert evaluate.exact(target, writer, asked) >= 0.95


def test_names_what_it_sees_out_of_domain(target: Any, writer: packing.Writer) -> None:
    asked = evaluate.questions(FOLDER / "samples" / "out_of_domain.jsonl", "naming")[::2]
    assert evaluate.exact(target, writer, asked) >= 20 * CHANCE


@pytest.mark.parametrize("spoil", [evaluate.blank, evaluate.shuffled])
def test_answers_come_from_the_picture(target: Any, writer: packing.Writer, spoil: object) -> None:
    """One question a scene: almost none is answered right."""
    asked = evaluate.questions(FOLDER / "samples" / "in_domain.jsonl", "naming")[::2]
    assert callable(spoil) and len(asked) >= 45
    assert evaluate.exact(target, writer, spoil(asked)) <= 0.1


def test_draft_guesses_the_targets_words(
    target: Any,
    draft: Any,
    writer: packing.Writer,
) -> None:
    asked = evaluate.questions(FOLDER / "samples" / "in_domain.jsonl", "detailed")[:12]
    narrow = packing.Writer(writer.tokenizer, models.POOLED_TOKENS)
    measured = evaluate.drafting(target, draft, writer, narrow, asked)
    assert measured.agreement >= 0.9
    assert measured.accepted >= 4.0
