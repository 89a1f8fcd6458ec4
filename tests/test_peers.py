"""benchmarks/peers with two peers that need no environment of their own: ours and transformers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from benchmarks.peers.__main__ import main
from benchmarks.peers.contenders import PEERS, contenders, left_out
from benchmarks.peers.environments import (
    VERSIONS,
    Environments,
    Skipped,
    Steps,
    digest,
    read_versions,
)
from benchmarks.peers.family import checkpoint_of, draft_of, named
from benchmarks.peers.measure import Result
from benchmarks.peers.models import environment
from benchmarks.peers.process import Worker
from benchmarks.peers.prompts import PICTURES, read_prompts
from benchmarks.peers.report import equal
from edgespec.errors import PromptError
from edgespec_export.family import checkpoint_path
from tests.support.checkpoints import GEOMETRIES, picture, write_checkpoint
from tests.support.checkpoints import write_draft as write_seeing_draft
from tests.support.texts import TEMPLATE, TextModel, write_text_draft, write_text_model

HERE = ["--here", "transformers", "--threads", "1", "--starts", "1", "--repeats", "2"]
LLAMA = TextModel(template=TEMPLATE)
LLAVA = GEOMETRIES["gqa"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_model(tmp_path_factory.mktemp("peers") / "tiny", LLAMA, seed=3)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("asked") / "prompts.jsonl"
    rows = [{"name": "a", "text": "what is this"}, {"name": "b", "text": "abcabcabc abc"}]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.mark.slow
def test_ours_and_transformers_side_by_side(
    checkpoint: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Same weights, same prompts, same words; in every mode, with figures for all of them."""
    draft = write_text_draft(tmp_path / "draft", LLAMA, checkpoint, noise=0.08)
    written, table = tmp_path / "peers.json", tmp_path / "peers.md"
    asked = ["--checkpoint", str(checkpoint), "--draft", str(draft), "--prompts", str(prompts)]
    asked += ["--work", str(tmp_path / "work"), "--new", "12", "--json", str(written)]
    only = ["--only", "edgespec:fp32", "--only", "transformers:fp32:plain"]
    assert main([*asked, *HERE, *only, "--markdown", str(table)]) == 0
    told = json.loads(written.read_text())
    modes = [(c["peer"], c["mode"]) for c in told["contenders"]]
    assert modes == [
        ("edgespec", "plain"), ("edgespec", "lookup"), ("edgespec", "draft"),
        ("transformers", "plain"),
    ]  # fmt: skip
    for contender in told["contenders"]:
        assert not contender["skipped"]
        assert contender["tokens"] == told["contenders"][0]["tokens"]
        assert all(len(tokens) == 12 for tokens in contender["tokens"].values())
        assert all(len(times) == 2 for times in contender["first_s"].values())
        assert contender["tokens_per_s"] > 0 and contender["peak_mb"] > 10
        assert contender["starts"][0].keys() == {"import_s", "load_s", "rss_mb"}
    assert told["contenders"][3]["versions"]["transformers"]
    assert "numpy" in told["contenders"][0]["versions"]
    page = table.read_text()
    assert page == capsys.readouterr().out
    assert page.count("| 2/2 |") >= 4 and "Left out" not in page


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("peers") / "llava", LLAVA, seed=5)


@pytest.fixture(scope="module")
def about_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures, not of the tower's size, one question."""
    folder = tmp_path_factory.mktemp("shown")
    rows = []
    for name, size in (("a", 48), ("b", 40)):
        picture(size, seed=size).save(folder / f"{name}.png")
        rows.append({"name": name, "text": "what is this", "image": f"{name}.png"})
    file = folder / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.mark.slow
def test_a_llava_side_by_side(llava: Path, about_pictures: Path, tmp_path: Path) -> None:
    """All look at the same pictures and say the same of them, in every mode; those who see nothing
    are told of."""
    draft = write_seeing_draft(tmp_path / "draft", LLAVA, llava, 6, own_tower=False, noise=0.05)
    written, table = tmp_path / "peers.json", tmp_path / "peers.md"
    asked = ["--checkpoint", str(llava), "--draft", str(draft), "--prompts", str(about_pictures)]
    asked += ["--work", str(tmp_path / "work"), "--new", "8", "--json", str(written)]
    others = ("lookup", "draft")  # a start of transformers takes seconds
    only = ["edgespec:fp32", *(f"transformers:fp32:{mode}" for mode in others), "ctranslate2"]
    asked += [word for name in only for word in ("--only", name)]
    assert main([*asked, *HERE, "--markdown", str(table)]) == 0
    told = json.loads(written.read_text())
    modes = [(c["peer"], c["mode"]) for c in told["contenders"]]
    ours = [("edgespec", mode) for mode in ("plain", *others)]
    assert modes == [*ours, *(("transformers", mode) for mode in others)]
    for contender in told["contenders"]:
        assert not contender["skipped"]
        assert contender["tokens"] == told["contenders"][0]["tokens"]
    tokens = told["contenders"][0]["tokens"]
    assert tokens["a"] != tokens["b"], "the pictures make the difference"
    assert told["left_out"] == {"ctranslate2": "its converter knows no LLaVA"}
    assert "Left out:\n\n- ctranslate2: its converter knows no LLaVA" in table.read_text()
    lengths = set(told["prompt_tokens"].values())
    assert lengths == {len("<USER: \nwhat is this ASSISTANT:") + LLAVA.visual_tokens}


def test_questions_about_pictures(
    llava: Path, about_pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pixels are those of the checkpoint's processor, ids have room for them, text has the mark."""
    (first, _), eos = read_prompts(about_pictures, llava, tmp_path)
    assert first.picture is not None and eos == [2]
    assert first.ids.count(first.picture.mark_id) == LLAVA.visual_tokens
    assert first.picture.text.count(first.picture.mark) == 1
    assert np.load(first.picture.array).shape == (48, 48, 3)
    pixels = np.load(first.picture.pixels)
    assert pixels.shape == (1, 3, 32, 32) and pixels.dtype == np.float32
    bad = tmp_path / "bad.jsonl"
    for line in ('{"name": "a", "text": "what is this"}', "no JSON", "[]"):
        bad.write_text(line)
        with pytest.raises(PromptError, match='bad.jsonl, line 1: .* "name", "text", "image"'):
            read_prompts(bad, llava, tmp_path)
    asked = ["--checkpoint", str(llava), "--work", str(tmp_path), "--prompts"]
    assert main([*asked, str(tmp_path / "none.jsonl")]) == 2
    assert "cannot read the prompts" in capsys.readouterr().err
    assert main([*asked, str(about_pictures), "--only", "llama.cpp"]) == 2
    assert "llama.cpp" not in capsys.readouterr().err.split("there are: ")[1]


def test_the_built_in_family_by_name(tmp_path: Path) -> None:
    """Its checkpoints, its drafts, and built-in questions about as many different pictures."""
    target = checkpoint_of(Path("builtin"))
    assert target == checkpoint_path("target").resolve() and "family" in named(target)
    assert draft_of(Path("builtin"), target) == checkpoint_path("draft").resolve()
    assert draft_of(Path("specvlm"), target) == checkpoint_path("specvlm").resolve()
    assert draft_of(Path("specvlm"), tmp_path) == Path("specvlm").resolve()
    assert draft_of(None, target) is None and named(tmp_path) == tmp_path.name
    questions, _ = read_prompts(None, target, tmp_path)
    arrays = [np.load(q.picture.array) for q in questions if q.picture]
    assert len(arrays) == len(PICTURES.read_text().splitlines())
    assert len({array.tobytes() for array in arrays}) == len(arrays)


@pytest.fixture
def no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """pip asks nobody, not even whether there is a newer one of it."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")


@pytest.mark.slow
def test_who_fails_is_left_out_and_told(
    checkpoint: Path,
    prompts: Path,
    tmp_path: Path,
    no_index: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An environment that cannot be made, and a checkpoint that a peer does not take."""
    versions = tmp_path / "versions.yaml"
    broken = [str(tmp_path / "no-such-package")]
    versions.write_text(yaml.safe_dump({"edgespec": "here", "ctranslate2": broken}))
    before = tmp_path / "work" / "environments" / "ctranslate2"  # of other packages
    before.mkdir(parents=True)
    (before / "finished").write_text(digest(["other"]))
    asked = ["--checkpoint", str(checkpoint), "--prompts", str(prompts), "--new", "4"]
    asked += ["--work", str(tmp_path / "work"), "--versions", str(versions), *HERE]
    only = ["--only", "edgespec:fp32:plain", "--only", "ctranslate2:fp32"]
    assert main([*asked, *only]) == 0
    assert not (before / "finished").exists(), "made anew, and not to its end"
    out, err = capsys.readouterr()
    assert "| edgespec | fp32 | plain |" in out
    assert "Left out:\n\n- ctranslate2:fp32:plain: " in out
    assert "no-such-package" in err
    assert main([*asked, "--only", "llama.cpp:fp32:plain", "--prepare"]) == 0
    assert "llama.cpp:fp32:plain will be left out: no versions" in capsys.readouterr().err
    assert main([*asked, "--only", "nobody"]) == 2
    assert "there are: edgespec:fp32:plain" in capsys.readouterr().err


def test_a_worker_that_dies_or_hangs(tmp_path: Path) -> None:
    def start(code: str, seconds: float = 30.0) -> Worker:
        return Worker([sys.executable, "-c", code], environment(""), tmp_path / "log", seconds)

    ready = "import sys, json; print('{}', flush=True); "
    with pytest.raises(Skipped, match="ended with code 3"):
        start("raise SystemExit(3)")
    with pytest.raises(Skipped, match="no answer within 0.5 s"):
        start("import time; time.sleep(60)", 0.5)
    with pytest.raises(Skipped, match="too large"):
        start('print(\'{"error": "too large"}\')')
    worker = start(ready + "sys.stdin.readline()")
    with pytest.raises(Skipped, match="ended with code 0"):
        worker.run([1], 1, [])
    worker.close()


@pytest.mark.slow
def test_an_environment_is_made_once(tmp_path: Path, no_index: None) -> None:
    """That it is made anew where its packages changed is shown above."""
    made = Environments(tmp_path, {"bare": ["pip"], "ours": "here"})
    assert made.python("ours") == Path(sys.executable)
    python = made.python("bare")
    (tmp_path / "bare" / "mark").touch()
    assert made.python("bare") == python and (tmp_path / "bare" / "mark").exists()
    with pytest.raises(Skipped, match="no versions are listed for 'other'"):
        made.python("other")


def test_every_peer_has_a_worker_and_versions() -> None:
    versions = read_versions(VERSIONS)
    for peer in PEERS:
        assert peer.script.is_file() and versions[peer.name]
    steps = [Steps.of(rows) for rows in versions.values() if not isinstance(rows, str)]
    packages = [row for step in steps for row in step.packages]
    assert all("==" in row for row in packages), "figures must say what they are of"
    odd = Steps.of(["a==1", "without b", "set C=-DD=1"])
    assert odd == Steps(["a==1"], ["b"], {"C": "-DD=1"})
    labels = [c.label for c in contenders(["llama.cpp:*:lookup"], draft=False)]
    assert labels == [f"llama.cpp:{p}:lookup" for p in ("fp32", "fp16", "int8", "int4")]
    assert all(c.mode != "draft" for c in contenders([], draft=False))
    seeing = {c.label for c in contenders(["*:fp32"], draft=True, pictures=True)}
    both = {f"{p}:fp32:{m}" for p in ("edgespec", "transformers") for m in ("plain", "lookup")}
    assert seeing == both | {
        "edgespec:fp32:draft", "transformers:fp32:draft",
        "openvino-genai:fp32:plain", "openvino-genai:fp32:lookup",
    }  # fmt: skip
    blind = {"onnxruntime-genai", "llama.cpp", "ctranslate2", "openvino-genai:*:draft"}
    assert left_out([], draft=True).keys() == blind
    assert left_out(["openvino-genai", "transformers"], draft=False) == {}


def test_figures_of_a_result() -> None:
    """The tokens that come first belong to the prompt's time, all others to decoding."""
    result = Result("peer:fp32:plain")
    for slow in (1.0, 2.0, 4.0):
        times = [slow, slow, slow + 0.5, slow + 1.0 * slow]
        result.add("a", {"tokens": [5, 6, 7, 8], "times": times, "peak_mb": 10 * slow})
    assert result.first_s["a"] == [1.0, 2.0, 4.0] and result.decode_s["a"] == [1.0, 2.0, 4.0]
    assert result.decoded["a"] == 2 and result.peak_mb == 40
    assert result.tokens_per_s == 2 / 2.0 and result.best_tokens_per_s == 2 / 1.0
    assert result.whole_tokens_per_s == 4 / 4.0
    other = Result("peer:int8:plain", tokens={"a": [5, 6, 7, 9]})
    assert equal(result, other) == "0/1" and equal(result, result) == "1/1"


def test_rows_of_rotated_heads_there_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp's order of a head's rows is pairs; Hugging Face's is halves."""
    monkeypatch.syspath_prepend(str(PEERS[0].script.parent))
    from importlib import import_module

    gguf_file: Any = import_module("gguf_file")
    weight = np.arange(2 * 4 * 3).reshape(8, 3)
    paired = gguf_file.interleaved(weight, 2)
    assert paired[:4, 0].tolist() == [weight[row, 0] for row in (0, 2, 1, 3)]
    assert np.array_equal(gguf_file.halved(paired, 2), weight)
