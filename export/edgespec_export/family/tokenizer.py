"""The family's tokenizer: byte-level BPE with the special tokens of LLaVA."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from edgespec_export.family import sentences
from edgespec_export.family.objects import COLOURS, PLACES, objects
from edgespec_export.family.scenes import sample_scene

SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<image>")


@dataclass(frozen=True)
class Words:
    """Vocabulary size and the ids of the special tokens."""

    size: int
    unk: int
    bos: int
    eos: int
    pad: int
    image: int


def words(tokenizer: Tokenizer) -> Words:
    """The ids that a model configuration needs."""
    vocabulary = tokenizer.get_vocab()
    return Words(len(vocabulary), *(vocabulary[token] for token in SPECIAL))


def corpus(*, seed: int, scenes: int) -> Iterator[str]:
    """Conversations as the models will see them, and every name on its own."""
    for thing in objects():
        for form in (thing.name, thing.plural, thing.category, *thing.keywords):
            yield from (f" {form}", f" {form}", form, f"{form.capitalize()}")
    yield from (f" {word}" for word in (*COLOURS, *PLACES))
    for index in range(scenes):
        rng = np.random.default_rng([seed, 3, index])
        scene = sample_scene(rng)
        said = [sentences.detailed(scene, rng), sentences.text_only(rng)]
        said += [sentences.question(scene, rng) for _ in range(6)]
        said.append(sentences.two_images(scene, sample_scene(rng), rng))
        for exchange in said:
            yield f"USER: {exchange.prompt} ASSISTANT: {exchange.answer}"


def train(texts: Iterable[str], *, size: int) -> Tokenizer:
    """Byte-level BPE of at most `size` tokens; every string of Unicode encodes and decodes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        min_frequency=2,
    )
    tokenizer.train_from_iterator(texts, trainer)
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", bos)]
    )
    return tokenizer


def load_or_train(path: Path, *, seed: int, size: int = 1536, scenes: int = 3000) -> Tokenizer:
    """The tokenizer at `path`, trained and saved there first if it does not exist."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        train(corpus(seed=seed, scenes=scenes), size=size).save(str(path))
    return Tokenizer.from_file(str(path))
