"""edgespec bench: what it measures, what it refuses, what it leaves when it is broken off."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import edgespec_runtime
from edgespec.acceptance import Verdict, walk
from edgespec.cli import bench, main
from edgespec.errors import ConfigError, InputError
from edgespec.tree import TokenTree
from edgespec_export.exporter import ExportRequest, export_bundle
from edgespec_export.family import checkpoint_path, sample_folder
from edgespec_runtime import Model, Record, Stats
from edgespec_runtime.bench.cells import Cell, differences, summarise
from edgespec_runtime.bench.data import Row, read_rows, read_sets, select
from edgespec_runtime.bench.measure import BASELINE, Run, Settings, Side, Turn, measure
from edgespec_runtime.bench.methods import Method, Source, plan, read_sources
from edgespec_runtime.bench.plot import draw
from edgespec_runtime.bench.report import markdown

KEYS = {
    "method", "compressor", "policy", "temperature", "task", "domain", "accepted_length",
    "accepted_length_includes_bonus", "speedup_decode", "speedup_e2e", "exact_match", "n",
}  # fmt: skip
PICTURE = "in_domain/00.jpg"


def ask(folder: Path, name: str = "own", **fields: Any) -> Path:
    """A data file with one row (or ``rows``) about a built-in picture."""
    row = {
        "id": "a", "image": str(sample_folder() / PICTURE), "turns": ["Write a short caption."],
        "category": "caption", "topic": "single-turn",
    }  # fmt: skip
    rows = fields.pop("rows", [{}])
    path = folder / f"{name}.jsonl"
    lines = [json.dumps({**row, "id": f"r{i}", **fields, **own}) for i, own in enumerate(rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def quick(bundle: Path, *words: object) -> list[str]:
    """A benchmark that takes no time."""
    small = ["--prompts", 1, "--repeats", 1, "--max-new-tokens", 8, "--threads", 1]
    return ["bench", "--bundle", str(bundle), *map(str, small), *map(str, words)]


@pytest.fixture(scope="module")
def model(builtin_bundle: Path) -> Model:
    return edgespec_runtime.load(builtin_bundle, threads=1)


@pytest.fixture(scope="module")
def plain_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in target without a draft."""
    out = tmp_path_factory.mktemp("plain") / "plain.bundle"
    export_bundle(ExportRequest(str(checkpoint_path("target")), out))
    return out


# -- prompt sets ------------------------------------------------------------------------------


def test_rows_are_read_and_pictures_found(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("beside.png", "images/below.png"):
        (tmp_path / name).touch()
    images = ("beside.png", "below.png", None, ["beside.png", "below.png"])
    rows = read_rows(ask(tmp_path, rows=[{"image": image} for image in images]))
    assert [[image.name for image in row.images] for row in rows] == [
        ["beside.png"], ["below.png"], [], ["beside.png", "below.png"],
    ]  # fmt: skip
    assert rows[0].domain == "own" and rows[0].task == "caption"
    assert read_rows(tmp_path / "own.jsonl", "topic")[0].task == "single-turn"


BAD_LINES: dict[str, tuple[str, str]] = {
    "no JSON": ("{", "is no JSON"),
    "no object": ("[]", "must be an object"),
    "no turns": ('{"id": 1, "category": "x"}', "has no 'turns'"),
    "no category": ('{"id": 1, "turns": ["x"]}', "has no 'category'"),
    "turns no list": ('{"id": 1, "category": "x", "turns": "x"}', "list of texts"),
    "empty turn": ('{"id": 1, "category": "x", "turns": [" "]}', "not empty"),
    "category": ('{"id": 1, "category": 7, "turns": ["x"]}', "name of a task"),
    "image": ('{"id": 1, "category": "x", "turns": ["x"], "image": 7}', "'image' must be"),
    "lost image": ('{"id": 1, "category": "x", "turns": ["x"], "image": "no.png"}', "no picture"),
    "id twice": ('{"id": "r0", "category": "x", "turns": ["x"]}', "used before"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_named(name: str, tmp_path: Path) -> None:
    path = ask(tmp_path)
    line, expected = BAD_LINES[name]
    path.write_text(path.read_text() + "\n" + line + "\n")
    with pytest.raises(InputError, match=f"line 3.*{expected}|line 3: {expected}"):
        read_rows(path)


def test_files_that_hold_nothing_or_cannot_be_told_apart(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    (tmp_path / "other").mkdir()
    twins = [ask(tmp_path), ask(tmp_path / "other")]
    for paths, expected in (([empty], "no rows"), (twins, "two data files"), ([tmp_path], "read")):
        with pytest.raises(InputError, match=expected):
            read_sets(paths)


def test_rows_are_selected_by_set_and_task() -> None:
    rows = read_sets([sample_folder() / f"{d}.jsonl" for d in ("in_domain", "out_of_domain")])
    chosen = select(rows, ["naming", "detailed"], 3)
    assert [(row.domain, row.task) for row in chosen].count(("out_of_domain", "naming")) == 3
    assert len(chosen) == 12 and max(len(row.turns) for row in chosen) == 2
    assert {len(row.turns) for row in select(rows, first_turn=True)} == {1}
    with pytest.raises(ConfigError, match="unknown task 'namnig'; did you mean naming"):
        select(rows, ["namnig"])


# -- methods ----------------------------------------------------------------------------------


def source(variant: str | None, compressor: str = "none", target: str = "t") -> Source:
    path = Path(f"{variant}-{compressor}-{target}")
    return Source(path, path.name, variant, compressor, (target,))


def planned(sources: list[Source], *names: str) -> list[tuple[str, list[tuple[str, str]]]]:
    found = plan(sources, names)
    return [(source.name, [(m.name, m.draft) for m in methods]) for source, methods in found]


def test_methods_are_filtered_and_ngram_runs_once_per_target() -> None:
    sources = [source("vlm", "pool:4"), source("vispec", "resampler:64"), source(None)]
    vlm, vispec = ("vlm", "model"), ("vispec", "model")
    assert planned(sources) == [("vlm-pool:4-t", [vlm]), ("vispec-resampler:64-t", [vispec])]
    assert planned(sources, "vispec") == [("vispec-resampler:64-t", [vispec])]
    assert planned(sources, "ngram", "vlm+ngram") == [
        ("vlm-pool:4-t", [("vlm+ngram", "model+ngram"), ("ngram", "ngram")])
    ]
    assert planned([*sources, source(None, target="u")], "ngram") == [
        ("vlm-pool:4-t", [("ngram", "ngram")]),
        ("None-none-u", [("ngram", "ngram")]),
    ]
    with pytest.raises(ConfigError, match=r"unknown method 'vispce'; did you mean vispec\? there"):
        plan(sources, ["vispce"])
    with pytest.raises(ConfigError, match="nothing to compare"):
        plan([source(None)])


def test_sources_are_read_from_manifests(builtin_bundle: Path, plain_bundle: Path) -> None:
    own, bare = read_sources([builtin_bundle, plain_bundle])
    assert (own.variant, own.compressor, own.name) == ("vlm", "pool:4", builtin_bundle.name)
    assert bare.variant is None and bare.target == own.target
    with pytest.raises(InputError, match="given twice"):
        read_sources([builtin_bundle, builtin_bundle / "." / ".." / builtin_bundle.name])


# -- measuring --------------------------------------------------------------------------------


class Spy:
    """A model that writes down what it is asked, and drafts with its own draft for n-grams."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.manifest = model.manifest
        self.asked: list[dict[str, Any]] = []

    def stream(self, images: Any, prompt: Any, **settings: Any) -> Any:
        self.asked.append({"images": images, "prompt": list(prompt), **settings})
        own = {"ngram": "model", "model+ngram": "model"}
        draft = own.get(settings["draft"], settings["draft"])
        return self.model.stream(images, prompt, **{**settings, "draft": draft})


METHODS = (Method("vlm", "model", "pool:4"), Method("ngram", "ngram", "none"))


def spied(model: Model, rows: list[Row], settings: Settings) -> tuple[list[Turn], Spy]:
    spy: Any = Spy(model)
    return list(measure(spy, "b", METHODS, rows, settings)), spy


def test_sides_are_interleaved_and_their_order_moves(model: Model, tmp_path: Path) -> None:
    rows = read_rows(ask(tmp_path, rows=[{}, {}]))
    settings = Settings(("eagle2:nodes=4",), (0.0, 0.7), 2, 6, seed=5)
    turns, spy = spied(model, rows, settings)
    drafts = [asked["draft"] for asked in spy.asked[:9]]
    assert drafts == [
        "none", "model", "ngram", "model", "ngram", "none", "ngram", "none", "model",
    ]  # fmt: skip
    assert {asked["policy"] for asked in spy.asked} == {None, "eagle2:nodes=4"}
    assert [(turn.temperature, turn.seed) for turn in turns] == [(0, 5), (0, 6), (0.7, 5), (0.7, 6)]
    assert all(len(runs) == 2 for turn in turns for runs in turn.runs.values())
    assert not differences(turns)


def test_later_turns_go_on_from_the_targets_own_answers(model: Model, tmp_path: Path) -> None:
    turns = ["Write a short caption.", "What is in the bottom right?", "Describe the image."]
    rows = read_rows(ask(tmp_path, turns=turns))
    measured, spy = spied(model, rows, Settings(repeats=1, max_new_tokens=12))
    assert [turn.number for turn in measured] == [1, 2, 3]
    answers = [turn.runs[BASELINE][0].text for turn in measured]
    history = spy.asked[-1]["prompt"]
    said = [part["text"] for message in history for part in message["content"] if "text" in part]
    assert said == [turns[0], answers[0], turns[1], answers[1], turns[2]]
    parts = [part["type"] for message in history for part in message["content"]]
    assert parts.count("image") == 1 and parts[0] == "image"
    assert [message["role"] for message in history][-2:] == ["assistant", "user"]
    assert not differences(measured)


def test_a_turn_that_does_not_fit_is_left_out_and_counted(model: Model, tmp_path: Path) -> None:
    rows = read_rows(ask(tmp_path, turns=["Write a short caption.", "word " * 3000, "And now?"]))
    turns, _ = spied(model, rows, Settings(repeats=1, max_new_tokens=4))
    assert [bool(turn.skipped) for turn in turns] == [False, True, True]
    assert "context holds" in turns[1].skipped
    cell = summarise(turns)[0]
    assert (cell.n, cell.skipped) == (1, 2) and "context: 2" in markdown([cell])


# -- figures ----------------------------------------------------------------------------------


def generated(tokens: int, per_round: int, *, rate: float, total: float, first: int = 0) -> Run:
    """A made-up run: every round takes 2 ms of drafting and 3 ms of verifying, after 1.5 ms for
    the draft's prompt."""
    rounds = (tokens - 1) // per_round
    record = Record(first, "", True, per_round, per_round, 2.0, 3.0, 0.0, "target", None)
    times = (2.0 * rounds, 3.0 * rounds, 1.5, 4.0)
    stats = Stats(rate, 10.0, rounds, per_round, *times, 10.0 + 50.0)
    ids = (first, *range(1, tokens))
    return Run("", ids, (record,) * rounds, "eos", 9, stats, 12.0, total)


def made_up(plain: Run, mine: Run, identity: str = "a", **settings: Any) -> Turn:
    row = Row(identity, (), ("x",), settings.pop("task", "t"), "d")
    side = Side(METHODS[0], "default")
    turn = Turn(settings.pop("bundle", "b"), row, 0.0, 0, runs={BASELINE: [plain], side: [mine]})
    return replace(turn, **settings)


def test_figures_are_what_they_say() -> None:
    plain = generated(13, 1, rate=100, total=60)
    turns = [
        made_up(plain, generated(13, 4, rate=200, total=40)),  # 3 rounds
        made_up(plain, generated(13, 2, rate=300, total=30), "b"),  # 6 rounds
        made_up(plain, generated(13, 2, rate=700, total=10), "c"),
    ]
    cell = summarise(turns)[0]
    assert cell.n == 3 and cell.tokens == 13
    assert cell.accepted_length == pytest.approx(36 / 15)  # over rounds, not over prompts
    assert cell.speedup_decode == 3 and cell.speedup_e2e == pytest.approx(2)
    assert (cell.plain_round_ms, cell.draft_ms_per_round, cell.verify_ms_per_round) == (3, 2, 3)
    assert cell.draft_prefill_ms == pytest.approx(1.5)
    assert cell.draft_overhead == pytest.approx((12 + 1.5) / 50)
    assert cell.host_share == pytest.approx(4 / 50) and cell.exact_match == 1


def test_an_answer_of_one_token_has_no_speed() -> None:
    short = generated(1, 1, rate=0, total=20)
    cell = summarise([made_up(short, short)])[0]
    assert cell.speedup_decode is None and cell.accepted_length is None and cell.speedup_e2e == 1
    assert " - |" in markdown([cell])


def test_a_difference_is_found_wherever_it_is() -> None:
    plain = generated(5, 1, rate=1, total=9)
    longer, other = generated(7, 1, rate=1, total=9), generated(5, 1, rate=1, total=9, first=3)
    turns = [made_up(plain, plain), made_up(plain, longer, "b"), made_up(plain, other, "c")]
    assert [(miss.id, miss.position) for miss in differences(turns)] == [("b", 5), ("c", 0)]
    cell = summarise(turns)[0]
    assert cell.exact_match == pytest.approx(1 / 3)
    assert "**NOT EXACT: 33.33 %**" in markdown([cell])


def test_cells_are_ordered_by_task_and_told_apart() -> None:
    run = generated(5, 1, rate=1, total=9)
    turns = [
        made_up(run, run, bundle=bundle, task=task) for bundle in ("one", "two") for task in "tu"
    ]
    for turn in turns:
        turn.runs[Side(METHODS[0], "rolling")] = [run]
    cells = summarise(turns)
    assert [cell.task for cell in cells] == ["t"] * 4 + ["u"] * 4
    table = markdown(cells)
    assert "| bundle | policy " in table and "policy default" not in table
    lines = table.splitlines()[2:]
    assert len({line.count("|") for line in lines}) == 1 and len(lines) == 2 + 8


@pytest.fixture(scope="module")
def cells() -> list[Cell]:
    plain = generated(13, 1, rate=100, total=60)
    other = generated(13, 4, rate=200, total=40, first=2)
    exact = generated(13, 4, rate=250, total=30)
    return summarise([made_up(plain, exact), made_up(plain, other, task="$x_$ & <y>")])


def test_the_picture_is_deterministic_small_and_says_what_is_wrong(
    cells: list[Cell], tmp_path: Path
) -> None:
    for name in ("a.svg", "b.svg", "a.png"):
        draw(cells, tmp_path / name)
    first = (tmp_path / "a.svg").read_bytes()
    assert first == (tmp_path / "b.svg").read_bytes() and len(first) < 60_000
    text = first.decode()
    for words in ("NOT EXACT", "2.50x", "τ 4.00", "vlm pool:4", "bonus counted"):
        assert words in text
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


# -- the command ------------------------------------------------------------------------------


def test_json_and_files(
    builtin_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {name: tmp_path / name for name in ("t.md", "p.svg", "r.jsonl")}
    words = ["--task", "naming", "--task", "detailed", "--temperature", 0, "--temperature", 1]
    words += ["--markdown", files["t.md"], "--plot", files["p.svg"], "--record", files["r.jsonl"]]
    assert main(quick(builtin_bundle, *words, "--repeats", 2, "--json")) == 0
    out, err = capsys.readouterr()
    cells = json.loads(out)
    assert err.startswith("engine ort, flavour ort:fp32") and err.count("\n") == 1
    assert len(cells) == 2 * 2 * 2
    assert all(set(cell) >= KEYS for cell in cells)
    assert {(c["method"], c["compressor"], c["policy"]) for c in cells} == {
        ("vlm", "pool:4", "default")
    }
    assert all(c["exact_match"] == 1 and c["accepted_length_includes_bonus"] for c in cells)
    assert all(cell["n"] == 1 and cell["speedup_e2e"] > 0 for cell in cells)
    assert files["t.md"].read_text().count("| vlm ") == 8
    assert files["p.svg"].read_text().count("in domain") == 2
    check_traces(files["r.jsonl"], runs=8 * 2 * 2)


def check_traces(path: Path, runs: int) -> None:
    traces = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(traces) == runs
    assert {trace["method"] for trace in traces} == {"plain", "vlm"}
    for trace in traces:
        columns = [trace[key] for key in ("accepted", "tree_nodes", "draft_ms", "verify_ms")]
        assert len({len(column) for column in columns}) == 1
        assert sum(trace["accepted"]) == len(trace["tokens"]) - 1
        assert trace["method"] != "plain" or set(trace["tree_nodes"]) <= {0}
        assert (trace["draft_prefill_ms"] > 0) == any(trace["tree_nodes"])


def test_the_table_is_for_people(
    builtin_bundle: Path, plain_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ask(tmp_path, turns=["Write a short caption.", "Describe the image."])
    words = ["--data", data, "--bundle", plain_bundle, "--first-turn"]
    assert main(quick(builtin_bundle, *words, "--policy", "default", "--policy", "eagle2")) == 0
    out, err = capsys.readouterr()
    assert "counts the bonus token" in out and "temperature 0" in out
    assert out.count("| own ") == 2 and "| eagle2 " in out and "100 %" in out
    assert "plain.bundle offers none" in err


def test_without_a_bundle_the_built_in_family_is_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["bench", "--task", "detailed", "--prompts", "1", "--repeats", "1", "--json"]
    assert main([*words, "--max-new-tokens", "6", "--threads", "1"]) == 0
    cells = json.loads(capsys.readouterr().out)
    assert {cell["domain"] for cell in cells} == {"in_domain", "out_of_domain"}
    assert {cell["method"] for cell in cells} == {"vlm", "eaglevlm", "vispec", "specvlm"}
    assert all(cell["exact_match"] == 1 for cell in cells)


def test_a_bundle_that_is_filtered_out_is_not_loaded(
    builtin_bundle: Path,
    plain_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    loaded = []
    load = edgespec_runtime.load

    def noted(path: Path, **settings: Any) -> Model:
        loaded.append(path)
        return load(path, **settings)

    monkeypatch.setattr(edgespec_runtime, "load", noted)
    words = ["--bundle", plain_bundle, "--method", "vlm", "--data", ask(tmp_path), "--json"]
    assert main(quick(builtin_bundle, *words)) == 0
    assert loaded == [builtin_bundle]
    capsys.readouterr()


def accept_anything(tree: TokenTree, pick: Callable[[int, Sequence[int]], int]) -> Verdict:
    """A defect: the draft's first token is taken whatever the target says."""
    if not len(tree):
        return walk(tree, pick)
    token = tree.tokens[0]
    return Verdict((1,), (token, pick(1, (token,))))


def test_a_lossy_method_is_told_and_fails(
    builtin_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("edgespec_runtime.verifiers.local.walk", accept_anything)
    words = ["--task", "detailed", "--temperature", 1.5, "--max-new-tokens", 60, "--prompts", 2]
    words += ["--markdown", tmp_path / "t.md"]
    assert main(quick(builtin_bundle, *words)) == 1
    out, err = capsys.readouterr()
    assert "**NOT EXACT:" in out and "NOT EXACT" in (tmp_path / "t.md").read_text()
    assert "NOT EXACT: vlm left plain decoding at token" in err and "not those of plain" in err


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no data": (["--data", "no.jsonl"], "no data file at 'no.jsonl'"),
    "task": (["--task", "namin"], "did you mean naming?"),
    "method": (["--method", "vml"], "did you mean vlm? there are: vlm, vlm+ngram, ngram"),
    "policy": (["--policy", "eagel2"], "unknown policy"),
    "top_k": (["--policy", "eagle2:top_k=99"], "top_k=99"),
    "temperature": (["--temperature", "nan"], "temperature"),
    "seed": (["--seed", "-1"], "seed"),
    "bundle": (["--bundle", "no.bundle"], "does not exist"),
    "twice": (["--bundle", "B"], "given twice"),
    "ending": (["--plot", "p.pdf"], "must end in .svg or .png"),
    "markdown": (["--markdown", "no/such/folder/t.md"], "--markdown cannot be written"),
    "record": (["--record", "."], "--record cannot be written"),
    "one file": (["--markdown", "f", "--record", "f"], "which is also --markdown"),
    "data": (["--data", "own.jsonl", "--record", "own.jsonl"], "which is also --data"),
    "bad image": (["--data", "bad.jsonl"], "bad, id 'r0'"),
    "too long": (["--data", "long.jsonl"], "no prompt could be run"),
    "config": (["--config", "s.yaml"], "unknown key 'promts'; did you mean prompts"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_a_sentence_before_anything_is_measured(
    name: str,
    builtin_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    own = ask(tmp_path).read_text()
    ask(tmp_path, "bad", image=str(ask(tmp_path, "picture")))
    ask(tmp_path, "long", turns=["word " * 3000])
    (tmp_path / "s.yaml").write_text("promts: 3\n")
    before = sorted(tmp_path.iterdir())
    words, expected = MISTAKES[name]
    words = [str(builtin_bundle) if word == "B" else word for word in words]
    assert main(quick(builtin_bundle, *words)) == 2
    out, err = capsys.readouterr()
    assert out == "" and expected in err and "Traceback" not in err
    assert sorted(tmp_path.iterdir()) == before and (tmp_path / "own.jsonl").read_text() == own


def test_matplotlib_is_asked_for_before_measuring(
    builtin_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(bench, "_measure", pytest.fail)
    assert main(quick(builtin_bundle, "--plot", "p.svg")) == 2
    assert "pip install 'edgespec[plot]'" in capsys.readouterr().err


def test_a_failure_on_the_way_leaves_what_was_measured(
    builtin_bundle: Path,
    plain_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The second bundle's draft graph turns out to be altered when it is loaded."""
    copy = tmp_path / "copy.bundle"
    shutil.copytree(builtin_bundle, copy)
    with (copy / "draft.bin").open("r+b") as file:
        file.write(b"\x01\x02\x03\x04")
    assert main(quick(builtin_bundle, "--bundle", copy, "--data", ask(tmp_path))) == 2
    out, err = capsys.readouterr()
    assert "Broken off; prompts measured: 1" in out and "| vlm " in out and "altered" in err


@pytest.mark.slow
def test_interrupted_it_prints_what_it_has(builtin_bundle: Path, tmp_path: Path) -> None:
    """Ctrl-C as soon as some runs have been recorded."""
    record = tmp_path / "r.jsonl"
    words = ["--record", record, "--task", "detailed", "--prompts", 48, "--max-new-tokens", 60]
    process = subprocess.Popen(
        [sys.executable, "-m", "edgespec", *quick(builtin_bundle, *words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    while not record.exists() or record.read_text().count("\n") < 6:
        assert process.poll() is None, "it ended before it was interrupted"
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Broken off; prompts measured" in out and "| vlm " in out
    assert "interrupted" in err and "Traceback" not in err
    lines = record.read_text().splitlines()
    assert len(lines) >= 6 and all(json.loads(line)["tokens"] for line in lines)
