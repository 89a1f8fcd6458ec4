"""``edgespec distill``: what it measures is what a chain gets, what it resumes is what it was, and
what it writes is what ``export`` loads."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import edgespec_runtime
from edgespec.cli import main
from edgespec.errors import InputError
from edgespec_export.distill.distillation import build_student, distill
from edgespec_export.distill.evaluate import DEPTH, Earned, evaluate
from edgespec_export.distill.methods import DraftOptions
from edgespec_export.distill.plan import plan_distillation
from edgespec_export.distill.student import HeadStudent, lay_out
from edgespec_export.distill.teacher import Sample
from edgespec_export.distill.trainer import Trainer
from edgespec_export.distill.vlm import VlmStudent
from edgespec_export.exporter import ExportRequest, export_bundle
from edgespec_export.heads.layouts import open_head
from edgespec_export.heads.save import load_head
from edgespec_export.plan import open_model
from edgespec_export.questions import read_questions
from tests.support.lessons import HEADS, School, write_school


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory) -> School:
    return write_school(tmp_path_factory.mktemp("school"))


# --- The evaluation is what a chain gets ----------------------------------------------------------

CHAINS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ("eagle", "eaglevlm", "msd", "vispec", "eagle3")},
    "specvlm-pool": ("specvlm", {"compressor": "pool:4"}),
    "specvlm-select": ("specvlm", {"compressor": "elastic:select"}),
    "eagle3-trimmed": ("eagle3", {"draft_vocab": True}),
    "vlm-pool": ("vlm", {"compressor": "pool:4"}),
    "vlm-blind": ("vlm", {"compressor": "text-only"}),
}  # fmt: skip


def chain_of_head(student: HeadStudent, sample: Sample, row: int) -> Iterator[int]:
    """Tokens drafted after answer token ``row``: the layer runs anew over every row so far, the
    draft's own outputs in the place of features it does not have."""
    head, vocabulary = student.head, student.vocabulary
    laid = lay_out(head, [sample])
    known = int(laid.start[0]) + row + 1
    rows, positions = laid.rows[:, :known], laid.positions[:, :known]
    while True:
        count = rows.shape[1]
        causal = torch.ones(count, count, dtype=torch.bool).tril()[None, None]
        out = head.layer(rows, positions, causal)[0][:, -1:]
        best = int(head.logits(out).argmax())
        token = best if vocabulary is None else int(vocabulary[best])
        yield token
        embeds = head.embed_tokens(torch.tensor([[token]]))
        rows = torch.cat([rows, head.rows(embeds, head.feedback(out), laid.offset)], 1)
        positions = torch.cat([positions, positions[:, -1:] + 1], 1)


def chain_of_vlm(student: VlmStudent, sample: Sample, row: int) -> Iterator[int]:
    """The same for a model that reads tokens only."""
    table = student.model.get_input_embeddings()
    embeds = student._embeds(sample)[None, : -(sample.answers - row) or None]
    while True:
        states = student.model.get_decoder()(inputs_embeds=embeds, use_cache=False)[0]
        token = int(student.model.get_output_embeddings()(states[0, -1]).argmax())
        yield token
        embeds = torch.cat([embeds, table(torch.tensor([[token]]))], 1)


def rounds_by_drafting(student: Any, sample: Sample) -> int:
    """Decodes the sample's text with chains of ``DEPTH``, token by token, and counts rounds."""
    chain = chain_of_vlm if isinstance(student, VlmStudent) else chain_of_head
    text = sample.ids[sample.prompt :].tolist()
    at = rounds = 0
    while at + 1 < len(text):
        accepted = 0
        for token, _ in zip(chain(student, sample, at), range(DEPTH), strict=False):
            if at + 1 + accepted >= len(text) or token != text[at + 1 + accepted]:
                break
            accepted += 1
        at += accepted + 1  # the bonus token
        rounds += 1
    return rounds


def check_earned(school: School, out: Path, name: str) -> Earned:
    """Half trained, so that chains break at all depths."""
    method, options = CHAINS[name]
    draft = dict(options)
    if draft.pop("draft_vocab", False):
        draft["draft_vocab"] = str(school.frequencies)
    if method == "vlm":
        draft["draft"] = str(school.draft)
    settings = {"steps": 25, "batch": 8, "pool": 8, "evaluate_every": 100, "save_every": 100}
    request = school.request(method, out, draft=DraftOptions(**draft), settings=settings)
    trainer = school.trainer(replace(request, held_out=school.data))
    earned = trainer.run()[method]
    student = trainer.student(method).eval()
    samples = school.samples(read_questions([school.data]), 12, trainer)
    with torch.no_grad():
        rounds = [rounds_by_drafting(student, sample) for sample in samples]
    found = evaluate(student, samples, batch=4)
    assert found.rounds == sum(rounds)
    assert found.tokens == sum(len(s.ids) - s.prompt - 1 for s in samples)
    assert found.rounds < found.tokens, "nothing was accepted: the test shows nothing"
    return earned


@pytest.mark.parametrize("name", CHAINS)
def test_evaluation_equals_drafting_token_by_token(
    school: School, tmp_path: Path, name: str
) -> None:
    check_earned(school, tmp_path, name)


def test_a_trimmed_vocabulary_limits_what_is_drafted(school: School, tmp_path: Path) -> None:
    draft = DraftOptions(draft_vocab=f"{school.frequencies}:100")
    trainer = school.trainer(school.request("eagle3", tmp_path, draft=draft))
    student = trainer.student("eagle3")
    assert student.head.lm_head.weight.shape == (100, 64)
    assert torch.equal(student.head.lm_head.weight, school.teacher.head[student.vocabulary])
    trainer.run()
    samples = school.samples(read_questions([school.data]), 14, trainer)
    drafted = torch.cat([s.ids[s.prompt + 1 :] for s in samples])
    inside = torch.isin(drafted, student.vocabulary)
    assert 0 < inside.sum() < len(inside)
    assert evaluate(student, samples).agreed <= int(inside.sum())


# --- It learns ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("method", ["specvlm", "vispec", "eagle3"])
def test_loss_and_accepted_length_improve(school: School, tmp_path: Path, method: str) -> None:
    settings = {"steps": 60, "batch": 8, "pool": 8, "evaluate_every": 20}
    request = school.request(method, tmp_path, held_out=school.data, settings=settings)
    trainer = school.trainer(request)
    earned = trainer.run()[method]
    rows = trainer.progress.rows()
    assert [row["step"] for row in rows] == [0, 20, 40, 60]
    losses = [row["loss"] for row in rows[1:]]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.8 * losses[0]
    assert rows[0]["accepted_length"] < 1.2 and earned.accepted_length > 2.5
    assert rows[-1]["accepted_length"] == earned.accepted_length


def test_only_the_draft_is_trained(school: School, tmp_path: Path) -> None:
    before = {k: v.clone() for k, v in school.teacher.model.state_dict().items()}
    for method in ("specvlm", "vlm"):
        trainer = school.trainer(school.request(method, tmp_path / method))
        start = {k: v.clone() for k, v in trainer.student(method).state_dict().items()}
        trainer.run()
        frozen = ("embed_tokens",) if method == "specvlm" else ("vision_tower",)
        for name, value in trainer.student(method).state_dict().items():
            if ".branches." not in name:  # of which a step takes one
                still = any(part in name for part in frozen)
                assert torch.equal(value, start[name]) == still, name
    after = school.teacher.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_nothing_held_out_nothing_evaluated(school: School, tmp_path: Path) -> None:
    trainer = school.trainer(school.request("msd", tmp_path))
    trainer._held_out = replace(trainer._held_out, questions=[])
    assert trainer.run()["msd"] == Earned() and trainer.step == 6
    assert trainer.progress.rows() == []


# --- Killed and resumed, the same weights ---------------------------------------------------------

RESUMED: dict[str, dict[str, Any]] = {
    "eagle": {},
    "specvlm": {},
    "vispec": {"losses": {"rollout": 2, "rank": 0.1}},
    "eagle3": {},
    "vlm": {},
    "msd": {"settings": {"answer_temperature": 1.0}},
}


def check_same(one: Path, other: Path) -> None:
    """Both states hold the same bits: weights, optimiser, step."""
    first, second = (torch.load(path / "state.pt", weights_only=True) for path in (one, other))
    assert first["step"] == second["step"]
    for part in ("students", "optimizers"):
        mine, theirs = (flat(state[part]) for state in (first, second))
        assert mine.keys() == theirs.keys()
        differing = [name for name in mine if not torch.equal(mine[name], theirs[name])]
        assert not differing


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Every number and tensor of a nested state by its path."""
    if isinstance(value, dict):
        parts = [flat(v, f"{name}/{k}") for k, v in value.items()]
    elif isinstance(value, (list, tuple)):
        parts = [flat(v, f"{name}/{i}") for i, v in enumerate(value)]
    else:
        plain = value if value is not None and not isinstance(value, str) else 0
        return {name: torch.as_tensor(plain)}
    return {k: v for part in parts for k, v in part.items()}


def check_resumes(school: School, folder: Path, method: str) -> None:
    """Six steps; or four and then, in a new trainer, the rest. An evaluation is in between."""
    changes = RESUMED[method]
    whole = school.trainer(school.request(method, folder / "whole", **changes))
    finished = whole.run()[method]
    parts = school.request(method, folder / "parts", **changes)
    school.trainer(parts).run(until=4)
    torch.manual_seed(99)  # whatever the new process has drawn before
    second = school.trainer(replace(parts, resume=True))
    second.resume()
    assert second.step == 4
    assert second.run()[method] == finished
    check_same(folder / "whole", folder / "parts")
    assert rows_without_restart(second) == whole.progress.rows()


def rows_without_restart(trainer: Trainer) -> list[dict[str, Any]]:
    """``until`` makes an evaluation of its own, which a kill does not."""
    return [row for row in trainer.progress.rows() if row["step"] != 4]


@pytest.mark.parametrize("method", RESUMED)
def test_a_resumed_run_ends_with_the_same_bits(school: School, tmp_path: Path, method: str) -> None:
    check_resumes(school, tmp_path, method)


def test_progress_beyond_the_saved_step_is_forgotten(school: School, tmp_path: Path) -> None:
    """Evaluated at 3, killed before the state of step 4: step 3 happens again, told once."""
    request = school.request("eagle", tmp_path)
    school.trainer(request).run(until=2)
    killed = school.trainer(replace(request, resume=True))
    killed.resume()
    killed.settings = replace(killed.settings, save_every=100)
    killed.save = lambda: None  # type: ignore[method-assign]
    killed.run(until=3)
    with (tmp_path / "progress.jsonl").open("a") as file:
        file.write('{"step": 4, "stud')  # killed inside a line
    trainer = school.trainer(replace(request, resume=True))
    trainer.resume()
    assert [row["step"] for row in trainer.progress.rows()] == [0, 2]
    trainer.run()
    assert [row["step"] for row in trainer.progress.rows()] == [0, 2, 3, 6]


def command(school: School, out: Path, *more: object) -> list[str]:
    words = ["--target", school.target, "--data", school.data, "--held-out", school.held_out,
             "--out", out, "--batch", 2, "--pool", 4, "--answer-tokens", 12, "--rate", 3e-3,
             "--warmup", 2]  # fmt: skip
    return ["distill", *map(str, words), *map(str, more)]


SHORT = ("--method", "specvlm", "--steps", 16, "--save-every", 1, "--evaluate-every", 7)

KILLED = """
import signal, sys
from edgespec.cli import main
from edgespec_export.distill.trainer import Trainer

saves, seconds = int(sys.argv[1]), float(sys.argv[2])
save, saved = Trainer.save, []

def watched(trainer):
    save(trainer)
    saved.append(trainer.step)
    if len(saved) == saves:
        signal.setitimer(signal.ITIMER_PROF, seconds)

Trainer.save = watched
main(sys.argv[3:])
"""
"""Saves so often, and ends itself so many seconds later as ``kill -9`` would: nobody listens to
SIGPROF, so the system stops it wherever it is. The timer counts the process's own work: however
long a busy machine lets it wait, it never gets to its last step."""


@pytest.mark.slow
def test_killed_anywhere_and_resumed(
    school: School, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(command(school, whole, *SHORT)) == 0
    rng = np.random.default_rng()
    when = [str(rng.integers(1, 5)), str(rng.uniform(1e-6, 0.03))]  # anywhere in a step
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *when, *command(school, parts, *SHORT)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGPROF, (when, killed.stderr)
    assert torch.load(parts / "state.pt", weights_only=True)["step"] < 16
    capsys.readouterr()
    assert main(command(school, parts, *SHORT, "--resume", "--json")) == 0
    check_same(whole, parts)
    ours, theirs = (
        [path.read_bytes() for path in sorted((folder / "head").iterdir())]
        for folder in (whole, parts)
    )
    assert ours == theirs
    assert (whole / "progress.jsonl").read_text() == (parts / "progress.jsonl").read_text()
    steps = [step for step, _ in json.loads(capsys.readouterr().out)["history"]]
    assert steps == [0, 7, 14, 16]


def test_interrupt_saves_and_says_how_to_go_on(
    school: School,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    taught = Trainer._train_step

    def interrupted(trainer: Trainer) -> dict[str, float]:
        if trainer.step == 2:
            signal.raise_signal(signal.SIGINT)
        return taught(trainer)

    words = ["--method", "eaglevlm", "--steps", 5, "--save-every", 100]
    before = signal.getsignal(signal.SIGINT)
    assert main(command(school, tmp_path / "whole", *words)) == 0
    monkeypatch.setattr(Trainer, "_train_step", interrupted)
    assert main(command(school, tmp_path / "parts", *words)) == 130
    err = capsys.readouterr().err
    assert "saved at step 3" in err and "--resume" in err and "Traceback" not in err
    assert signal.getsignal(signal.SIGINT) is before
    assert main(command(school, tmp_path / "parts", *words, "--resume")) == 0
    check_same(tmp_path / "whole", tmp_path / "parts")


def test_resume_where_nothing_was_saved_begins(school: School, tmp_path: Path) -> None:
    words = ("--method", "msd", "--steps", 2)
    (tmp_path / "progress.jsonl").write_text('{"step": 0, "student": "msd"}\n')
    assert main(command(school, tmp_path, *words, "--resume")) == 0
    assert len((tmp_path / "progress.jsonl").read_text().splitlines()) == 2


CHANGED: dict[str, tuple[tuple[object, ...], str]] = {
    "fewer steps": (("--steps", 1), "steps was 2, is 1"),
    "seed": (("--seed", 3), "seed was 0, is 3"),
    "method": (("--method", "eagle"), "method was eaglevlm, is eagle"),
    "loss": (("--logit-weight", 0.5), "logit (loss) was 0.1, is 0.5"),
    "size": (("--intermediate", 32), "geometry was"),
    "precision": (("--target-dtype", "bfloat16"), "target dtype was float32, is bfloat16"),
    "held out": (("--held-out", "DATA"), "held-out data was"),
}


@pytest.fixture(scope="module")
def begun(school: School, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("begun")
    assert main(command(school, out, "--method", "eaglevlm", "--steps", 2)) == 0
    return out


@pytest.mark.parametrize("name", CHANGED)
def test_resume_with_other_settings_is_refused(
    school: School, begun: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words, message = CHANGED[name]
    words = tuple(school.data if word == "DATA" else word for word in words)
    base = ("--method", "eaglevlm", "--steps", 2, "--resume")
    assert main(command(school, begun, *base, *words)) == 2
    assert message in capsys.readouterr().err


def test_a_finished_run_resumes_to_its_result(
    school: School, begun: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (begun / "head" / "model.safetensors").read_bytes()
    words = ("--method", "eaglevlm", "--steps", 2, "--resume", "--json")
    assert main(command(school, begun, *words)) == 0
    result = json.loads(capsys.readouterr().out)
    assert [step for step, _ in result["history"]] == [0, 2]
    assert result["accepted_length"] == result["history"][-1][1]
    assert (begun / "head" / "model.safetensors").read_bytes() == before


def test_a_damaged_state_is_refused(
    school: School, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "state.pt").write_bytes(b"no state at all")
    assert main(command(school, tmp_path, "--method", "eagle", "--resume")) == 2
    assert "state.pt cannot be read" in capsys.readouterr().err


# --- What it writes is what export loads ----------------------------------------------------------


@pytest.mark.parametrize("name", [*HEADS, "eagle3-trimmed"])
def test_heads_are_written_in_their_layout(school: School, tmp_path: Path, name: str) -> None:
    method = name.split("-")[0]
    words: tuple[object, ...] = ("--method", method, "--steps", 2, "--dtype", "float32")
    if name == "eagle3-trimmed":
        words += ("--draft-vocab", school.frequencies)
    assert main(command(school, tmp_path, *words)) == 0
    target = open_model(str(school.target))
    opened = open_head(str(tmp_path / "head"), target)
    assert opened.geometry.variant == method
    loaded = load_head(opened, school.teacher.embedding, school.teacher.head)
    saved = torch.load(tmp_path / "state.pt", weights_only=True)["students"][method]
    assert {f"head.{name}" for name in loaded.state_dict()} == saved.keys()
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, saved[f"head.{key}"]), key


def test_a_draft_vlm_is_written_like_the_one_it_began_from(school: School, tmp_path: Path) -> None:
    words = ("--method", "vlm", "--draft", school.draft, "--compressor", "pool:4", "--steps", 2)
    assert main(command(school, tmp_path, *words)) == 0
    target, before, after = (
        open_model(str(p)) for p in (school.target, school.draft, tmp_path / "draft")
    )
    assert after.geometry == before.geometry and after.shares_vision(target)
    assert after.text_fingerprint != before.text_fingerprint
    config = after.checkpoint.config
    assert config["edgespec_target_fingerprint"] == target.text_fingerprint
    small = {p.name for p in school.draft.iterdir()}
    assert {p.name for p in (tmp_path / "draft").iterdir()} == small
    saved = torch.load(tmp_path / "state.pt", weights_only=True)["students"]["vlm"]
    ours = after.checkpoint.tensor("text.layers.0.mlp.up_proj.weight")
    (theirs,) = [v for k, v in saved.items() if k.endswith("text.layers.0.mlp.up_proj.weight"[5:])
                 and "vision" not in k]  # fmt: skip
    assert np.array_equal(ours, theirs.numpy())


@pytest.mark.slow
@pytest.mark.parametrize("method", [*HEADS, "vlm"])
def test_the_runtime_accepts_what_the_evaluation_said(
    school: School, tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Distilled, written, exported, decoded: the accepted length of chains is the same number."""
    words = ["--method", method, "--steps", 40, "--batch", 8, "--pool", 8, "--json"]
    more = ["--draft", school.draft, "--compressor", "pool:4"] if method == "vlm" else []
    held_out = ["--held-out", school.data, "--dtype", "float32"]
    assert main(command(school, tmp_path / "out", *words, *more, *held_out)) == 0
    result = json.loads(capsys.readouterr().out)
    bundle = tmp_path / "bundle"
    compressor = "pool:4" if method == "vlm" else None
    export_bundle(ExportRequest(str(school.target), bundle, result["out"], compressor))
    model = edgespec_runtime.load(bundle, threads=1)
    tokens = rounds = 0
    for question in read_questions([school.data]):
        images = [question.image] if question.image else []
        policy = f"eagle2:nodes={DEPTH},depth={DEPTH},top_k=1"
        said = model.generate(images, question.prompt, policy=policy, max_new_tokens=12)
        tokens += len(said.token_ids) - 1
        rounds += said.stats.rounds
    assert tokens / rounds == result["accepted_length"] > 1.2


def test_a_dtype_that_would_change_the_shared_tower_is_refused(
    school: School, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--method", "vlm", "--draft", school.draft, "--dtype", "float16", "--steps", 2)
    assert main(command(school, tmp_path / "out", *words)) == 2
    assert "vision tower" in capsys.readouterr().err and not (tmp_path / "out").exists()


# --- The command ----------------------------------------------------------------------------------


def test_json_has_the_stable_keys(
    school: School, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--method", "specvlm", "--compressor", "conv:3", "--steps", 2, "--json")
    assert main(command(school, tmp_path / "out", *words)) == 0
    out = capsys.readouterr().out
    value = json.loads(out)
    assert set(value) == {
        "out", "method", "steps", "accepted_length", "agreement", "history", "seconds",
    }  # fmt: skip
    assert value["steps"] == 2 and [step for step, _ in value["history"]] == [0, 2]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"state.pt", "progress.jsonl", "head"}


def test_a_part_of_the_data_is_held_out_by_default(
    school: School, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of ten: the last, which the target answers with five tokens, or with one."""
    words = ["distill", "--target", school.target, "--out", tmp_path / "out", "--method", "eagle",
             "--steps", 1, "--answer-tokens", 8]  # fmt: skip
    for files, code in (((school.data, school.held_out), 2), ((school.held_out, school.data), 0)):
        given = [word for file in files for word in ("--data", file)]
        assert main([str(word) for word in (*words, *given)]) == code
    assert "nothing to evaluate" in capsys.readouterr().err
    rows = (tmp_path / "out" / "progress.jsonl").read_text().splitlines()
    assert [json.loads(row)["tokens"] for row in rows] == [4, 4]


def test_overwrite_removes_its_own_files_only(
    school: School, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "state.pt").write_text("an old one")
    words = ("--method", "eagle", "--steps", 1)
    assert main(command(school, tmp_path, *words)) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main(command(school, tmp_path, *words, "--overwrite")) == 0
    assert (tmp_path / "notes.txt").read_text() == "mine"


MISTAKES: dict[str, tuple[tuple[object, ...], str]] = {
    "unknown method": (("--method", "eagle-vlm"), "did you mean 'eaglevlm'?"),
    "vlm without draft": (("--method", "vlm"), "--draft"),
    "draft for a head": (("--method", "eagle", "--draft", "x"), "it is for vlm"),
    "queries": (("--method", "eagle", "--queries", 4), "it is for vispec"),
    "one query": (("--method", "vispec", "--queries", 1), "leaves no token"),
    "compressor": (("--method", "msd", "--compressor", "pool:4"), "it is for specvlm, vlm"),
    "ratio": (("--method", "specvlm", "--compressor", "pool:40"), "only 36 visual tokens"),
    "trained compressor": (
        ("--method", "vlm", "--draft", "DRAFT", "--compressor", "conv:3"), "cannot carry",
    ),
    "gate": (
        ("--method", "vlm", "--draft", "DRAFT", "--compressor", "elastic:select"), "cannot carry",
    ),
    "feature loss": (("--method", "eagle3", "--feature-weight", 1), "means nothing to"),
    "rollout": (("--method", "vlm", "--draft", "DRAFT", "--rollout", 1), "means nothing to"),
    "decay alone": (("--method", "eagle", "--rollout-decay", 0.5), "needs --rollout"),
    "no loss": (
        ("--method", "eagle", "--logit-weight", 0, "--feature-weight", 0), "weights of the loss",
    ),
    "kv heads": (("--method", "eagle", "--kv-heads", 3), "does not divide"),
    "vocabulary": (("--method", "eagle3", "--draft-vocab", "none.json"), "none.json"),
    "both": (("--method", "eagle", "--resume", "--overwrite"), "give one"),
    "no data": (("--method", "eagle", "--data", "none.jsonl"), "cannot be read"),
    "no target": (("--method", "eagle", "--target", "./none"), "does not exist"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_before_anything_is_written(
    school: School, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words, message = MISTAKES[name]
    words = tuple(school.draft if word == "DRAFT" else word for word in words)
    assert main(command(school, tmp_path / "out", *words)) == 2
    out, err = capsys.readouterr()
    assert message in err and out == "" and not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", ["layers.3.mlp.up_proj", "linear_1", "layers.1.mlp.fc1"])
def test_a_target_with_nan_is_refused(
    school: School, tmp_path: Path, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    from safetensors.numpy import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(school.target, broken)
    tensors = load_file(broken / "model.safetensors")
    (name,) = [n for n in tensors if n.endswith(f"{part}.weight")]
    tensors[name][0, 0] = np.nan
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    words = ("--method", "eagle", "--target", broken)
    assert main(command(school, tmp_path / "out", *words)) == 2
    assert "NaN" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_help_tells_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgespec.cli import build_parser
    from edgespec_export.distill.settings import Losses, Settings

    monkeypatch.setenv("COLUMNS", "1000")  # no word is divided, whatever the terminal
    text = re.sub(r"\s+", " ", build_parser()[1]["distill"].format_help())
    told = {**vars(Settings()), **vars(Losses())}
    for words, name in (
        ("optimiser steps ({})", "steps"), ("answers a step ({};", "batch"),
        ("linear warm-up ({};", "warmup"), ("longest answer ({})", "answer_tokens"),
        ("answered in one go ({})", "pool"), ("between evaluations ({})", "evaluate_every"),
        ("between saved states ({})", "save_every"), ("target's logits ({}:", "logit"),
        ("target's features ({}:", "feature"), ("the one before ({}:", "decay"),
    ):  # fmt: skip
        assert words.format(told[name]) in text, words


# --- One process and two --------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_share_every_step(school: School, tmp_path: Path) -> None:
    """The same command on one and on two: the same answers, and weights equal up to the order in
    which float32 adds."""
    words = ("--method", "specvlm", "--compressor", "elastic:select", "--steps", 6,
             "--evaluate-every", 3, "--json")  # fmt: skip
    alone = [sys.executable, "-m"]
    launchers = {
        "one": "accelerate.commands.launch --cpu --num_processes 1 --num_machines 1 "
        "--mixed_precision no --dynamo_backend no",
        "two": "torch.distributed.run --standalone --nproc_per_node 2",
    }
    results = []
    for name, launcher in launchers.items():
        done = subprocess.run(
            [
                *alone,
                *launcher.split(),
                "-m",
                "edgespec",
                *command(school, tmp_path / name, *words),
            ],
            capture_output=True,
            text=True,
            env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        assert "broadcast_buffers" not in done.stderr and done.stderr.count("step 6:") == 1
        results.append(json.loads(done.stdout))  # printed once
    assert [s for s, _ in results[0]["history"]] == [s for s, _ in results[1]["history"]]
    one, two = (
        torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("one", "two")
    )
    assert (one["workers"], two["workers"]) == (1, 2)
    for name, value in one["students"]["specvlm"].items():
        assert torch.allclose(value, two["students"]["specvlm"][name], atol=1e-4), name


def test_a_second_stage_begins_with_the_first_ones_weights(school: School, tmp_path: Path) -> None:
    first = distill(school.request("vispec", tmp_path / "one"))
    assert first is not None
    options = DraftOptions(begin_from=str(first.out))
    request = replace(school.request("vispec", tmp_path / "two"), draft=options)
    begun = build_student(plan_distillation(request), school.teacher).head.state_dict()
    for name, tensor in load_file(first.out / "model.safetensors").items():
        assert torch.equal(begun[name], tensor.float()), name
    second = distill(request)
    assert second is not None and second.history[0][1] >= 1.0
    wider = replace(options, intermediate=48)
    for method, given, message in (
        ("eaglevlm", options, "its tensors are those of"),
        ("vispec", wider, "another draft than the one asked for; they differ in: text"),
        ("vlm", options, "means nothing"),
    ):
        wrong = replace(school.request(method, tmp_path / "three"), draft=given)
        with pytest.raises(InputError, match=message):
            plan_distillation(wrong)
