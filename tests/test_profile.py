"""edgespec profile: every operation is clocked as asked, and the file fits what it was made of."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgespec_runtime
from edgespec.bundle import read_bundle
from edgespec.cli import main
from edgespec.errors import ConfigError, EngineError
from edgespec.flavour import Flavour
from edgespec.latency import (
    Curve,
    DeviceProfile,
    bundle_facts,
    card_of,
    check_fits,
    load_profile,
    save_profile,
    this_device,
)
from edgespec.sizing import Growth, Root
from edgespec.tree import Candidates
from edgespec_runtime import Model
from edgespec_runtime.engines.choice import Choice
from edgespec_runtime.profiling import measure as measuring
from edgespec_runtime.profiling.measure import Measured, Settings, measure, profile_of
from edgespec_runtime.profiling.measuring.agreement import predicted_ms
from edgespec_runtime.profiling.measuring.memory import measure_memory
from edgespec_runtime.profiling.measuring.requests import (
    NOTHING,
    ClockedRound,
    Grown,
    RequestBench,
)
from edgespec_runtime.profiling.measuring.rigs import DraftRig, Source, TargetRig
from edgespec_runtime.profiling.measuring.rounds import RoundBench
from edgespec_runtime.profiling.measuring.samples import Samples
from edgespec_runtime.profiling.measuring.scripts import (
    ENDLESS,
    Script,
    Stopwatch,
    caterpillar,
    clock_growth,
    ramp,
)
from edgespec_runtime.profiling.measuring.sizes import Sizes, sizes_of
from edgespec_runtime.profiling.measuring.threads import fewest_of_the_fastest
from tests.support.profiles import profile as another
from tests.support.zoo import HAS_NATIVE, NATIVE_REASON, Zoo

SIZES = Sizes(
    rows=(1, 2, 8, 32),
    contexts=(64, 256),
    prompts=(32, 64),
    pictures=(1,),
    unseen=(1, 3),
    widths=(1, 4),
    draft_contexts=(64, 256),
    draft_prompts=(32, 64),
    top_k=4,
)
FEW = Settings(passes=5)
DRAFT_CURVES = ("draft_prefill", "draft_first", "draft_step", "chain_first", "chain_next")


@pytest.fixture(scope="module")
def model(builtin_bundle: Path) -> Model:
    return edgespec_runtime.load(builtin_bundle, threads=1)


@pytest.fixture(scope="module")
def measured(model: Model) -> Measured:
    return measure(model, SIZES, FEW)


@pytest.fixture(scope="module")
def profile(model: Model, measured: Measured) -> DeviceProfile:
    card = card_of(model.bundle, 20.0, 80.0, measured=False)
    memory = measure_memory(model.bundle, card, ON_CPU, threads=1)
    return profile_of(model, measured, card, memory, device=this_device())


def curves_of(measured: Measured) -> Iterator[tuple[str, Curve]]:
    for name, value in vars(measured.costs).items():
        if isinstance(value, Curve):
            yield name, value


def test_every_operation_of_the_bundle_has_a_curve(measured: Measured) -> None:
    curves = dict(curves_of(measured))
    assert set(curves) == {"vision", "prefill", "verify", "draft_vision", *DRAFT_CURVES}
    assert curves["verify"].sizes == SIZES.rows and curves["verify"].contexts == SIZES.contexts
    assert curves["draft_first"].sizes == curves["chain_first"].sizes == SIZES.unseen
    assert curves["draft_step"].sizes == SIZES.widths and curves["chain_next"].sizes == (1,)
    assert curves["draft_step"].contexts == SIZES.draft_contexts
    assert curves["prefill"].sizes == SIZES.prompts and curves["prefill"].contexts == (0,)
    assert measured.costs.chain_steps > 0


def test_figures_are_finite_and_tails_lie_above_medians(measured: Measured) -> None:
    for name, curve in curves_of(measured):
        medians, tails = np.array(curve.median_ms), np.array(curve.p95_ms)
        assert np.isfinite(tails).all() and (medians > 0).all() and (tails >= medians).all(), name
    costs = measured.costs
    for value in (costs.commit_ms, costs.pick_ms, costs.host_round_ms):
        assert 0 < value < math.inf
    assert costs.host_token_ms >= 0 and measured.noise >= 1 and measured.repeats >= 5


def test_more_rows_take_longer(measured: Measured) -> None:
    verify = measured.costs.verify
    for context in verify.contexts:
        assert verify.at(32, context) > verify.at(1, context)


def test_a_profile_comes_back_from_its_file_and_fits(
    profile: DeviceProfile, model: Model, tmp_path: Path
) -> None:
    save_profile(profile, tmp_path / "here.yaml")
    loaded = load_profile(tmp_path / "here.yaml")
    check_fits(loaded, bundle=bundle_facts(model.bundle), device=this_device(), engine=model.engine)
    assert loaded.costs.verify.sizes == profile.costs.verify.sizes
    assert loaded.costs.verify.at(8, 64) == pytest.approx(profile.costs.verify.at(8, 64), rel=1e-4)


def test_memory_is_told_apart_by_side(profile: DeviceProfile, model: Model) -> None:
    weights = {graph.role: graph.weight_bytes / 2**20 for graph in profile.card.graphs}
    assert profile.memory.base_mb > 10
    assert profile.memory.target_mb > weights["target"] + weights["vision"]
    assert profile.memory.draft_mb > weights["draft"]
    assert profile.memory.target_kv_bytes == 12 * 2 * 2 * 64 * 4


def test_memory_that_cannot_be_read_is_an_error(model: Model, tmp_path: Path) -> None:
    card = card_of(model.bundle, 20.0, 80.0, measured=False)
    with pytest.raises(EngineError, match="to read its memory"):
        measure_memory(replace(model.bundle, path=tmp_path / "gone"), card, ON_CPU, threads=1)


ON_CPU = Choice("ort", Flavour("ort"), "")
VARIANTS = ("eagle", "eagle3", "vispec")


@pytest.mark.parametrize("variant", VARIANTS)
def test_heads_are_measured_as_well(zoo: Zoo, variant: str) -> None:
    head = edgespec_runtime.load(zoo.head_bundle("gqa", variant), threads=1)
    sizes = sizes_of(head.manifest, quick=True, max_nodes=4)
    costs = measure(head, sizes, FEW).costs
    assert all(getattr(costs, name) is not None for name in DRAFT_CURVES[:3])
    assert (costs.chain_first is not None) == ("draft_chain" in head.steps)
    has_pictures = {"draft_projector", "compressor"} & set(head.graphs)
    assert (costs.draft_vision is not None) == bool(has_pictures)


@pytest.mark.parametrize("lowering", ["ort", "native", "portable"])
def test_a_bundle_without_a_draft_has_no_curves_of_one(zoo: Zoo, lowering: str) -> None:
    if lowering == "native" and not HAS_NATIVE:
        pytest.skip(NATIVE_REASON)
    plain = edgespec_runtime.load(zoo.bundle("small-vocab", "none", lowering), threads=1)
    found = measure(plain, sizes_of(plain.manifest, quick=True), FEW)
    assert {name for name, _ in curves_of(found)} == {"vision", "prefill", "verify"}
    assert found.costs.chain_steps == 0 and found.costs.commit_ms == 0
    assert found.costs.host_round_ms > 0


def test_a_pass_holds_every_point(model: Model) -> None:
    rounds = RoundBench(model, SIZES, Source(model))
    hands = rounds.deal(np.random.default_rng(3))
    dealt = [planned for hand in hands for planned in hand]
    assert {(r.context, r.rows) for r in dealt} == {
        (context, rows) for context in SIZES.contexts for rows in SIZES.rows
    }
    growths = [r.growing for r in dealt if r.growing]
    assert {(g.context, g.unseen, g.script.growth) for g in growths} == {
        (context, unseen, growth)
        for context in SIZES.draft_contexts
        for unseen in SIZES.unseen
        for growth in (Growth.STEPS, Growth.CHAIN)
    }
    steps = [g for g in growths if g.script.growth is Growth.STEPS]
    for context in SIZES.draft_contexts:
        widths = {w for g in steps if g.context == context for w in g.script.widths}
        assert widths >= set(SIZES.widths)
    assert all(len({r.context for r in hand}) == 1 for hand in hands)


def test_single_rows_are_plain_decoding(model: Model) -> None:
    rounds = RoundBench(model, SIZES, Source(model))
    for hand in rounds.deal(np.random.default_rng(0)):
        assert all((planned.growing is None) == (planned.rows == 1) for planned in hand)


@pytest.mark.parametrize("growth", [Growth.STEPS, Growth.CHAIN])
def test_draft_calls_are_the_scripted_ones(model: Model, growth: Growth) -> None:
    rig = DraftRig(model, Source(model), (100,), rows=64)
    widths = (4, 2, 8) if growth is Growth.STEPS else (1, 1)
    for unseen in (3, 1):
        drafter = rig.at(100, unseen)
        calls = clock_growth(drafter, Script(growth, widths, 4), Root(ENDLESS, 100, 0, True, 1))
        assert [rows for rows, _ in calls] == [unseen, *widths]
        assert all(ms > 0 for _, ms in calls)


def test_the_stopwatch_leaves_out_the_sizers_own_time() -> None:
    ticks = iter([0.0, 1.0, 1.5, 3.5, 4.0])
    watch = Stopwatch(Script(Growth.STEPS, (1,), 2), clock=lambda: next(ticks))
    candidates = Candidates()
    candidates.extend(-1, [5, 6], [-0.1, -0.2])
    root = Root(9, 1, 1, True, 1)
    assert watch.beam(candidates, 1, root) == [0]
    candidates.extend(0, [7, 8], [-0.1, -0.2])
    assert watch.beam(candidates, 2, root) == []
    assert watch.ms == [1000.0, 2000.0]  # 0 to 1, and 1.5 to 3.5


def test_verifications_leave_the_context_where_it_was_put(model: Model) -> None:
    source = Source(model)
    rig = TargetRig(model, source, (64, 300), 9)
    for context in (300, 64, 300):
        verifier = rig.at(context)
        assert verifier.context == context
        verdict = verifier.verify(caterpillar(source.different(8)))
        assert verifier.context == context + len(verdict.tokens)


@pytest.mark.parametrize("widths", [(1, 16, 2), (8, 8), (3,), (16, 1, 1, 16)])
def test_a_ramp_never_asks_for_more_candidates_than_there_are(widths: Sequence[int]) -> None:
    for top_k in (2, 3, 4):
        free = top_k
        calls = ramp(widths, top_k)
        for width in calls:
            assert width <= free
            free += width * (top_k - 1)
        left = iter(calls)
        assert all(width in left for width in widths)  # in their order


def test_a_caterpillar_is_a_chain_with_siblings() -> None:
    tree = caterpillar(range(7))
    assert tree.parents == (0, 0, 2, 2, 4, 4, 6) and tree.depths == (1, 1, 2, 2, 3, 3, 4)
    assert len(caterpillar([])) == 0


def test_steered_rounds_are_accepted_as_far_as_asked(model: Model) -> None:
    bench = RequestBench(model, Source(model))
    rounds = [outcome for _ in range(3) for outcome in bench.drafted()]
    assert {outcome.tokens for outcome in rounds} >= set(range(1, 14))
    for outcome in (*rounds, *bench.plain()):
        assert outcome.grown.ms <= outcome.draft_ms
        assert outcome.draft_ms + outcome.verify_ms < outcome.total_ms


def test_a_round_is_predicted_from_its_parts(model: Model, measured: Measured) -> None:
    """Every part counts, once; whether sums agree with rounds is no test's business: times."""
    costs = measured.costs
    assert costs.chain_first and costs.chain_next and costs.draft_first and costs.draft_step
    chain = Grown(Growth.CHAIN, (2, 1, 1), 100, 0.0)
    outcome = ClockedRound(5, 12, 100, chain, draft_ms=0.0, verify_ms=0.0, total_ms=1.0)
    rest = costs.verify.at(13, 100) + costs.host_round_ms + 5 * costs.host_token_ms
    calls = costs.chain_first.at(2, 100) + 2 * costs.chain_next.at(1, 100)
    assert predicted_ms(costs, outcome) == pytest.approx(rest + calls + costs.commit_ms)
    steps = replace(outcome, grown=replace(chain, growth=Growth.STEPS, calls=(1, 4)))
    calls = costs.draft_first.at(1, 100) + costs.draft_step.at(4, 100)
    assert predicted_ms(costs, steps) == pytest.approx(rest + calls + costs.commit_ms)
    plain = replace(outcome, grown=NOTHING)
    assert predicted_ms(costs, plain) == pytest.approx(rest)


def test_samples_give_medians_tails_and_a_line() -> None:
    samples = Samples()
    for size in (1, 2, 4):
        for wobble in (0.0, 0.1, -0.1, 8.0, -0.05):
            samples.add("host", size, 2.0 + 0.5 * size + wobble)
    at_zero, per_size = samples.line("host")
    assert at_zero == pytest.approx(2.0) and per_size == pytest.approx(0.5)
    curve = samples.curve("host")
    assert curve and curve.median_ms == ((2.5, 3.0, 4.0),) and curve.p95_ms[0][0] > 2.5
    assert samples.fewest == 5 and samples.noise > 1
    assert samples.curve("nothing") is None and samples.line("nothing") == (0.0, 0.0)


def test_a_line_never_falls() -> None:
    samples = Samples()
    samples.add("host", 1, 3.0)
    samples.add("host", 2, 2.0)
    assert samples.line("host") == (2.5, 0.0)


def test_too_short_a_time_limit_is_an_error_that_says_how_long_it_takes(model: Model) -> None:
    with pytest.raises(ConfigError, match=r"--time-limit 0.01 is too short: 5 repeats .* \d+ s"):
        measure(model, SIZES, Settings(time_limit=0.01))


def test_without_a_limit_five_repeats_are_always_made(model: Model) -> None:
    assert measure(model, SIZES, Settings(seconds=1e-6)).repeats >= 5


def test_progress_runs_to_its_end(model: Model) -> None:
    told: list[float] = []
    measure(model, SIZES, FEW, told.append)
    assert told == sorted(told) and told[-1] == 1.0 and told[0] < 0.5


MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "no nodes": ({"max_nodes": 0}, "1 to 1024"),
    "nodes": ({"max_nodes": 4000}, "1 to 1024"),
    "context": ({"max_context": 1024}, "from 1 to 1023"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_sizes_that_a_bundle_does_not_take_are_refused(name: str, model: Model) -> None:
    asked, message = MISFITS[name]
    with pytest.raises(ConfigError, match=message):
        sizes_of(model.manifest, **asked)


def test_sizes_reach_as_far_as_asked(model: Model) -> None:
    whole, small = sizes_of(model.manifest), sizes_of(model.manifest, max_nodes=11, max_context=90)
    assert whole.rows[:17] == tuple(range(1, 18)) and whole.rows[-3:] == (48, 64, 65)
    assert whole.contexts[-1] == 1023 and len(whole.contexts) == 3
    assert small.rows == tuple(range(1, 13)) and small.contexts[-1] == small.prompts[-1] == 90
    wide = sizes_of(model.manifest, max_nodes=200).rows
    assert wide[-5:] == (65, 96, 128, 160, 192, 201)[-5:]
    quick = sizes_of(model.manifest, quick=True)
    assert set(quick.rows) < set(whole.rows) and len(quick.contexts) == 2


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fewest repeats there may be for ``--quick``, and a short look at the ceiling."""
    monkeypatch.setattr(measuring, "QUICK", Settings(passes=5, seconds=1e-6))
    monkeypatch.setattr("edgespec.latency.card.TRY_S", 0.02)


def words(bundle: Path, *more: object) -> list[str]:
    quick = ["--quick", "--max-nodes", "3", "--max-context", "160", "--threads", "1"]
    return ["profile", "--bundle", str(bundle), *quick, *map(str, more)]


def test_the_command_writes_profile_report_and_trace(
    builtin_bundle: Path, brief: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, page, trace = (tmp_path / name for name in ("p.yaml", "p.html", "p.json"))
    given = words(builtin_bundle, "--out", out, "--report", page, "--trace", trace, "--json")
    assert main([*given, "--device", "my board"]) == 0
    stdout, stderr = capsys.readouterr()
    value = json.loads(stdout)
    profile = load_profile(out)
    assert value["device"]["name"] == profile.device.name == "my board"
    assert profile.kind == "measured" and profile.costs.verify.sizes == (1, 2, 3, 4)
    assert profile.card.measured and "ceiling:" in stderr and "target" in stderr
    check_fits(profile, bundle=bundle_facts(read_bundle(builtin_bundle)), device=this_device())
    assert "my board" in page.read_text(encoding="utf-8")
    check_trace(json.loads(trace.read_text(encoding="utf-8")))


def check_trace(trace: Any) -> None:
    """Plain and drafted rounds, the prompt's verification before each of them."""
    spans = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    names = [span["name"] for span in spans]
    assert {"plain", "speculative", "draft", "verify", "prepare"} <= set(names)
    assert names.count("prefill") == 2 and names.count("prepare") == 1
    rows = {span["args"]["rows"] for span in spans if span["name"] == "verify"}
    assert 1 in rows and max(rows) > 1


def test_without_json_a_summary_is_printed(
    zoo: Zoo, brief: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "p.yaml"
    save_profile(another(), out)  # a profile may be written anew, anything else may not (below)
    assert main(words(zoo.bundle("gqa", "none"), "--out", out, "--max-context", 100)) == 0
    stdout, _ = capsys.readouterr()
    assert "verify" in stdout and "of ceiling" in stdout and "draft call" not in stdout
    assert load_profile(out).costs.draft_first is None


def test_threads_are_chosen_by_the_clock_and_kept(
    zoo: Zoo, brief: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that is loaded with the profile has as many, unless it is told otherwise."""
    bundle, out = zoo.bundle("gqa", "none"), tmp_path / "p.yaml"
    assert main(words(bundle, "--out", out, "--max-context", 100, "--threads", "auto")) == 0
    cores = len(os.sched_getaffinity(0))
    told = re.search(r"(\d+) threads chosen; steps of 1 and 9 rows by threads: 1: ",
                     capsys.readouterr().err)  # fmt: skip
    assert told and 1 <= int(told[1]) <= cores
    assert load_profile(out).engine.threads == int(told[1])
    given = replace(load_profile(out), engine=replace(load_profile(out).engine, threads=3))
    assert edgespec_runtime.load(bundle, profile=given).engine.threads == 3
    assert edgespec_runtime.load(bundle, profile=given, threads=1).engine.threads == 1


def test_as_many_threads_as_pay() -> None:
    assert fewest_of_the_fastest({1: (9.0, 20.0), 2: (5.0, 11.0), 4: (4.98, 10.9)}) == 2
    assert fewest_of_the_fastest({1: (9.0, 20.0), 2: (5.0, 11.0), 4: (4.0, 11.0)}) == 4
    assert fewest_of_the_fastest({1: (4.0, 9.0), 2: (4.5, 9.0)}) == 1


REFUSALS: dict[str, tuple[list[str], str]] = {
    "nowhere": ([], "add --out"),
    "no folder": (["--out", "DIR/no/p.yaml"], "cannot be written"),
    "no profile": (["--out", "DIR/notes.txt"], "is not overwritten"),
    "a folder": (["--out", "DIR"], "is not overwritten"),
    "report": (["--json", "--report", "DIR/no/p.html"], "--report cannot be written"),
    "trace": (["--json", "--trace", "DIR/no/p.json"], "--trace cannot be written"),
    "twice": (["--out", "DIR/p", "--report", "DIR/p"], "which is also --out"),
    "bundle": (["--json", "--bundle", "DIR/none"], "does not exist"),
    "nodes": (["--json", "--max-nodes", "5000"], "--max-nodes is 5000"),
    "context": (["--json", "--max-context", "5000"], "--max-context is 5000"),
    "time": (["--json", "--time-limit", "-1"], "must be above 0"),
    "short": (["--json", "--time-limit", "0.001"], "too short"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_mistakes_are_refused_in_words(
    name: str,
    builtin_bundle: Path,
    brief: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given, message = REFUSALS[name]
    (tmp_path / "notes.txt").write_text("mine")
    given = [word.replace("DIR", str(tmp_path)) for word in given]
    assert main(words(builtin_bundle, *given)) == 2
    stdout, stderr = capsys.readouterr()
    assert stdout == "" and message in stderr and "Traceback" not in stderr
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_interrupted_it_leaves_nothing_and_exits_130(builtin_bundle: Path, tmp_path: Path) -> None:
    given = ["profile", "--bundle", str(builtin_bundle), "--threads", "1"]
    for flag in ("--out", "--report", "--trace"):
        given += [flag, str(tmp_path / flag.strip("-"))]
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "edgespec", *given], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("ceiling:"):
            break
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130 and "interrupted" in stderr and "Traceback" not in stderr
    assert not list(tmp_path.iterdir())
