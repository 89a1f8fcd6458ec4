"""The tokenizer takes any text, and the packing of rows keeps conversations apart."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer

pytest.importorskip("torch")

from edgespec_export.family import packing, tokenizer  # noqa: E402
from edgespec_export.family.sentences import Exchange  # noqa: E402


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return tokenizer.train(tokenizer.corpus(seed=0, scenes=40), size=700)


@pytest.mark.parametrize(
    "text",
    [
        "What is in the top left?",
        "",
        "héllo ∑ 日本語 🐶🏳️‍🌈",
        "tabs\t\nand\r\nlines  ",
        "\x00\x7f\u200b",
        "USER:",
    ],
)
def test_round_trip(trained: Tokenizer, text: str) -> None:
    ids = trained.encode(text, add_special_tokens=False).ids
    assert trained.decode(ids, skip_special_tokens=False) == text
    assert trained.token_to_id("<unk>") not in ids


def test_round_trip_of_random_unicode(trained: Tokenizer) -> None:
    rng = np.random.default_rng(0)
    points = [int(p) for p in rng.integers(0, 0x110000, 3000)]
    text = "".join(chr(p) for p in points if not 0xD800 <= p < 0xE000)
    ids = trained.encode(text, add_special_tokens=False).ids
    assert trained.decode(ids, skip_special_tokens=False) == text


def test_bos_and_special_tokens(trained: Tokenizer) -> None:
    ids = tokenizer.words(trained)
    encoded = trained.encode("USER: <image>\nHello").ids
    assert encoded[0] == ids.bos and encoded.count(ids.image) == 1
    assert [ids.unk, ids.bos, ids.eos, ids.pad, ids.image] == [0, 1, 2, 3, 4]


def test_writer_matches_the_whole_text(trained: Tokenizer) -> None:
    writer = packing.Writer(trained, 2)
    said = writer.conversation(
        [Exchange("t", "Hi you?", "Fine."), Exchange("t", "A?", "B")], images=1
    )
    whole = "USER: <image><image>\nHi you? ASSISTANT: Fine.</s>USER: A? ASSISTANT: B</s>"
    assert [*writer.prefix(1), *said.ids] == trained.encode(whole).ids
    answered = [token for token, mine in zip(said.ids, said.answer, strict=True) if mine]
    assert trained.decode(answered, skip_special_tokens=False) == " Fine.</s> B</s>"


def test_packed_conversations_see_only_the_prefix_and_themselves() -> None:
    one = packing.Conversation((7, 8, 9), (False, True, True))
    two = packing.Conversation((5, 6), (False, True))
    packed = packing.pack([packing.Row((1, 2), (one, two)), packing.Row((1,), (two,))], pad=3)
    assert packed.ids.tolist() == [[1, 2, 7, 8, 9, 5, 6], [1, 5, 6, 3, 3, 3, 3]]
    assert packed.positions[0].tolist() == [0, 1, 2, 3, 4, 2, 3]
    assert packed.labels[0].tolist() == [-100, -100, 8, 9, -100, 6, -100]
    mask = packed.mask[0, 0]
    assert mask[6].tolist() == [True, True, False, False, False, True, True]
    assert mask[4].tolist() == [True, True, True, True, True, False, False]
    assert mask[1].tolist() == [True, True, False, False, False, False, False]
    assert bool(packed.mask.any(-1).all()), "every row attends to something: no NaN in softmax"
