"""``benchmarks/gpu.py`` end to end on a tiny geometry: the device engine over the host's memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the benchmark compares with transformers (extra train)")
pytest.importorskip("onnxruntime", reason="an engine is needed (extra ort)")

from benchmarks import gpu
from benchmarks.gpu_replay import REPORTS, downwards, evenly
from edgespec.tree import TokenTree

HERE = ("--geometry", "tiny", "--engine", "ort-host", "--device", "cpu")
SECTIONS = "environment,export,plain,oracle,curve,draft,replay,vision,equality,memory"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The report of one call, and the folder it was told to work in."""
    folder = tmp_path_factory.mktemp("gpu")
    out, work = folder / "out.json", folder / "work"
    words = [*HERE, "--new-tokens", "32", "--repeats", "1", "--sections", SECTIONS]
    words += ["--time-limit", "3600"]  # a busy machine is no defect
    words += ["--flavours", "native:fp16,portable:fp16"]
    assert gpu.main([*words, "--out", str(out), "--work", str(work)]) == 0
    return json.loads(out.read_text()), work, out


def figures(report: Any, name: str) -> Any:
    section = report["sections"][name]
    assert not {"error", "skipped", "refused"} & set(section), section
    return section["figures"]


def test_every_section_has_figures_and_nothing_is_left_behind(ran: Any) -> None:
    report, work, _ = ran
    for name in SECTIONS.split(","):
        assert figures(report, name), name
    assert not (work / "tiny").exists()


def test_trees_and_texts_are_true_in_both_flavours(ran: Any) -> None:
    report = ran[0]
    for name in ("native:fp16", "portable:fp16"):
        assert figures(report, "oracle")[name]["within"], name
        texts = figures(report, "equality")[name]
        for way in ("greedy", "sampled"):
            assert all(found["equal"] for found in texts[way].values()), (name, way)
            # A draft that knows the text is really followed: rows were moved, and it stayed equal.
            assert texts[way]["a draft that knows"]["accepted_length"] > 2


def test_scripted_rounds_have_the_accepted_length_that_was_asked_for(ran: Any) -> None:
    reports = figures(ran[0], "replay")["reports"]
    assert len(reports) == 5
    for name, found in reports.items():
        asked = float(next(r.accepted for r in REPORTS if r.name == name))
        assert found["accepted_length"] == pytest.approx(asked, abs=0.35), name
        parts = found["draft_ms"] + found["verify_ms"]
        assert 0 < parts <= found["round_ms"] * 1.001


def test_a_second_call_keeps_what_the_first_one_left(ran: Any, capsys: Any) -> None:
    report, work, out = ran
    words = [*HERE, "--out", str(out), "--work", str(work)]
    assert gpu.main([*words, "--sections", "memory", "--time-limit", "0"]) == 0
    again = json.loads(out.read_text())
    assert "were left" in again["sections"]["memory"]["skipped"]
    assert again["sections"]["oracle"] == report["sections"]["oracle"]
    shown = capsys.readouterr().out
    assert gpu.main(["--show", str(out)]) == 0
    assert capsys.readouterr().out == shown
    assert "| accepted as in |" in shown


def test_a_section_that_fails_costs_no_other(tmp_path: Path, monkeypatch: Any) -> None:
    def broken(rig: Any, found: dict[str, Any]) -> None:
        found["first"] = 1
        raise RuntimeError("the card fell off")

    monkeypatch.setattr(gpu, "SECTIONS", {"plain": broken, "environment": gpu.machine})
    out = tmp_path / "out.json"
    assert gpu.main([*HERE, "--out", str(out), "--work", str(tmp_path / "work")]) == 0
    sections = json.loads(out.read_text())["sections"]
    assert sections["plain"]["error"] == "the card fell off"
    assert sections["plain"]["figures"] == {"first": 1}
    assert sections["environment"]["figures"]["cores"] > 0


def test_unknown_sections_are_refused(capsys: Any) -> None:
    assert gpu.main(["--sections", "speed"]) == 2
    assert "no section 'speed'" in capsys.readouterr().err


def test_levels_are_even_and_lead_to_a_deepest_node() -> None:
    levels = evenly(2.67)
    drawn = [next(levels) for _ in range(100)]
    assert sum(drawn) == 267
    assert set(drawn) == {2, 3}
    tree = TokenTree.build([10, 11, 12, 13], [0, 0, 2, 3])
    assert downwards(tree, 2) == {0: 11, 2: 12}
    assert downwards(tree, 9) == {0: 11, 2: 12, 3: 13}
