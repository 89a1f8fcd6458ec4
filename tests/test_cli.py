"""The command line as a user meets it: results on stdout, words for every mistake, exit codes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgespec.cli import main
from edgespec_export.family import checkpoint_path, sample_image

ENVIRONMENT = {**os.environ, "PYTHONUNBUFFERED": "1"}


def edgespec(*words: object) -> list[str]:
    return [sys.executable, "-m", "edgespec", *map(str, words)]


ENDLESS = """
import sys, time
from edgespec.cli import main
from edgespec_export import exporter

exporter._finish = lambda *parts: time.sleep(600)
sys.exit(main(sys.argv[1:]))
"""
"""The command, but no export comes to its end: however late Ctrl-C is pressed, it comes in time."""


def test_generate_streams_text_and_tells_statistics(
    builtin_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", "--bundle", str(builtin_bundle), "--image", str(sample_image())]
    assert main([*words, "--prompt", "Describe the image.", "--max-new-tokens", "24"]) == 0
    out, err = capsys.readouterr()
    assert out.strip() and "tokens/s" in err and "bonus counted" in err


def test_generate_json_has_the_stable_keys(
    builtin_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", "--bundle", str(builtin_bundle), "--prompt", "Hello", "--json"]
    assert main([*words, "--max-new-tokens", "4", "--temperature", "1", "--seed", "7"]) == 0
    out, err = capsys.readouterr()
    value = json.loads(out)
    keys = {"text", "token_ids", "finish_reason", "prompt_tokens", "stats", "sizing", "remote"}
    keys |= {"text_source", "sources"}
    assert set(value) == keys and value["sizing"] is None and value["remote"] is None
    assert set(value["stats"]) >= {
        "tokens_per_s", "ttft_ms", "rounds", "accepted_length", "draft_ms", "verify_ms", "host_ms",
    }  # fmt: skip
    assert err == "engine ort, flavour ort:fp32: no GPU\n"


def test_draft_and_plain_print_the_same(
    builtin_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", "--bundle", str(builtin_bundle), "--image", str(sample_image())]
    words += ["--prompt", "Describe this image in detail.", "--json", "--seed", "3"]
    words += ["--threads", "1"]
    tokens = []
    for draft, temperature in (("none", "0"), ("model", "0"), ("none", "1"), ("model", "1")):
        assert main([*words, "--draft", draft, "--temperature", temperature]) == 0
        tokens.append(json.loads(capsys.readouterr().out)["token_ids"])
    assert tokens[0] == tokens[1] and tokens[2] == tokens[3]


def test_settings_file_gives_defaults_and_flags_win(
    builtin_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(f"bundle: {builtin_bundle}\nmax_new_tokens: 3\njson: true\nprompt: Hi\n")
    assert main(["generate", "--config", str(file)]) == 0
    assert len(json.loads(capsys.readouterr().out)["token_ids"]) <= 3
    assert main(["generate", "--config", str(file), "--max-new-tokens", "1"]) == 0
    assert len(json.loads(capsys.readouterr().out)["token_ids"]) == 1


MISTAKES: dict[str, tuple[list[str], str]] = {
    "unknown bundle": (["--bundle", "no-such-bundle", "--prompt", "x"], "does not exist"),
    "empty prompt": (["--bundle", "B", "--prompt", "  "], "prompt is empty"),
    "long prompt": (["--bundle", "B", "--prompt", "word " * 3000], "context holds"),
    "too many tokens": (["--bundle", "B", "--prompt", "x", "--max-new-tokens", "99999"], "at most"),
    "temperature": (["--bundle", "B", "--prompt", "x", "--temperature", "-1"], "temperature"),
    "nan": (["--bundle", "B", "--prompt", "x", "--temperature", "nan"], "temperature"),
    "top-p": (["--bundle", "B", "--prompt", "x", "--top-p", "1.5"], "top_p"),
    "draft": (["--bundle", "B", "--prompt", "x", "--draft", "modle"], "did you mean 'model'"),
    "policy": (["--bundle", "B", "--prompt", "x", "--policy", "eagel2"], "unknown policy"),
    "policy key": (["--bundle", "B", "--prompt", "x", "--policy", "eagle2:n=1"], "no setting"),
    "top_k": (["--bundle", "B", "--prompt", "x", "--policy", "eagle2:top_k=99"], "top_k=99"),
    "tree rows": (["--bundle", "B", "--prompt", "x", "--policy", "eagle2:nodes=5000"], "5000"),
    "missing image": (["--bundle", "B", "--prompt", "x", "--image", "no.png"], "no.png"),
    "config": (["--config", "no.yaml"], "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_a_sentence_and_exit_code_2(
    name: str, builtin_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, expected = MISTAKES[name]
    words = [str(builtin_bundle) if word == "B" else word for word in words]
    assert main(["generate", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and expected in err and "Traceback" not in err


def bad_pictures(folder: Path) -> dict[str, Path]:
    pictures = {name: folder / name for name in ("text.png", "cut.jpg", "empty.png", "moving.gif")}
    pictures["text.png"].write_text("not a picture")
    pictures["empty.png"].touch()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(pictures["cut.jpg"])
    pictures["cut.jpg"].write_bytes(pictures["cut.jpg"].read_bytes()[:700])
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(pictures["moving.gif"], save_all=True, append_images=frames[1:])
    huge = folder / "huge.png"
    Image.new("1", (12000, 12000)).save(huge)
    return {**pictures, "huge.png": huge, "folder": folder}


def test_unusable_pictures_are_refused(
    builtin_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, path in bad_pictures(tmp_path).items():
        words = ["--bundle", str(builtin_bundle), "--prompt", "x", "--max-new-tokens", "1"]
        assert main(["generate", *words, "--image", str(path)]) == 2, name
        out, err = capsys.readouterr()
        assert out == "" and str(path) in err, (name, err)


def test_unknown_keys_in_a_settings_file_get_near_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("bundel: x\n")
    assert main(["generate", "--config", str(file), "--bundle", "b", "--prompt", "p"]) == 2
    assert "did you mean bundle" in capsys.readouterr().err


def test_an_altered_bundle_is_refused(
    builtin_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(builtin_bundle, copy)
    with (copy / "draft.bin").open("r+b") as file:
        file.seek(5000)
        file.write(b"\x00\x01\x02\x03")
    assert main(["generate", "--bundle", str(copy), "--prompt", "x"]) == 2
    assert "altered" in capsys.readouterr().err


def test_export_refuses_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = str(checkpoint_path("target"))
    out = ["--out", str(tmp_path / "b")]
    cases = (
        (["--target", str(tmp_path / "nothing"), *out], "does not exist"),
        (["--target", target, *out, "--precision", "int3"], "precision"),
        (["--target", target, *out, "--lowering", "tpu"], "lowering"),
        (["--target", target, *out, "--compressor", "pool:4"], "--draft"),
        (["--target", target, *out, "--draft", target, "--compressor", "pol:5"], "did you mean"),
    )
    for words, expected in cases:
        assert main(["export", *words]) == 2
        assert expected in capsys.readouterr().err
        assert not list(tmp_path.iterdir())


def test_export_prints_json_and_will_not_overwrite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", "--target", str(checkpoint_path("target")), "--out", str(tmp_path / "b")]
    assert main([*words, "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert {graph["role"] for graph in value["graphs"]} == {"vision", "projector", "target"}
    assert main(words) == 2
    assert "already exists" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0


def test_interrupted_export_leaves_nothing_and_exits_130(tmp_path: Path) -> None:
    """Ctrl-C as soon as the temporary directory shows that writing has begun."""
    target = str(checkpoint_path("target"))
    words = ["export", "--target", target, "--draft", target, "--out", str(tmp_path / "b")]
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, *words], stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    while not list(tmp_path.glob(".b.partial-*")):
        assert process.poll() is None, "it ended before it began to write"
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "interrupted" in err and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_demo_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--json", "--repeats", "1", "--max-new-tokens", "40"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert set(value) == {"plain", "speculative", "speedup", "identical"}
    assert value["identical"] is True and value["plain"]["text"]


def test_closed_pipe_is_quiet(builtin_bundle: Path) -> None:
    words = edgespec("generate", "--bundle", builtin_bundle, "--prompt", "Hello", "--json")
    command = f"{' '.join(words)} | true"
    result = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert "Traceback" not in result.stderr
