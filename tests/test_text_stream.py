"""TextStream and StopStrings against naive oracles, with tokenizers built here."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from edgespec.errors import ConfigError
from edgespec_runtime.text import StopStrings, TextStream
from edgespec_runtime.tokenizer import Tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog. 0123456789, don't!",
    "naïve café 猫 🙂 ok",
] * 9


def byte_level() -> Backend:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens(["<image>", "猫 word", "é"])
    return backend


def llama() -> Backend:
    words = ["▁", "▁the", "▁fox", "ox", "a", "b", "猫", "▁▁", ".", "\ufffd", "<0xZZ>"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), *words]
    vocab = {piece: n for n, piece in enumerate(pieces)}
    backend = Backend(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens([AddedToken(t, special=True) for t in ("<unk>", "<s>", "</s>")])
    backend.add_tokens([AddedToken("<image>", normalized=False)])
    return backend


def with_decoder(decoder: Any, base: Backend | None = None) -> Backend:
    backend = base or llama()
    backend.decoder = decoder
    return backend


def gemma() -> Backend:
    return with_decoder(
        decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    )


def no_decoder() -> Backend:
    vocab = {piece: n for n, piece in enumerate(["[UNK]", "a", "b", "fox", "the", "猫", ""])}
    backend = Backend(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.add_special_tokens(["[UNK]"])
    return backend


def word_piece() -> Backend:
    words = ["[UNK]", "a", "b", "##b", "##ox", "f", ".", "'", "n't", "do", "do not", "##", "猫"]
    vocab = {piece: n for n, piece in enumerate(words)}
    backend = Backend(models.WordPiece(vocab, unk_token="[UNK]"))
    return with_decoder(decoders.WordPiece(), backend)


BACKENDS: dict[str, Callable[[], Backend]] = {
    "byte_level": byte_level,
    "byte_level_nested": lambda: with_decoder(
        decoders.Sequence([decoders.ByteLevel()]), byte_level()
    ),
    "llama": llama,
    "gemma": gemma,
    "strip_two": lambda: with_decoder(
        decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 2, 0)])
    ),
    "metaspace": lambda: with_decoder(decoders.Metaspace()),
    "metaspace_never": lambda: with_decoder(decoders.Metaspace(prepend_scheme="never")),
    "none": no_decoder,
    "word_piece": word_piece,
    # decoders whose last token reads differently, or that nobody uses so: held back, still exact
    "ctc": lambda: with_decoder(decoders.CTC("<unk>", "▁", True)),
    "suffix": lambda: with_decoder(decoders.BPEDecoder(suffix="x")),
    "fallback_after_fuse": lambda: with_decoder(
        decoders.Sequence([decoders.Fuse(), decoders.ByteFallback()])
    ),
    "long_replace": lambda: with_decoder(
        decoders.Sequence([decoders.Replace("ab", "x"), decoders.Fuse()])
    ),
}
HELD = {"ctc", "suffix", "fallback_after_fuse", "long_replace"}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder: Path = tmp_path_factory.mktemp("tokenizers")
    made = {}
    for name, make in BACKENDS.items():
        make().save(str(folder / f"{name}.json"))
        made[name] = Tokenizer(folder / f"{name}.json")
    return made


def token_id(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    assert found is not None
    return found


def streamed(tokenizer: Tokenizer, ids: list[int], skip: bool = True) -> list[str]:
    stream = TextStream(tokenizer, skip_special_tokens=skip)
    return [*(stream.push(token) for token in ids), stream.flush()]


@pytest.mark.parametrize("name", BACKENDS)
@given(data=st.data())
@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_pushes_and_flush_equal_one_decode(
    tokenizers: dict[str, Tokenizer], name: str, data: st.DataObject
) -> None:
    tokenizer = tokenizers[name]
    # Three ids beyond the vocabulary: models pad their logits, and decode passes over them.
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 2), max_size=40))
    skip = data.draw(st.booleans())
    assert "".join(streamed(tokenizer, ids, skip)) == tokenizer.decode(ids, skip)


@pytest.mark.parametrize("name", ["byte_level", "llama"])
@given(text=st.text(max_size=30), cut=st.integers(0, 5))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_real_text(tokenizers: dict[str, Tokenizer], name: str, text: str, cut: int) -> None:
    tokenizer = tokenizers[name]
    ids = tokenizer.encode(text)
    ids = ids[: len(ids) - cut]  # mostly ends inside a character
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


@given(ids=st.lists(st.integers(0, 258), max_size=60))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_text_is_final_once_given(tokenizers: dict[str, Tokenizer], ids: list[int]) -> None:
    for name in ("byte_level", "llama"):
        tokenizer = tokenizers[name]
        shown = ""
        stream = TextStream(tokenizer)
        for count, token in enumerate(ids, 1):
            shown += stream.push(token)
            whole = tokenizer.decode(ids[:count])
            assert whole.startswith(shown)
            if name == "byte_level":  # nothing is held back without need
                held = whole[len(shown) :]
                assert held == "\ufffd" * len(held) and len(held) <= 3


def test_characters_come_when_they_are_complete(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["byte_level"]
    ids = tokenizer.encode("a") + [
        token_id(tokenizer, c)
        for c in "ðŁĻĤ"  # the four bytes of one smiley
    ]
    assert streamed(tokenizer, ids) == ["a", "", "", "", "🙂", ""]
    tokenizer = tokenizers["llama"]
    ids = [token_id(tokenizer, t) for t in ("▁the", "<0xC3>", "<0xA9>", "▁fox", "▁")]
    assert streamed(tokenizer, ids) == ["the", "", "", "é fox", " ", ""]


def test_streams_show_text_before_the_end(tokenizers: dict[str, Tokenizer]) -> None:
    for name, tokenizer in tokenizers.items():
        letter = token_id(tokenizer, "a")
        pieces = streamed(tokenizer, [letter] * 4)
        assert (pieces[-1] == "") == (name not in HELD), name


def test_a_stream_starts_anew_after_flush(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["llama"]
    stream = TextStream(tokenizer)
    the = token_id(tokenizer, "▁the")
    assert [stream.push(the), stream.push(the), stream.flush()] == ["the", " the", ""]
    assert stream.push(the) == "the"


def test_two_streams_do_not_disturb_each_other(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["byte_level"]
    one, two = TextStream(tokenizer), TextStream(tokenizer)
    smiley = [token_id(tokenizer, c) for c in "ðŁĻĤ"]
    letter = token_id(tokenizer, "b")
    shown = [(one.push(token), two.push(letter)) for token in smiley]
    assert shown == [("", "b"), ("", "b"), ("", "b"), ("🙂", "b")]


@pytest.mark.parametrize("name", ["byte_level", "llama"])
def test_a_push_is_cheap_however_long_the_text(tokenizers: dict[str, Tokenizer], name: str) -> None:
    tokenizer = tokenizers[name]
    bad_byte = token_id(tokenizer, "ÿ" if name == "byte_level" else "<0xFF>")
    for ids in (tokenizer.encode("the fox " * 10), [bad_byte]):
        stream = TextStream(tokenizer)
        for token in ids:
            stream.push(token)
        took = []
        for start in range(0, 20_000, 1000):
            pushes = [ids[n % len(ids)] for n in range(start, start + 1000)]
            begun = time.perf_counter()
            for token in pushes:
                stream.push(token)
            took.append(time.perf_counter() - begun)
        # About 1 us each; 50 us leaves room for a slow machine and none for re-decoding. A machine
        # that stands still makes a few of the twenty long, not half of them.
        assert statistics.median(took) < 0.05


ALPHABET = st.text("abc", max_size=30)
STOPS = st.lists(st.text("abc", min_size=1, max_size=4), max_size=4)


def first_stop(text: str, stops: list[str]) -> tuple[str, bool]:
    """Read character by character until the text ends with a stop string; cut the longest such."""
    for end in range(1, len(text) + 1):
        hits = [stop for stop in stops if text[:end].endswith(stop)]
        if hits:
            return text[: end - max(map(len, hits))], True
    return text, False


@given(pieces=st.lists(ALPHABET, max_size=8), stops=STOPS)
@settings(max_examples=1000, deadline=None)
def test_stop_strings_equal_the_oracle(pieces: list[str], stops: list[str]) -> None:
    stopper = StopStrings(stops)
    shown, hit = "", False
    for number, piece in enumerate(pieces):
        text, hit = stopper.push(piece)
        shown += text
        so_far = "".join(pieces[: number + 1])
        want, found = first_stop(so_far, stops)
        assert hit == found  # noticed in the very push that completes it
        assert want.startswith(shown)
        if not found:  # held back only what may begin a stop string
            held = want[len(shown) :]
            assert not held or any(stop.startswith(held) for stop in stops)
    shown += stopper.flush()
    assert (shown, hit) == first_stop("".join(pieces), stops)


def test_stop_strings_by_hand() -> None:
    stopper = StopStrings(["\nUser:", "###"])
    assert stopper.push("Hello\n") == ("Hello", False)
    assert stopper.push("Us") == ("", False)
    assert stopper.push("e it ##") == ("\nUse it ", False)
    assert stopper.push("# more") == ("", True)
    assert stopper.push("even more") == ("", True)
    assert stopper.flush() == ""
    assert StopStrings([]).push("any") == ("any", False)


@pytest.mark.parametrize("bad", [[""], ["a", ""], "abc", [3], [None]])
def test_stop_strings_that_are_refused(bad: Any) -> None:
    with pytest.raises(ConfigError, match="stop string"):
        StopStrings(bad)
