"""The parts of a distillation: questions, their order, the target's answers, losses, rounds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgespec.errors import ConfigError, InputError
from edgespec_export.distill.answers import Answers, teachable
from edgespec_export.distill.course import Course, digest_of, split_questions
from edgespec_export.distill.evaluate import rounds_of
from edgespec_export.distill.methods import (
    METHODS,
    DraftOptions,
    default_rate,
    head_geometry,
)
from edgespec_export.distill.settings import Settings
from edgespec_export.distill.student import list_mle, soft_cross_entropy
from edgespec_export.distill.teacher import Teacher
from edgespec_export.heads.geometry import VARIANTS
from edgespec_export.plan import open_model
from edgespec_export.questions import Question, read_questions
from tests.support.lessons import School, write_school


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory) -> School:
    return write_school(tmp_path_factory.mktemp("school"))


# --- Questions and their order --------------------------------------------------------------------


def test_questions_are_first_turns_with_their_pictures(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    file = tmp_path / "q.jsonl"
    rows = [
        {"turns": ["one\u2028line", "two"], "image": "a.png", "more": 1},
        {"turns": ["no picture"], "image": None},
    ]
    file.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows) + "\n\n", "utf-8")
    found = read_questions([file, file])
    assert found[:2] == found[2:]
    expected = [Question(tmp_path / "a.png", "one\u2028line"), Question(None, "no picture")]
    assert found[:2] == expected


BAD_ROWS = {
    "{": "is no JSON",
    "[]": "has no 'turns'",
    '{"turns": []}': "has no 'turns'",
    '{"turns": [" "]}': "has no 'turns'",
    '{"turns": ["x"], "image": "none.png"}': "does not exist",
    '{"turns": ["x"], "image": "q.jsonl"}': "cannot be read",
}


@pytest.mark.parametrize("row", BAD_ROWS)
def test_bad_rows_are_told_by_line(tmp_path: Path, row: str) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text('{"turns": ["fine"]}\n' + row + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"line 2.*" + BAD_ROWS[row]):
        read_questions([file])


def test_nothing_to_ask(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text("\n")
    with pytest.raises(InputError, match="no questions"):
        read_questions([tmp_path / "q.jsonl"])


@pytest.mark.parametrize(("count", "aside"), [(2, 1), (30, 2), (200, 10), (5000, 48)])
def test_the_end_is_held_out(count: int, aside: int) -> None:
    questions = [Question(None, str(n)) for n in range(count)]
    learn, held_out = split_questions(questions, [])
    assert learn + held_out == questions and len(held_out) == aside
    assert split_questions(questions, questions[:1]) == (questions, questions[:1])


def test_one_question_cannot_be_both() -> None:
    with pytest.raises(ConfigError, match="held-out"):
        split_questions([Question(None, "x")], [])


def test_digest_sees_prompts_pictures_and_order() -> None:
    one, two = Question(None, "a"), Question(Path("x/b.png"), "a")
    assert digest_of([one, two]) != digest_of([two, one])
    assert digest_of([two]) == digest_of([Question(Path("elsewhere/b.png"), "a")])


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 20), st.integers(0, 3))
def test_every_epoch_asks_every_question_once(count: int, batch: int, pool: int, seed: int) -> None:
    course = Course(count, batch, pool, seed)
    steps = sum(-(-len(course.members(p)) // batch) for p in range(course.pools))
    for epoch in range(2):
        asked: list[int] = []
        for step in range(epoch * steps, (epoch + 1) * steps):
            number, chosen = course.step(step)
            assert 1 <= len(chosen) <= batch and set(chosen) <= set(course.members(number))
            asked += chosen
        assert sorted(asked) == list(range(count))


# --- The target -----------------------------------------------------------------------------------


def questions_of(school: School) -> list[Question]:
    return read_questions([school.data])


def test_samples_are_what_a_plain_forward_shows(school: School) -> None:
    questions = questions_of(school)[:3]
    answers = school.teacher.answer(questions, 10)
    samples = school.teacher.study(questions, answers, (2, 3, 4))
    for question, answer, sample in zip(questions, answers, samples, strict=True):
        inputs = school.teacher._inputs([question])
        prompt = inputs["input_ids"].shape[1]
        assert sample.prompt == prompt and sample.ids.tolist()[prompt:] == answer
        inputs |= {"input_ids": sample.ids[None], "attention_mask": torch.ones(1, len(sample.ids))}
        with torch.no_grad():
            plain = school.teacher.model(**inputs, output_hidden_states=True)
        states = plain.hidden_states
        close: dict[str, Any] = {"atol": 1e-4, "rtol": 1e-4}
        wanted = plain.logits[0, prompt:-1]
        assert torch.allclose(sample.logits, wanted, **close)
        assert torch.allclose(sample.embeds, states[0][0], **close)
        assert torch.allclose(sample.states, states[-1][0, prompt:-1], **close)
        assert torch.allclose(sample.features, torch.cat([states[k][0] for k in (2, 3, 4)], -1),
                              **close)  # fmt: skip
        assert sample.ids.tolist()[prompt + 1 :] == wanted.argmax(-1).tolist()
        assert sum(end - start for start, end in sample.spans) == 36 * bool(question.image)


def test_answers_heed_no_defaults_of_the_checkpoint(school: School, tmp_path: Path) -> None:
    """A repetition penalty would give texts that the target's logits do not explain."""
    folder = tmp_path / "penalised"
    shutil.copytree(school.target, folder)
    file = folder / "generation_config.json"
    defaults = {"repetition_penalty": 3.0, "do_sample": True, "temperature": 2.0, "top_k": 3}
    file.write_text(json.dumps({**json.loads(file.read_text()), **defaults}))
    teacher = Teacher(folder, torch.device("cpu"))
    questions = questions_of(school)[:2]
    assert teacher.answer(questions, 8) == school.teacher.answer(questions, 8)


def test_sampled_answers_repeat_with_their_seed(school: School) -> None:
    questions = questions_of(school)[:2]
    draws = [school.teacher.answer(questions, 8, 1.0, seed) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_a_target_in_half_precision_shows_float32(school: School) -> None:
    teacher = Teacher(school.target, torch.device("cpu"), torch.bfloat16)
    questions = questions_of(school)[:2]
    answers = [[5, 6, 7], [8, 9]]
    half = teacher.study(questions, answers)
    full = school.teacher.study(questions, answers)
    for ours, theirs in zip(half, full, strict=True):
        assert ours.logits.dtype == ours.embeds.dtype == torch.float32
        assert 0 < (ours.states - theirs.states).abs().max() < 0.5
    assert teacher.embedding.dtype == teacher.head.dtype == torch.float32


def test_prompts_that_place_the_picture_themselves_are_refused(school: School) -> None:
    with pytest.raises(InputError, match="<image>"):
        school.teacher.check([Question(None, "fine"), Question(None, "<image>\nWhat?")])


def test_a_prompt_beyond_the_context_is_told(school: School) -> None:
    with pytest.raises(InputError, match=r"'yyyy.*context of 256"):
        school.teacher.answer([Question(None, "x"), Question(None, "y" * 250)], 8)


def test_answers_stop_at_the_end_of_the_context(school: School) -> None:
    (answer,) = school.teacher.answer([Question(None, "z" * 236)], 200)
    assert 1 <= len(answer) <= 256 - 236


# --- Answers, pool by pool ------------------------------------------------------------------------


class Scripted:
    """Answers by the length that a prompt names, and remembers what it was asked together."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def answer(
        self, questions: Sequence[Question], limit: int, temperature: float, seed: int
    ) -> list[list[int]]:
        self.calls.append([q.prompt for q in questions])
        return [list(range(int(q.prompt))) for q in questions]


def scripted(lengths: Sequence[int], **settings: Any) -> tuple[Answers, Scripted]:
    teacher: Any = Scripted()
    questions = [Question(None, str(n)) for n in lengths]
    alone = SimpleNamespace(process_index=0, num_processes=1)
    return Answers(teacher, questions, Settings(**settings), alone), teacher


def test_answers_without_a_token_to_draft_are_left_out() -> None:
    answers, _ = scripted([1, 4, 0, 3], batch=4, pool=4)
    assert sorted(q.prompt for q, _ in answers.step(0)) == ["3", "4"]
    assert all(teachable(a) for _, a in answers.step(0))
    assert np.array_equal(dict((q.prompt, a) for q, a in answers.step(0))["3"], [0, 1, 2])


def test_a_step_may_have_nothing_to_teach() -> None:
    answers, _ = scripted([1, 1, 5, 1], batch=1, pool=4)
    assert sorted(len(answers.step(step)) for step in range(4)) == [0, 0, 0, 1]


def test_a_pool_without_anything_to_teach_is_an_error() -> None:
    answers, _ = scripted([1, 0], batch=1, pool=2)
    with pytest.raises(InputError, match="nothing to learn"):
        answers.step(0)


def test_pools_are_answered_together_once_and_when_needed() -> None:
    answers, teacher = scripted([5, 6, 7, 8, 9], batch=1, pool=2)
    for step in range(10):
        answers.step(step)
    assert sorted(teacher.calls) == [["5", "6"], ["7", "8"], ["9"]]


# --- Losses and rounds ----------------------------------------------------------------------------


def test_list_mle_is_the_likelihood_of_the_order() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, target = (torch.randn(3, 20, generator=generator) for _ in range(2))
    total = 0.0
    for row in range(3):
        order = target[row].argsort(descending=True)[:10]
        scores = logits[row, order]
        for place in range(10):
            total -= float(scores[place] - scores[place:].logsumexp(0))
    assert float(list_mle(logits, target)) == pytest.approx(total / 30, rel=1e-5)


def test_soft_cross_entropy_is_least_at_the_target() -> None:
    target = torch.randn(4, 7, generator=torch.Generator().manual_seed(1))
    entropy = -(target.softmax(-1) * target.log_softmax(-1)).sum(-1).mean()
    assert torch.allclose(soft_cross_entropy(target, target), entropy)
    assert soft_cross_entropy(target.flip(-1), target) > entropy
    assert float(soft_cross_entropy(target[:0], target[:0])) == 0


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), max_size=12))
def test_rounds_of_chains(rows: list[list[bool]]) -> None:
    """A row's chain is cut at its first miss and at the end of the text."""
    at = rounds = 0
    while at < len(rows):
        accepted = 0
        while accepted < 4 and rows[at][accepted]:
            accepted += 1
        at, rounds = at + accepted + 1, rounds + 1
    assert rounds_of(torch.tensor(rows, dtype=torch.bool).reshape(-1, 4)) == rounds


# --- Methods --------------------------------------------------------------------------------------


def test_every_variant_can_be_distilled(school: School) -> None:
    assert set(METHODS) == {*VARIANTS, "vlm"}
    target = open_model(str(school.target)).geometry
    for name in VARIANTS:
        geometry = head_geometry(name, DraftOptions(), target)
        assert geometry.variant == name and geometry.text.layers == 1
        assert (geometry.text.kv_heads, geometry.text.intermediate) == (4, 96)
        assert geometry.queries == (2 if name == "vispec" else 0)
    small = head_geometry("eagle", DraftOptions(intermediate=48, kv_heads=2), target)
    assert (small.text.kv_heads, small.text.intermediate) == (2, 48)


def test_eagle3_needs_three_places_to_read(school: School) -> None:
    from dataclasses import replace

    target = open_model(str(school.target)).geometry
    assert head_geometry("eagle3", DraftOptions(), target).feature_layers == (2, 3, 4)
    shallow = replace(target, text=replace(target.text, layers=6))
    with pytest.raises(ConfigError, match="6 layers are too few"):
        head_geometry("eagle3", DraftOptions(), shallow)


def test_default_rates_are_the_published_ones() -> None:
    assert default_rate(4096) == 8e-5  # SpecVLM, 7B
    assert default_rate(5120) == pytest.approx(5e-5, rel=0.3)  # SpecVLM, 13B
    assert default_rate(64) == 1e-3
