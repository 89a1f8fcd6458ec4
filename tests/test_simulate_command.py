"""The command `edgespec simulate`: what it reads, what it refuses, what it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgespec.cli import main
from edgespec.errors import ConfigError, InputError
from edgespec.latency import Curve, DeviceProfile, bundle_facts, save_profile
from edgespec.sizing import Plain, parse_policy
from edgespec.sizing.budgets import Budget
from edgespec_runtime.simulate.answers import Answer, gather
from edgespec_runtime.simulate.cells import Cell, summarise
from edgespec_runtime.simulate.lines import parse_line, read_lines
from edgespec_runtime.simulate.replay import Conditions
from edgespec_runtime.simulate.simulation import fitting, simulate, unmet
from tests.support.profiles import costs, profile
from tests.support.recordings import values, written

SURE, LOST = [0, -0.1, -3.0, -4.0, -5.0], [-1, -0.1, -3.0, -4.0, -5.0]
KEYS = {
    "device", "power_mode", "kind", "bundle", "target_device", "rtt_ms", "uplink_kbps", "ahead",
    "budget_ms_per_round", "budget_ttft_ms", "budget_p95_itl_ms", "budget_memory_mb", "seed",
    "noise", "cells",
}  # fmt: skip
CELL_KEYS = {
    "method", "compressor", "policy", "mode", "temperature", "task", "domain", "bundle", "n",
    "tokens",
    "accepted_length", "accepted_length_includes_bonus", "tokens_per_s", "speedup_decode",
    "speedup_e2e", "ttft_ms", "round_p50_ms", "round_p95_ms", "itl_p50_ms", "itl_p95_ms", "drafted",
    "streamed", "over_round_budget", "over_ttft_budget", "over_itl_budget", "asked", "drawn",
}  # fmt: skip


def answer(tokens: int = 9, **fields: Any) -> dict[str, Any]:
    return {**values(list(range(10, 10 + tokens)), [[SURE]] * (tokens - 1)), **fields}


def answers_of(*lines: dict[str, Any]) -> tuple[list[Answer], Any]:
    return gather([parse_line(json.dumps(line), "line") for line in lines])


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A trace of two tasks and a measured profile of the same bundle."""
    trace, used = tmp_path / "t.jsonl", tmp_path / "p.yaml"
    trace.write_text(written(answer(), answer(5, task="u", id="b"), answer(7, id="c")))
    save_profile(profile(), used)
    return {"trace": trace, "profile": used}


def words(files: dict[str, Path], *more: object) -> list[str]:
    given = ["simulate", "--trace", files["trace"], "--profile", files["profile"]]
    return [str(word) for word in (*given, *more)]


# --- What is read --------------------------------------------------------------------------------


def without(key: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda line: {name: value for name, value in line.items() if name != key}


def changed(**fields: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda line: {**line, **fields}


BAD_LINES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no object": (lambda line: [], "is no run of this edgespec"),
    "of old": (without("format"), "it has no 'format'"),
    "of another format": (changed(format=7), "has format 7, this edgespec reads 2"),
    "unknown key": (changed(pth=[]), "unknown key 'pth'; did you mean path"),
    "missing key": (without("question"), "lacks question"),
    "no list": (changed(tokens=3), "tokens is 3; a list is expected"),
    "negative": (changed(prompt_tokens=-1), "prompt_tokens is -1"),
    "columns": (changed(path=[[SURE]]), "'path' has 1 rounds, 'accepted' has 2"),
    "sum": (changed(accepted=[1, 2]), "adds up to 3 tokens after the first of 3"),
    "no tokens": (changed(tokens=[], accepted=[0, -1]), "accepted"),
    "too many": (changed(max_new_tokens=2), "3 tokens of at most 2"),
    "growth": (changed(growth=["chain", "bush"]), "'growth' has 'bush'"),
    "astray": (changed(astray=[[0, 0], [1, 2]]), "'astray' has"),
    "rank": (changed(path=[[[2, -0.1, -0.2]], []]), "a node is"),
    "no rank": (changed(path=[[[-0.5, -0.2]], []]), "a node is"),
    "lonely rank": (changed(path=[[[0]], []]), "a node is"),
    "above zero": (changed(path=[[[0, 0.1]], []]), "log-probabilities of 0 or less"),
    "too deep": (changed(path=[[SURE], [SURE, SURE]]), "2 nodes where 1 tokens are left"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_named(name: str, tmp_path: Path) -> None:
    change, expected = BAD_LINES[name]
    path = tmp_path / "t.jsonl"
    path.write_text(written(answer(3)) + "\n" + json.dumps(change(answer(3))) + "\n")
    with pytest.raises(InputError, match="line 3") as found:
        read_lines([path])
    assert expected in str(found.value)


def test_files_that_hold_nothing(tmp_path: Path) -> None:
    empty, torn = tmp_path / "empty.jsonl", tmp_path / "torn.jsonl"
    empty.touch()
    torn.write_text(written(answer(3))[:-40])
    for path, expected in (
        (tmp_path / "none.jsonl", "cannot be read.*--policy survey"),
        (empty, "holds no runs"),
        (torn, "line 1 is no JSON.*broken off"),
    ):
        with pytest.raises(InputError, match=expected):
            read_lines([path])


def test_only_a_models_own_drafts_are_replayed() -> None:
    plain = answer(3, method="plain", path=[[], []], growth=["none"] * 2)
    others = [plain, answer(3, method="ngram"), answer(3, method="vlm+ngram")]
    answers, pools = answers_of(*others, answer(3), answer(3, repeat=2))
    assert len(answers) == len(pools) == 1, "two runs of one answer are one answer"
    with pytest.raises(InputError, match=r"plain decoding and n-grams cannot be replayed; record"):
        answers_of(*others)
    idle = answer(3, path=[[], []], growth=["none"] * 2, policy="plain")
    with pytest.raises(InputError, match="nothing was drafted in the runs of vlm on 't'"):
        answers_of(idle)


def test_a_profile_has_to_be_of_the_traces_models() -> None:
    mine = parse_line(json.dumps(answer(3)), "line")
    other = replace(mine, draft="e" * 64)
    pressed = replace(mine, compressor="none")
    assert fitting([mine, other, pressed], profile(), "p") == [mine]
    with pytest.raises(ConfigError, match="'p' is of other models.*draft eeee.*make a profile"):
        fitting([other], profile(), "p")
    bare = replace(costs(), draft_first=None, draft_step=None, draft_prefill=None,
                   chain_first=None, chain_next=None, chain_steps=0)  # fmt: skip
    with pytest.raises(ConfigError, match="a bundle without a draft"):
        fitting([mine], replace(profile(), costs=bare), "p")


# --- What is figured -----------------------------------------------------------------------------


def cells_of(*lines: dict[str, Any], budget: Budget | None = None) -> list[Cell]:
    answers, pools = answers_of(*lines)
    conditions = Conditions(profile(), budget or Budget())
    policies = {"short": parse_policy("eagle2:nodes=2,depth=2,top_k=1"), "none": Plain()}
    return summarise(simulate(answers, pools, policies, conditions), conditions.budget)


def test_figures_are_what_they_say() -> None:
    """9 tokens, always right: rounds of 3, 3 and 2 tokens; a second answer of 3 in one round."""
    cells = cells_of(answer(9), answer(3, id="b"), budget=Budget(ms_per_round=6.0, ttft_ms=1.0))
    plain, short, none = cells
    pairs = [cells_of(line)[:2] for line in (answer(9), answer(3, id="b"))]
    assert [cell.policy for cell in cells] == ["plain", "short", "none"]
    assert replace(none, policy="plain") == plain
    assert (short.n, short.tokens, plain.accepted_length) == (2, 6.0, 1.0)
    assert short.accepted_length == pytest.approx(10 / 4)
    ratios = [two.tokens_per_s / one.tokens_per_s for one, two in pairs]
    assert short.speedup_decode == pytest.approx(sum(ratios) / 2)  # the median of two
    assert short.tokens_per_s == pytest.approx(sum(two.tokens_per_s for _, two in pairs) / 2)
    assert plain.speedup_decode == plain.speedup_e2e == 1.0
    assert (plain.drafted, short.drafted) == (0.0, 1.0)
    assert short.itl_p50_ms == 0.0, "more than half of the tokens arrive with the one before"
    assert short.itl_p95_ms is not None and short.round_p95_ms is not None
    assert short.itl_p95_ms > short.round_p95_ms > 4.0, "the draft's prompt delays tokens"
    assert (plain.over_round_budget, plain.over_ttft_budget, plain.over_itl_budget) == (0, 1, None)
    assert (short.asked, short.drawn) == (3 * 2 + 2, 0)


def test_the_share_of_rounds_over_budget_is_counted() -> None:
    limits = [3.0, 4.9, 8.0]
    shares = [
        cells_of(answer(9), budget=Budget(ms_per_round=x))[1].over_round_budget for x in limits
    ]
    assert shares[0] == 1.0 and shares[2] == 0.0
    assert shares == sorted(shares, key=lambda share: -float(str(share)))


def test_a_budget_that_nothing_can_keep_is_told() -> None:
    answers, _ = answers_of(answer(9), answer(3, id="b"))
    assert unmet(answers, Conditions(profile(), Budget(ms_per_round=100.0))) == []
    found = unmet(answers, Conditions(profile(), Budget(ms_per_round=1.0)))
    assert len(found) == 2 and "--budget-ms-per-round 1 cannot be met on board" in found[0]


def test_tasks_keep_their_order_and_their_own_proposals() -> None:
    """What is not recorded of one task is drawn from that task alone."""
    known = [values([1, 2, 3], [[SURE], [SURE]], id=str(i), task="sure") for i in range(5)]
    unknown = [values([1, 2, 3, 4, 5, 6], [[LOST], *[[]] * 4], id="x", task="lost")]
    cells = cells_of(*unknown, *known)
    assert [cell.task for cell in cells] == ["lost"] * 3 + ["sure"] * 3
    assert cells[1].accepted_length == 1.0 and cells[1].drawn == cells[1].asked - 1 > 0
    assert cells[4].accepted_length == 2.0


# --- The command ---------------------------------------------------------------------------------


def test_json_has_stable_keys(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--policy", "sized", "--policy", "eagle2:top_k=2", "--budget-ms-per-round", 40]
    assert main(words(files, *more, "--json")) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert err == "" and set(report) == KEYS
    assert (report["device"], report["kind"], report["rtt_ms"]) == ("board", "measured", None)
    assert report["budget_ms_per_round"] == 40 and report["budget_ttft_ms"] is None
    cells = report["cells"]
    assert all(set(cell) == CELL_KEYS for cell in cells)
    assert [(cell["task"], cell["policy"]) for cell in cells] == [
        (task, policy) for task in "tu" for policy in ("plain", "sized", "eagle2:top_k=2")
    ]
    assert main(words(files, *more, "--json")) == 0
    assert json.loads(capsys.readouterr().out) == report


def test_the_table_is_for_people(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--rtt-ms", 60, "--uplink-kbps", 500, "--budget-ms-per-round", 66, "--noise"]
    assert main(words(files, *more, "--markdown", tmp_path / "t.md")) == 0
    out, _ = capsys.readouterr()
    assert (tmp_path / "t.md").read_text() == out
    for expected in (
        "Predicted for board (measured, 15W), across a network: 60 ms round trip, 500 kbit/s up.",
        "Budget: 66 ms per round.", "rounds over budget", "scatter", "bonus token",
    ):  # fmt: skip
        assert expected in out
    table = out.splitlines()[2:]
    # Two tasks; plain round by round or streamed, sized round by round or as it would choose.
    assert len(table) == 2 + 8 and len({line.count("|") for line in table}) == 1
    assert "drawn" not in out, "everything was recorded"


def test_drawn_proposals_are_told(
    tmp_path: Path, files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = [[SURE, SURE], *[[]] * 4]
    files["trace"].write_text(written(values([1, 2, 3, 4, 5, 6], path)))
    assert main(words(files, "--policy", "eagle2:nodes=2,depth=2,top_k=1")) == 0
    out, _ = capsys.readouterr()
    assert (
        "were in no trace and were drawn from the same task's; record with --policy survey" in out
    )


REFUSED: dict[str, tuple[list[object], str]] = {
    "wide policy": (["--policy", "eagle2:top_k=5"], "hold 4 children of a node; record again"),
    "unknown policy": (["--policy", "egale2"], "did you mean 'eagle2'"),
    "uplink": (["--uplink-kbps", 9], "--uplink-kbps is of a target elsewhere"),
    "ahead": (["--ahead", "off"], "--ahead is of a target elsewhere"),
    "server": (["--target-profile", "x"], "--target-profile is of a target elsewhere"),
    "round trip": (["--rtt-ms", -2], "--rtt-ms is -2.0"),
    "budget": (["--budget-ms-per-round", 0], "--budget-ms-per-round is 0.0"),
    "device": (["--profile", "jetson-orin-nano"], "give that with --bundle"),
    "no device": (["--profile", "jetson-orin-nana"], "Did you mean jetson-orin-nano"),
    "no folder": (["--markdown", "no/such/folder/t.md"], "--markdown cannot be written"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused(
    name: str, files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    more, expected = REFUSED[name]
    assert main(words(files, *more)) == 2
    out, err = capsys.readouterr()
    assert out == "" and expected in err and "Traceback" not in err


def test_a_server_has_to_run_the_same_target(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = tmp_path / "server.yaml"
    save_profile(replace(profile(), costs=replace(costs(), verify=Curve.constant(0.5))), server)
    assert main(words(files, "--rtt-ms", 5, "--target-profile", server, "--json")) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["target_device"] == "board"
    assert report["cells"][0]["round_p50_ms"] == pytest.approx(5.5 + 0.11)
    other = replace(profile(), bundle=replace(profile().bundle, target="0" * 64))
    save_profile(other, server)
    assert main(words(files, "--rtt-ms", 5, "--target-profile", server)) == 2
    assert "is of another target" in capsys.readouterr().err


@pytest.mark.parametrize("rtt", [1, 20, 500])
def test_across_a_network_modes_are_compared(
    tmp_path: Path, files: dict[str, Path], capsys: pytest.CaptureFixture[str], rtt: int
) -> None:
    files["trace"].write_text(written(*(answer(200, id=str(i)) for i in range(4))))
    server = tmp_path / "server.yaml"
    save_profile(replace(profile(), costs=replace(costs(), verify=Curve.constant(9.0))), server)
    more = ["--rtt-ms", rtt, "--target-profile", server, "--json"]
    assert main(words(files, *more)) == 0
    cells = {(c["policy"], c["mode"]): c for c in json.loads(capsys.readouterr().out)["cells"]}
    assert list(cells) == [
        ("plain", "hybrid"), ("plain", "remote"), ("plain", "local"),
        ("sized", "hybrid"), ("sized", "auto"),
    ]  # fmt: skip
    speed = {way: cell["tokens_per_s"] for way, cell in cells.items()}
    assert speed["plain", "remote"] == pytest.approx(1e3 / (9.0 + rtt / 199), rel=0.03)
    assert speed["plain", "local"] > 250, "this device's own curve, without a network"
    best = max(speed["plain", "remote"], speed["sized", "hybrid"])
    assert speed["sized", "auto"] > 0.95 * best
    assert cells["plain", "remote"]["streamed"] == 1.0 and cells["sized", "hybrid"]["streamed"] == 0
    assert cells["sized", "auto"]["streamed"] == pytest.approx(0.0 if rtt < 500 else 1.0, abs=0.15)


def test_models_that_are_not_at_hand(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """A 7B target on a server for a device that cannot hold it: the example of docs/simulate.md."""
    files["trace"].write_text(written(answer(60, images=1)))
    given = {"trace": files["trace"], "profile": Path("jetson-orin-nano")}
    more = ["--model", "llava-1.5-7b", "--target-profile", "nvidia-l4", "--rtt-ms", 20, "--json"]
    assert main(words(given, *more)) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert "not at hand" in err and "no decoding on the device alone" in err
    speed = {(c["policy"], c["mode"]): c["tokens_per_s"] for c in report["cells"]}
    assert ("plain", "local") not in speed
    # 13.2 GB of weights at 0.8 x 300 GB/s, and a twentieth of a millisecond a layer.
    assert speed["plain", "remote"] == pytest.approx(1e3 / 59, rel=0.05)
    assert speed["sized", "auto"] > 2 * speed["plain", "remote"]
    assert main(words(given, *more, "--bundle", "b")) == 2
    assert "--bundle and --model" in capsys.readouterr().err
    assert main(words(given, "--model", "llava-1.5-7c")) == 2
    assert "Did you mean llava-1.5-7b" in capsys.readouterr().err


def measured_for(bundle: Path) -> DeviceProfile:
    from edgespec.bundle import read_bundle

    return replace(profile(), bundle=bundle_facts(read_bundle(bundle, check_hashes=False)))


def test_from_recording_to_prediction(
    builtin_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands of docs/simulate.md: a recording, a measured and an estimated device."""
    trace, used = tmp_path / "answers.jsonl", tmp_path / "p.yaml"
    record = ["bench", "--bundle", builtin_bundle, "--task", "detailed", "--prompts", 1]
    record += ["--repeats", 1, "--max-new-tokens", 24, "--threads", 1, "--temperature", 0]
    record += ["--temperature", 1, "--policy", "survey", "--record", trace, "--json"]
    assert main([str(word) for word in record]) == 0
    save_profile(measured_for(builtin_bundle), used)
    capsys.readouterr()
    more = ["--policy", "sized", "--policy", "eagle2:nodes=12,depth=12,top_k=1", "--json"]
    for given in (["--profile", used], ["--profile", "jetson-orin-nano:15W"]):
        where = [*given, "--bundle", builtin_bundle]
        assert main([str(w) for w in ["simulate", "--trace", trace, *where, *more]]) == 0
        out, err = capsys.readouterr()
        report = json.loads(out)
        assert ("estimates" in err) == (report["kind"] == "estimate")
        cells = report["cells"]
        assert {(c["temperature"], c["domain"]) for c in cells} == {
            (t, d) for t in (0, 1) for d in ("in_domain", "out_of_domain")
        }
        assert all(cell["tokens"] == 24 and cell["drawn"] == 0 for cell in cells)
        fast = [c["speedup_decode"] for c in cells if c["policy"].startswith("eagle2")]
        assert min(fast) > 1


def test_it_needs_neither_engine_nor_tokenizer(files: dict[str, Path]) -> None:
    names = ("onnxruntime", "tokenizers", "jinja2", "PIL", "torch", "onnx", "edgespec_export")
    blocked = "".join(f"sys.modules[{name!r}] = None\n" for name in names)
    code = f"import sys\n{blocked}from edgespec.cli import main\nmain({words(files)!r})\n"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0 and "Predicted for board" in result.stdout, result.stderr
