"""benchmarks/peers/draft on a random checkpoint: questions, answers, training, files."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers.draft import main
from benchmarks.peers.draft_answers import Answer, answer_all, read_answers
from benchmarks.peers.draft_model import Shape, begin, principal
from benchmarks.peers.draft_questions import FOLLOWED, KINDS, questions, write_followed
from benchmarks.peers.draft_training import Course, Score, Trainer, score
from edgespec.errors import InputError
from tests.support.texts import TEMPLATE, TextModel, write_text_model

SMALL = Shape(layers=1, width=32, heads=2, kv_heads=1, inner=48)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_model(
        tmp_path_factory.mktemp("draft") / "tiny", TextModel(template=TEMPLATE), seed=3
    )


@pytest.fixture(scope="module")
def answers(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Answer]:
    file = tmp_path_factory.mktemp("answers") / "answers.jsonl"
    asked, _ = questions(24)
    return answer_all(asked, file, checkpoint, new=12, batch=8, dtype="float32", threads=1)


def test_questions_are_held_out_by_text_and_drawn_by_seed(tmp_path: Path) -> None:
    """What is measured was never trained on; the file in the repository is what seed 0 draws."""
    asked, held = questions(100_000)
    assert len({q.text for q in asked}) == len(asked) > 1500
    assert not {q.text for q in asked} & {q.text for q in held}
    assert [q.kind for q in asked[:4]] == [kind.name for kind in KINDS]
    assert questions(10) == (asked[:10], held) != questions(10, seed=1)
    write_followed(held, tmp_path / "followed.jsonl")
    assert (tmp_path / "followed.jsonl").read_text() == FOLLOWED.read_text()
    rows = [json.loads(line) for line in FOLLOWED.read_text().splitlines()]
    assert {row["text"] for row in rows} <= {q.text for q in held} and len(rows) == 8


def test_a_batch_answers_as_each_question_alone(checkpoint: Path, answers: list[Answer]) -> None:
    """Neither padding nor rows that have left change what the target says."""
    import torch
    from transformers import AutoModelForCausalLM

    loader: Any = AutoModelForCausalLM
    model = loader.from_pretrained(checkpoint)
    assert len({len(answer.prompt) for answer in answers[:8]}) > 1
    for answer in answers[:8]:
        with torch.inference_mode():
            ids = torch.tensor([[*answer.prompt, *answer.answer[:-1]]])
            logits = model(ids).logits[0, len(answer.prompt) - 1 :]
        assert logits.argmax(-1).tolist() == answer.answer
        shares, likely = logits.softmax(-1).topk(5)
        assert likely.tolist() == answer.likely
        assert torch.allclose(shares, torch.tensor(answer.shares), atol=1e-4)


def test_a_broken_off_run_goes_on(
    checkpoint: Path, answers: list[Answer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whole lines are kept, half of one is not, and nothing is asked twice."""
    asked, _ = questions(24)
    file = tmp_path / "answers.jsonl"
    given = {"new": 12, "batch": 8, "dtype": "float32", "threads": 1}
    answer_all(asked[:8], file, checkpoint, **given)  # type: ignore[arg-type]
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:7]) + lines[7][:50])
    capsys.readouterr()
    again = answer_all(asked, file, checkpoint, **given)  # type: ignore[arg-type]
    assert [a.answer for a in again] == [a.answer for a in answers]
    assert "15 of 24 answers" in capsys.readouterr().err
    assert sorted(a.text for a in read_answers(file)) == sorted(q.text for q in asked)
    assert answer_all(asked, file, checkpoint, minutes=0.0) == again
    assert not capsys.readouterr().err


def test_training_brings_agreement(checkpoint: Path, answers: list[Answer]) -> None:
    """A draft says afterwards what the target says, by its whole vocabulary."""
    draft = begin(checkpoint, SMALL)
    before = score(draft, answers)
    course = Course(epochs=40, batch=4, rate=8e-3, warmup=5, others=16, dtype="float32", threads=1)
    Trainer(draft, answers, course).run()
    after = score(draft, answers)
    assert before.agreement < 0.1 and after.agreement > 0.9
    assert after.accepted > 3.0


def test_score_counts_runs() -> None:
    """Of four answer tokens the third is missed: runs of 2, 1, 0 and 1."""
    import torch

    class Says:
        training = False

        def eval(self) -> None: ...
        def train(self, mode: bool) -> None: ...
        def __call__(self, input_ids: Any, use_cache: bool, logits_to_keep: int) -> Any:
            assert input_ids.tolist() == [[9, 8, 1, 2, 3]] and logits_to_keep == 4
            logits = torch.nn.functional.one_hot(torch.tensor([[1, 2, 0, 4]]), 5).float()
            return type("Out", (), {"logits": logits})

    answer = Answer("a", "b", [9, 8], [1, 2, 3, 4], [], [])
    assert score(Says(), [answer]) == Score(0.75, 1.0)


def test_principal_axes_keep_most_of_an_embedding() -> None:
    """Rows of rank two fit two axes: their angles stay."""
    import torch

    drawn = torch.Generator().manual_seed(0)
    plane = torch.randn(50, 2, generator=drawn)
    plane -= plane.mean(0)
    turned = plane @ torch.linalg.qr(torch.randn(6, 6, generator=drawn))[0][:2]
    found = principal(turned, 2)
    assert found.square().mean().sqrt() == pytest.approx(0.06, rel=1e-4)
    assert torch.allclose(
        torch.nn.functional.cosine_similarity(found[:1], found[1:]),
        torch.nn.functional.cosine_similarity(plane[:1], plane[1:]),
        atol=1e-4,
    )


@pytest.mark.slow
def test_the_command_writes_a_draft_that_edgespec_takes(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a checkpoint to a bundle whose draft proposes from the answers' own tokens."""
    from edgespec.cli import main as edgespec
    from edgespec_runtime import load

    out, work, bundle = tmp_path / "draft", tmp_path / "work", tmp_path / "both.bundle"
    sizes = ["--layers", "1", "--width", "32", "--heads", "2", "--kv-heads", "1", "--inner", "48"]
    asked = ["--checkpoint", str(checkpoint), "--out", str(out), "--work", str(work), *sizes]
    length = ["--questions", "16", "--new", "8", "--epochs", "2", "--batch", "4", "--threads", "1"]
    assert main([*asked, *length, "--dtype", "float32"]) == 0
    said = capsys.readouterr().err
    assert "training on 16 answers" in said and "held out: agreement" in said
    assert (out / "tokenizer.json").read_bytes() == (checkpoint / "tokenizer.json").read_bytes()
    vocabulary = str(out / "frequencies.json")
    exported = ["export", "--target", str(checkpoint), "--draft", str(out), "--out", str(bundle)]
    assert edgespec([*exported, "--draft-vocab", vocabulary]) == 0
    with closing(load(bundle, threads=1)) as model:
        plain = model.generate(None, "abc", draft="none", max_new_tokens=12)
        drafted = model.generate(None, "abc", draft="model", max_new_tokens=12)
    assert drafted.token_ids == plain.token_ids


def test_what_cannot_be_is_said(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sizes that no Llama has, and a folder without a checkpoint, before anything is computed."""
    given = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    assert main(["--checkpoint", str(checkpoint), *given, "--heads", "3", "--width", "64"]) == 2
    assert "give a width that twice the heads divide" in capsys.readouterr().err
    assert main(["--checkpoint", str(tmp_path), *given]) == 2
    assert "holds no config.json" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()
    with pytest.raises(InputError, match="wider than its target's 64"):
        begin(checkpoint, Shape(width=128))
