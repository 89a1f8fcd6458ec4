"""`edgespec frequencies` from texts and from a target's answers, and reading what it wrote."""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgespec.cli import main
from edgespec.errors import CheckpointError, ConfigError
from edgespec_export.family import checkpoint_path
from edgespec_export.vocabulary import read_frequencies, trimmed, write_frequencies
from edgespec_runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tests.support.zoo import Zoo

FAMILY = checkpoint_path("target")
EOS = 2


def frequencies(*words: object) -> int:
    return main(["frequencies", *map(str, words)])


# --- From texts -----------------------------------------------------------------------------------


def corpus(folder: Path) -> list[Path]:
    files = [folder / "one.txt", folder / "two.txt"]
    files[0].write_text("I see a bus.\n\n  There is a bus in the top right.  \n", encoding="utf-8")
    files[1].write_text("A cookie, ein Käse 🧀.", encoding="utf-8")
    return files


def test_texts_are_counted_as_a_target_would_say_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = corpus(tmp_path)
    out = tmp_path / "tokens.json"
    assert frequencies("--tokenizer", FAMILY, "--corpus", *files, "--out", out) == 0
    text, err = capsys.readouterr()
    assert str(out) in text and "most frequent ids" in err
    backend = Tokenizer.from_folder(FAMILY).backend
    lines = "".join(file.read_text(encoding="utf-8") + "\n" for file in files).splitlines()
    expected = Counter({EOS: 3})  # every document ends, and none begins
    for line in filter(str.strip, lines):
        expected.update(backend.encode(line.strip(), add_special_tokens=False).ids)
    content = json.loads(out.read_text(encoding="utf-8"))
    assert dict(zip(content["ids"], content["counts"], strict=True)) == expected
    assert content["counts"] == sorted(content["counts"], reverse=True)
    assert content["tokens_seen"] == expected.total()
    assert content["vocab_size"] == 1536
    assert read_frequencies(out, 1536) == tuple(content["ids"])
    assert set(os.listdir(tmp_path)) == {"one.txt", "two.txt", "tokens.json"}
    assert stat.S_IMODE(out.stat().st_mode) == stat.S_IMODE(files[0].stat().st_mode)


def test_summary_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    words = json.loads((FAMILY / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    text.write_text("\n".join(words) + "\n", encoding="utf-8")
    out = tmp_path / "tokens.json"
    assert frequencies("--tokenizer", FAMILY, "--corpus", text, "--out", out, "--json") == 0
    value = json.loads(capsys.readouterr().out)
    content = json.loads(out.read_text(encoding="utf-8"))
    assert value["documents"] == sum(bool(word.strip()) for word in words)
    assert value["ids"] == len(content["ids"]) > 512
    assert value["tokens_seen"] == content["tokens_seen"]
    sizes = [int(size) for size in value["coverage"]]
    assert sizes == [256 * 2**i for i in range(len(sizes))]
    assert sizes[-2] < value["ids"] <= sizes[-1]
    for size, share in value["coverage"].items():
        covered = sum(content["counts"][: int(size)])
        assert share == pytest.approx(covered / content["tokens_seen"])
    assert value["coverage"]["256"] < value["coverage"]["512"] < 1
    assert value["coverage"][str(sizes[-1])] == 1


def test_limit_counts_documents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--tokenizer", FAMILY, "--corpus", *corpus(tmp_path), "--out", tmp_path / "t.json"]
    assert frequencies(*words, "--limit", 2, "--json") == 0
    assert json.loads(capsys.readouterr().out)["documents"] == 2


def test_settings_file_lists_texts(tmp_path: Path) -> None:
    one, two = corpus(tmp_path)
    settings = tmp_path / "settings.yaml"
    settings.write_text(
        f"tokenizer: {FAMILY}\ncorpus: [{one}, {two}]\nout: {tmp_path / 'tokens.json'}\n"
    )
    assert frequencies("--config", settings) == 0
    assert EOS in read_frequencies(tmp_path / "tokens.json", 1536)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"generation_config.json": {"eos_token_id": [5, 6]}}, [5, 6]),
        ({"config.json": {"eos_token_id": 7}}, [7]),
        ({"config.json": {"text_config": {"eos_token_id": 8, "vocab_size": 2000}}}, [8]),
        ({"tokenizer_config.json": {"eos_token": "</s>"}}, [EOS]),
    ],
)
def test_ends_of_text_are_found_and_listed(
    tmp_path: Path, files: dict[str, Any], expected: list[int]
) -> None:
    (tmp_path / "tokenizer.json").write_bytes((FAMILY / "tokenizer.json").read_bytes())
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    text = tmp_path / "text.txt"
    text.write_text("a bus\n")
    out = tmp_path / "tokens.json"
    assert frequencies("--tokenizer", tmp_path, "--corpus", text, "--out", out) == 0
    content = json.loads(out.read_text())
    counts = dict(zip(content["ids"], content["counts"], strict=True))
    assert [counts[token] for token in expected] == [1, 0][: len(expected)]
    assert content["vocab_size"] == (2000 if 8 in expected else 1536)


# --- From a target's own answers ------------------------------------------------------------------


def questions(zoo: Zoo, folder: Path, rows: int = 3) -> Path:
    (folder / "images").mkdir()
    lines = []
    for i in range(rows):
        zoo.picture("many-eos", i).save(folder / "images" / f"{i}.png")
        image = f"images/{i}.png" if i else None
        row = {"id": str(i), "image": image, "turns": [f"what is {i}", "and then"]}
        lines.append(json.dumps({**row, "category": "c", "topic": "t"}))
    file = folder / "questions.jsonl"
    file.write_text("\n".join(lines) + "\n\n")
    return file


def test_answers_are_the_targets_own(
    zoo: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = questions(zoo, tmp_path), tmp_path / "tokens.json"
    bundle = zoo.bundle("many-eos")
    words = ["--bundle", bundle, "--data", data, "--out", out, "--threads", 1]
    assert frequencies(*words, "--max-new-tokens", 25, "--json") == 0
    assert json.loads(capsys.readouterr().out)["documents"] == 3
    model, expected = zoo.model("many-eos"), Counter[int]()
    for i in range(3):
        pictures = [zoo.picture("many-eos", i)] if i else []
        answer = model.generate(pictures, f"what is {i}", draft="none", max_new_tokens=25)
        expected.update(answer.token_ids)
    content = json.loads(out.read_text())
    counts = dict(zip(content["ids"], content["counts"], strict=True))
    assert {token: count for token, count in counts.items() if count} == expected
    assert set(range(12, 320, 16)) <= counts.keys(), "ends of text are listed, seen or not"
    assert frequencies(*words, "--limit", 1, "--max-new-tokens", 4, "--json") == 0
    value = json.loads(capsys.readouterr().out)
    assert value["documents"] == 1 and value["tokens_seen"] <= 4


# --- Bad input ------------------------------------------------------------------------------------

TEXTS = ["--tokenizer", str(FAMILY), "--corpus"]
MISTAKES: dict[str, tuple[list[str], str]] = {
    "no source": ([], "either --tokenizer and --corpus"),
    "half a source": (["--tokenizer", "T"], "either --tokenizer and --corpus"),
    "two sources": ([*TEXTS, "x", "--bundle", "b", "--data", "d"], "either --tokenizer"),
    "no tokenizer": (["--tokenizer", ".", "--corpus", "FOLDER/text"], "no tokenizer.json"),
    "no corpus": ([*TEXTS, "FOLDER/nothing"], "nothing' cannot be read"),
    "corpus folder": ([*TEXTS, "FOLDER"], "cannot be read"),
    "bytes": ([*TEXTS, "FOLDER/bytes"], "not UTF-8"),
    "empty corpus": ([*TEXTS, "FOLDER/empty"], "no line of text"),
    "no bundle": (["--bundle", "no-such", "--data", "FOLDER/good.jsonl"], "does not exist"),
    "no data": (["--bundle", "no-such", "--data", "FOLDER/nothing"], "cannot be read"),
    "no rows": (["--bundle", "no-such", "--data", "FOLDER/empty"], "no questions in"),
    "no json": (["--bundle", "no-such", "--data", "FOLDER/text"], "text, line 1 is no JSON"),
    "a list": (["--bundle", "no-such", "--data", "FOLDER/list"], "has no 'turns'"),
    "no turns": (["--bundle", "no-such", "--data", "FOLDER/turns"], "line 2 has no 'turns'"),
    "odd image": (["--bundle", "no-such", "--data", "FOLDER/odd"], "3' does not exist"),
    "no image": (["--bundle", "no-such", "--data", "FOLDER/image"], "does not exist"),
}  # fmt: skip
FILES: dict[str, bytes] = {
    "text": b"a bus\n",
    "empty": b"\n",
    "bytes": b"\xff\xfe\x00",
    "good.jsonl": b'{"turns": ["hello"]}\n',
    "list": b"[1]\n",
    "turns": b'{"turns": ["hello"]}\n{"turns": []}\n',
    "odd": b'{"turns": ["hello"], "image": 3}\n',
    "image": b'{"turns": ["hello"], "image": "no.png"}\n',
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_a_sentence(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, expected = MISTAKES[name]
    for file, content in FILES.items():
        (tmp_path / file).write_bytes(content)
    out = tmp_path / "tokens.json"
    assert frequencies(*(w.replace("FOLDER", str(tmp_path)) for w in words), "--out", out) == 2
    text, err = capsys.readouterr()
    assert text == "" and expected in err and "Traceback" not in err
    assert set(os.listdir(tmp_path)) == set(FILES)


@pytest.mark.parametrize("out", ["", "no-such/tokens.json"])
def test_a_place_that_cannot_be_written_is_found_out_first(
    out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert frequencies(*TEXTS, "no-such-text", "--out", tmp_path / out) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_question_that_cannot_be_asked_is_named(
    zoo: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text('{"turns": ["fine"]}\n{"turns": ["' + "x" * 2000 + '"]}\n')
    words = ["--bundle", zoo.bundle("many-eos"), "--data", data, "--out", tmp_path / "t.json"]
    assert frequencies(*words, "--max-new-tokens", 2) == 2
    assert "d.jsonl, line 2: the prompt" in capsys.readouterr().err
    assert not (tmp_path / "t.json").exists()


# --- The file -------------------------------------------------------------------------------------


def written(folder: Path, **changes: Any) -> Path:
    file = folder / "tokens.json"
    sound = {"vocab_size": 10, "tokens_seen": 6, "ids": [4, 2, 7], "counts": [3, 2, 1]}
    content = {key: value for key, value in {**sound, **changes}.items() if value is not None}
    file.write_text(json.dumps(content))
    return file


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"ids": [4, 2, 4]}, r"twice: \[4\]"),
        ({"ids": [4, 2, 10]}, r"outside the vocabulary of 10: \[10\]"),
        ({"ids": [4, -1, 7]}, r"outside the vocabulary of 10: \[-1\]"),
        ({"ids": [4, 2]}, "2 ids but 3 counts"),
        ({"ids": [4, 2, True]}, "not a list of integers"),
        ({"ids": "4 2 7"}, "not a list of integers"),
        ({"ids": [], "counts": []}, "lists no ids"),
        ({"counts": [1, 2, 3]}, "falling order"),
        ({"counts": None}, "no 'counts'"),
    ],
)
def test_a_list_that_is_none_is_refused(
    changes: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    assert read_frequencies(written(tmp_path), 10) == (4, 2, 7)
    with pytest.raises(ConfigError, match=expected):
        read_frequencies(written(tmp_path, **changes), 10)


def test_a_list_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="vocabulary of 10 tokens, this model has 12"):
        read_frequencies(written(tmp_path), 12)


@pytest.mark.parametrize("content", [b"", b"ids: 3", b"\xff", b"[1, 2]"])
def test_files_of_another_kind_are_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="edgespec frequencies"):
        read_frequencies(file, 10)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_frequencies(tmp_path / "nothing.json", 10)


def test_an_id_outside_the_vocabulary_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="outside the vocabulary of 4"):
        write_frequencies(tmp_path / "t.json", 4, {3: 1, 4: 1})
    assert not list(tmp_path.iterdir())


@given(
    counts=st.dictionaries(st.integers(0, 30), st.integers(1, 5), min_size=1),
    always=st.lists(st.integers(0, 30), max_size=3),
    data=st.data(),
)
def test_trimmed_keeps_the_most_frequent_and_the_ends(
    counts: dict[int, int], always: list[int], data: st.DataObject
) -> None:
    ids = sorted(counts, key=lambda token: -counts[token])
    every = set(ids) | set(always)
    size = data.draw(st.integers(max(1, len(set(always))), len(every)))
    kept = trimmed(ids, size, always)
    assert len(kept) == size and list(kept) == sorted(set(kept))
    assert set(always) <= set(kept) <= every
    chosen, left = set(kept) - set(always), every - set(kept)
    if chosen and left:
        assert min(counts[token] for token in chosen) >= max(counts[token] for token in left)
    assert trimmed(ids, None, always) == tuple(sorted(every))


def test_ends_of_text_are_kept_however_rare() -> None:
    assert trimmed([5, 3, 4], 2, [9]) == (5, 9)


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"list holds 4; ask for fewer"):
        trimmed([1, 2, 3], 5, [9])
    for size, always in ((0, []), (1, [8, 9])):
        with pytest.raises(ConfigError, match="too small"):
            trimmed([1, 2, 3], size, always)
