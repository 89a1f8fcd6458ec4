"""Greedy text, token for token, against transformers' own generate in float32."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.support.compare import TIE, first_difference
from tests.support.zoo import HAS_NATIVE, prompt_of

if TYPE_CHECKING:
    from tests.support.zoo import Zoo


@dataclass(frozen=True)
class Case:
    """One prompt; it is answered by transformers, by the plain loop and speculatively."""

    model: str
    images: int = 0
    length: int | None = None
    """Tokens of the whole prompt; None: whatever the text needs."""
    new: int = 40
    seed: int = 0
    draft: str = "shared"
    lowering: str = "ort"


@dataclass
class Outcome:
    """What came of a case; differences that are no ties never get this far."""

    prompt_tokens: int
    tokens: list[int]
    runs: int = 0
    accepted: float = 0.0
    flips: list[str] = field(default_factory=list)


def cases() -> Iterator[Case]:
    everyday = ("mha", "gqa", "tied", "qwen2", "siglip", "wide-vocab", "many-eos")
    for name in everyday:
        for images in (0, 1, 2):
            yield from (Case(name, images, seed=seed) for seed in (0, 1))
    for name, images in (("gqa", 1), ("tied", 0), ("wide-vocab", 1)):
        yield from (Case(name, images, new=new, seed=new) for new in range(1, 11))
    for name in ("mha", "gqa"):
        for length in (63, 64, 65, 127, 128, 129):
            yield from (Case(name, images, length, new=20, seed=length) for images in (0, 1))
    # 576 visual tokens per image; prompts at the edges of a prefill chunk and of cache blocks.
    yield from (Case("clip-336", images, seed=images) for images in (0, 1, 2))
    yield from (Case("clip-336", 1, length, new=20) for length in (639, 640, 641, 1023, 1024, 1025))
    yield from (Case("clip-336", 0, length, new=20) for length in (511, 512, 513))
    yield from (Case("many-eos", 0, seed=seed) for seed in range(2, 8))
    yield from (Case(name, images, draft="own") for name in ("mha", "siglip") for images in (0, 1))
    if HAS_NATIVE:
        for name in ("gqa", "qwen2", "clip-336"):
            yield from (Case(name, images, seed=5, lowering="native") for images in (0, 1))


CASES = tuple(cases())
MODELS = tuple(dict.fromkeys(case.model for case in CASES))


class Comparison:
    """Runs every case once, however many tests ask for it."""

    def __init__(self, zoo: Zoo) -> None:
        self._zoo = zoo
        self._known: dict[Case, Outcome] = {}

    def outcome(self, case: Case) -> Outcome:
        if case not in self._known:
            self._known[case] = self._compare(case)
        return self._known[case]

    def _compare(self, case: Case) -> Outcome:
        zoo, name = self._zoo, case.model
        model = zoo.model(name, case.draft, case.lowering)
        pictures = [zoo.picture(name, 10 * case.seed + i) for i in range(case.images)]
        text = f"what is this {case.seed}"
        if case.length is not None:
            text = prompt_of(zoo, name, case.length, case.seed, case.images)
        inputs, theirs = self._ask_transformers(case, pictures, text)
        outcome = Outcome(inputs["input_ids"].shape[1], theirs)
        assert case.length in (None, outcome.prompt_tokens)
        for draft in ("none", "auto"):
            ours = model.generate(pictures, text, draft=draft, max_new_tokens=case.new)
            assert ours.prompt_tokens == outcome.prompt_tokens, f"{case}: the prompts differ"
            flip = self._difference(case, inputs, theirs, list(ours.token_ids))
            outcome.runs += 1
            outcome.flips += [f"{case}, draft {draft}: {flip}"] if flip else []
            outcome.accepted = max(outcome.accepted, ours.stats.accepted_length)
            ended = theirs[-1] in zoo.geometry(name).eos_ids
            assert flip or ours.finish_reason == ("eos" if ended else "length")
        return outcome

    def _ask_transformers(
        self, case: Case, pictures: list[Any], text: str
    ) -> tuple[dict[str, Any], list[int]]:
        import torch

        parts: list[dict[str, Any]] = [{"type": "image", "image": p} for p in pictures]
        message = {"role": "user", "content": [*parts, {"type": "text", "text": text}]}
        inputs = dict(
            self._zoo.processor(case.model).apply_chat_template(
                [message],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
        )
        with torch.no_grad():
            output = self._zoo.torch_model(case.model).generate(
                **inputs, do_sample=False, max_new_tokens=case.new
            )
        return inputs, output[0, inputs["input_ids"].shape[1] :].tolist()

    def _difference(
        self, case: Case, inputs: dict[str, Any], theirs: list[int], ours: list[int]
    ) -> str | None:
        """A tie that fell the other way, described; None where the tokens are equal."""
        import torch

        at = first_difference(theirs, ours)
        if at is None:
            return None
        assert at < min(len(theirs), len(ours)), f"{case}: one ends early: {theirs}, {ours}"
        ids = torch.cat([inputs["input_ids"], torch.tensor([theirs[:at]], dtype=torch.long)], 1)
        more = {k: v for k, v in inputs.items() if k == "pixel_values"}
        with torch.no_grad():
            logits = self._zoo.torch_model(case.model)(input_ids=ids, **more).logits[0, -1]
        gap = float(logits[theirs[at]] - logits[ours[at]])
        text = f"token {at} is {ours[at]}, transformers says {theirs[at]} (logit gap {gap:.3g})"
        assert gap < TIE, f"{case}: {text}"
        return text


@pytest.fixture(scope="module")
def comparison(zoo: Zoo) -> Comparison:
    return Comparison(zoo)


@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens_equal_transformers(comparison: Comparison, name: str) -> None:
    outcomes = [comparison.outcome(case) for case in CASES if case.model == name]
    assert max(outcome.accepted for outcome in outcomes) > 1.05, "the draft never helped"
    assert len({tuple(outcome.tokens) for outcome in outcomes}) > 2, "every answer is the same"


def test_a_hundred_prompts_and_hardly_a_flip(comparison: Comparison) -> None:
    outcomes = [comparison.outcome(case) for case in CASES]
    flips = [flip for outcome in outcomes for flip in outcome.flips]
    runs = sum(outcome.runs for outcome in outcomes)
    assert len(outcomes) >= 100 and runs >= 200
    assert len(flips) <= 0.01 * runs, f"{len(flips)} flips in {runs} runs: {flips}"


def test_texts_end_at_end_of_sequence(comparison: Comparison, zoo: Zoo) -> None:
    """The checkpoint with many such tokens: its texts end by themselves, at any place."""
    outcomes = [comparison.outcome(case) for case in CASES if case.model == "many-eos"]
    ended = [o for o in outcomes if o.tokens[-1] in zoo.geometry("many-eos").eos_ids]
    assert len(ended) >= len(outcomes) - 2
    assert len({len(o.tokens) for o in ended}) >= 4


@pytest.mark.parametrize("name", ["gqa", "clip-336", "siglip"])
def test_the_picture_matters(comparison: Comparison, zoo: Zoo, name: str) -> None:
    """Else equality on prompts with images would say nothing about the vision side."""
    model = zoo.model(name)
    answers = {
        model.generate([zoo.picture(name, seed)], "what is this", max_new_tokens=8).token_ids
        for seed in range(4)
    }
    assert len(answers) >= 3


def test_pixels_equal_the_processor(zoo: Zoo) -> None:
    from edgespec_runtime.vision import preprocess

    for name in ("gqa", "siglip", "clip-336"):
        image = zoo.picture(name, 4)
        theirs = zoo.processor(name).image_processor(images=[image], return_tensors="np")
        processor = zoo.model(name).reader.processor
        assert processor is not None
        ours = preprocess([image], processor)
        assert np.abs(ours - np.asarray(theirs["pixel_values"])).max() < 1e-5


def test_a_conversation_with_images_in_the_middle(zoo: Zoo) -> None:
    import torch

    name = "gqa"
    pictures = [zoo.picture(name, 21), zoo.picture(name, 22)]
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "image"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a thing"}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "and that"}]},
    ]
    processor = zoo.processor(name)
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(images=pictures, text=text, return_tensors="pt")
    with torch.no_grad():
        output = zoo.torch_model(name).generate(**inputs, do_sample=False, max_new_tokens=30)
    theirs = output[0, inputs["input_ids"].shape[1] :].tolist()
    for draft in ("none", "auto"):
        ours = zoo.model(name).generate(pictures, messages, draft=draft, max_new_tokens=30)
        assert list(ours.token_ids) == theirs


@pytest.mark.parametrize(("name", "draft"), [("gqa", "shared"), ("mha", "own"), ("siglip", "own")])
def test_the_draft_sees_the_pooled_pictures(zoo: Zoo, name: str, draft: str) -> None:
    """Its prompt holds its own projection of the pictures, averaged over 2 x 2 patches."""
    import torch

    pictures = [zoo.picture(name, seed) for seed in (31, 32)]
    pixels = zoo.processor(name).image_processor(images=pictures, return_tensors="pt")
    model, geometry = zoo.torch_model(name, draft).model, zoo.geometry(name)
    with torch.no_grad():
        states = model.vision_tower(pixels["pixel_values"], output_hidden_states=True)
        features = states.hidden_states[geometry.feature_layer]
        features = features[:, 1:] if geometry.strategy == "default" else features
        embeds = model.multi_modal_projector(features)
    side = geometry.image_size // geometry.patch_size
    grid = embeds.numpy().reshape(2, side // 2, 2, side // 2, 2, -1)
    pooled = grid.mean(axis=(2, 4)).reshape(2, (side // 2) ** 2, -1)

    request: Any = zoo.model(name, draft).stream(pictures, "hello", max_new_tokens=4)
    target, ours = request._verifier._prompt(), request._draft._prompt()
    assert len(target) - len(ours) == 2 * (geometry.visual_tokens - pooled.shape[1])
    found = []
    for image in pooled:
        starts = range(len(ours) - len(image) + 1)
        gaps = [float(np.abs(ours[i : i + len(image)] - image).max()) for i in starts]
        assert min(gaps) < 1e-4, f"the nearest rows of the draft's prompt are {min(gaps)} away"
        found.append(int(np.argmin(gaps)))
    assert found[0] < found[1], "the pictures are in the wrong order"
