"""edgespec simulate: replays are the runs they stand for, and cost what the curves say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgespec_runtime
from edgespec.acceptance import StopRules
from edgespec.errors import ConfigError
from edgespec.latency import Curve, DeviceProfile
from edgespec.sampling import SamplingParams
from edgespec.sizing import Policy, Setting, Survey, parse_policy
from edgespec_runtime.bench.data import read_sets, select
from edgespec_runtime.bench.measure import Settings, Turn, measure
from edgespec_runtime.bench.methods import Method
from edgespec_runtime.bench.traces import trace
from edgespec_runtime.decoder import Round, decode
from edgespec_runtime.simulate.answers import Answer, Pool, gather
from edgespec_runtime.simulate.lines import parse_line
from edgespec_runtime.simulate.network import Network, moved, with_way
from edgespec_runtime.simulate.replay import Conditions, Replay, replay
from tests.support.fakes import toy_draft, toy_verifier
from tests.support.profiles import costs, profile
from tests.support.recordings import recorded, values

VOCAB = 7
PROMPT = [1, 2, 3]
CHAINS = [
    "eagle2:nodes=3,depth=3,top_k=1",
    "eagle2:nodes=6,depth=6,top_k=1",
    "eagle2:nodes=40,depth=5,top_k=4,beam_width=1",
    "rolling:nodes=4,steps=4,top_k=1,width=1",
]
"""Policies whose trees depend on nothing that was not recorded."""
UNSURE = "eagle2:nodes=9,depth=9,top_k=1,min_prob=0.2"
"""Ends where the draft is unsure, which off the answer's path is not known: the tree is another,
what is accepted of it is not."""


def toy_rounds(
    policy: Policy,
    params: SamplingParams,
    *,
    seed: int,
    limit: int,
    chain_steps: int = 0,
    eos: Sequence[int] = (0,),
) -> list[Round]:
    """A real run of a toy target with a toy draft."""
    draft = toy_draft(PROMPT, VOCAB, seed=seed, chain_steps=chain_steps)
    verifier = toy_verifier(PROMPT, VOCAB, params, seed=seed)
    sizer = policy.start(Setting(chain_steps=chain_steps))
    return list(decode(verifier, draft, sizer, StopRules(eos, limit)))


def answer_of(*lines: dict[str, Any]) -> tuple[Answer, Pool]:
    answers, pools = gather([parse_line(json.dumps(line), "line") for line in lines])
    return answers[0], pools[answers[0].group]


def with_chain(steps: int, **changes: Any) -> DeviceProfile:
    """The round-numbered profile, with chain calls of ``steps`` levels or without."""
    own = costs()
    if not steps:
        changes = {"chain_first": None, "chain_next": None, **changes}
    return replace(profile(), costs=replace(own, chain_steps=steps, **changes))


def accepted(rounds: Sequence[Round]) -> list[int]:
    return [len(outcome.tokens) for outcome in rounds[1:]]


def calls(rounds: Sequence[Round]) -> list[tuple[int, ...]]:
    return [outcome.feedback.calls for outcome in rounds if outcome.feedback is not None]


# --- Exactness -----------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("policy", [*CHAINS, UNSURE])
@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    limit=st.integers(2, 40),
    temperature=st.sampled_from([0.0, 0.8]),
    depth=st.sampled_from([2, 7, 10]),
)
def test_a_chain_is_replayed_round_by_round(
    policy: str, steps: int, seed: int, limit: int, temperature: float, depth: int
) -> None:
    """Recorded under one policy, replayed under another: tokens, nodes and the rows of every draft
    call are those of a real run of the other, and nothing had to be drawn."""
    params = SamplingParams(temperature=temperature, seed=seed)
    survey = Survey(depth=depth, top_k=4)
    seen = toy_rounds(survey, params, seed=seed, limit=limit, chain_steps=steps)
    real = toy_rounds(parse_policy(policy), params, seed=seed, limit=limit, chain_steps=steps)
    line = recorded(
        seen,
        prompt_tokens=len(PROMPT),
        draft_prompt_tokens=len(PROMPT),
        max_new_tokens=limit,
        temperature=temperature,
    )
    if not any(len(path) for path in line["path"]):
        return  # too short an answer to draft for
    found = replay(*answer_of(line), parse_policy(policy), Conditions(with_chain(steps)))
    assert [moment.tokens for moment in found.rounds] == accepted(real)
    assert found.drawn == 0
    if policy != UNSURE:
        assert [moment.nodes for moment in found.rounds] == [o.tree_nodes for o in real[1:]]
        assert [moment.calls for moment in found.rounds] == calls(real)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), limit=st.integers(3, 40))
def test_the_recording_policy_replays_itself(seed: int, limit: int) -> None:
    survey = Survey(depth=6, top_k=4)
    seen = toy_rounds(survey, SamplingParams(), seed=seed, limit=limit)
    line = recorded(seen, prompt_tokens=3, draft_prompt_tokens=3, max_new_tokens=limit)
    if any(len(path) for path in line["path"]):
        found = replay(*answer_of(line), survey, Conditions(with_chain(0)))
        assert [moment.tokens for moment in found.rounds] == line["accepted"]
        assert [list(moment.calls) for moment in found.rounds] == line["calls"]


TREES = ["eagle2:nodes=12,depth=4,top_k=3", "rolling:nodes=10,steps=4,top_k=3,width=4"]


@pytest.mark.parametrize("policy", TREES)
def test_trees_are_replayed_on_average(policy: str) -> None:
    """What lies off the answer's path is drawn, so single rounds differ and means do not much."""
    real_tokens = real_rounds = replayed_rounds = 0
    lines = []
    for seed in range(30):
        survey, params = Survey(depth=8, top_k=4), SamplingParams()
        seen = toy_rounds(survey, params, seed=seed, limit=40)
        real = toy_rounds(parse_policy(policy), params, seed=seed, limit=40)
        lines.append(
            recorded(seen, id=str(seed), prompt_tokens=3, draft_prompt_tokens=3, max_new_tokens=40)
        )
        real_tokens += sum(accepted(real))
        real_rounds += len(accepted(real))
    answers, pools = gather([parse_line(json.dumps(line), "line") for line in lines])
    for answer in answers:
        pool = pools[answer.group]
        found = replay(answer, pool, parse_policy(policy), Conditions(with_chain(0)))
        assert found.tokens_after_first == len(answer.tokens) - 1
        replayed_rounds += len(found.rounds)
    assert replayed_rounds == pytest.approx(real_rounds, rel=0.06)
    assert real_tokens / real_rounds > 1.5, "nothing was accepted: the comparison tells nothing"


def test_what_was_not_recorded_is_drawn_and_counted() -> None:
    """A chain with siblings verifies leaves it never expanded: what follows them is unknown."""
    params = SamplingParams()
    narrow = parse_policy("eagle2:nodes=16,depth=4,top_k=4,beam_width=1")
    seen = toy_rounds(narrow, params, seed=3, limit=90, eos=())
    line = recorded(seen, prompt_tokens=3, draft_prompt_tokens=3, max_new_tokens=90)
    conditions = Conditions(with_chain(0))
    chain = parse_policy(CHAINS[1])
    found = replay(*answer_of(line), chain, conditions)
    assert 0 < found.drawn < found.asked
    again = replay(*answer_of(line), chain, conditions)
    assert again == found
    others = [replay(*answer_of(line), chain, replace(conditions, seed=s)) for s in range(1, 9)]
    assert any(other != found for other in others)
    whole = recorded(
        toy_rounds(Survey(depth=4, top_k=4), params, seed=3, limit=90, eos=()),
        prompt_tokens=3, draft_prompt_tokens=3, max_new_tokens=90, repeat=2,
    )  # fmt: skip
    both = replay(*answer_of(line, whole), chain, conditions)
    assert both.drawn == 0, "two runs of one answer tell of it together"


def of_side(turn: Turn, policy: str) -> tuple[Any, list[Any]]:
    return next((side, runs) for side, runs in turn.runs.items() if side.policy == policy)


@pytest.mark.parametrize(("role", "record"), [("draft", "survey"), ("eaglevlm", "survey:verify=0")])
def test_real_models_are_replayed_round_by_round(role: str, record: str, tmp_path: Path) -> None:
    """A feature-level draft feeds on itself, so its proposals are needed at every depth."""
    from edgespec_export.exporter import export_bundle
    from edgespec_export.family import export_request, sample_folder

    export_bundle(export_request(role, tmp_path / "b"))
    model = edgespec_runtime.load(tmp_path / "b", threads=1)
    rows = select(read_sets([sample_folder() / "out_of_domain.jsonl"]), ["detailed"], 2, True)
    policies = ("eagle2:nodes=4,depth=4,top_k=1", "eagle2:nodes=12,depth=12,top_k=1")
    method = Method(str(model.variant), "model", model.compressor)
    asked = Settings((record, *policies), (0.0, 1.0), 1, max_new_tokens=48)
    turns = list(measure(model, "b", [method], rows, asked))
    lines = [parse_line(json.dumps(trace(t, *_first(t, record))), "line") for t in turns]
    answers, pools = gather(lines)
    assert len(answers) == len(turns) == 4
    for turn, answer in zip(turns, answers, strict=True):
        for policy in policies:
            _, (real,) = of_side(turn, policy)
            pool = pools[answer.group]
            found = replay(answer, pool, parse_policy(policy), Conditions(with_chain(6)))
            assert [m.tokens for m in found.rounds] == [r.accepted for r in real.rounds]
            assert [m.calls for m in found.rounds] == [p.calls for p in real.proposals]
            assert found.drawn == 0


def _first(turn: Turn, policy: str) -> tuple[Any, int, Any]:
    side, runs = of_side(turn, policy)
    return side, 1, runs[0]


# --- Time ----------------------------------------------------------------------------------------

SURE = [0, -0.1, -3.0]
"""A node whose best child is the target's token."""
ASTRAY = [-1, -0.1, -3.0]
"""A node none of whose children is."""


def sure_answer(tokens: int, **fields: Any) -> dict[str, Any]:
    """An answer the draft always gets right."""
    ids = list(range(10, 10 + tokens))
    return values(ids, [[SURE]] * (tokens - 1), **fields)


def one(line: dict[str, Any], policy: str, used: DeviceProfile, **conditions: Any) -> Replay:
    return replay(*answer_of(line), parse_policy(policy), Conditions(used, **conditions))


def ms(found: Curve | None, size: int, context: int = 0) -> float:
    assert found is not None
    return found.at(size, context)


def test_plain_decoding_costs_what_the_curves_say() -> None:
    own = costs()
    found = one(sure_answer(4), "plain", profile())
    assert found.ttft_ms == pytest.approx(8.0 + own.prefill.at(100) + own.host_token_ms)
    steps = [own.verify.at(1, 100 + done) + 0.1 + 0.01 for done in range(3)]
    assert [moment.round_ms for moment in found.rounds] == pytest.approx(steps)
    assert [moment.gap_ms for moment in found.rounds] == pytest.approx(steps)
    assert found.total_ms == pytest.approx(found.ttft_ms + sum(steps))
    assert found.tokens_per_s == pytest.approx(3e3 / sum(steps))


def test_a_chain_pays_by_the_segment_and_the_prompt_once() -> None:
    """12 tokens: the first round drafts 6 of the 11 left in two calls of four levels, accepts all
    and adds one; the second has 4 levels left, one call, which takes in the leaf that was accepted
    but never expanded, and the bonus token."""
    own = costs()
    found = one(sure_answer(13, max_new_tokens=13, finish_reason="length"),
                "eagle2:nodes=6,depth=6,top_k=1", profile())  # fmt: skip
    assert [moment.tokens for moment in found.rounds] == [7, 5]
    assert [moment.calls for moment in found.rounds] == [(1, 1), (2,)]
    first = ms(own.chain_first, 1, 64) + 1.9 + 0.02 + own.verify.at(7, 100) + 0.1 + 7 * 0.01
    second = ms(own.chain_first, 2, 70) + 0.02 + own.verify.at(5, 107) + 0.1 + 5 * 0.01
    prompt = ms(own.draft_vision, 1) + ms(own.draft_prefill, 64)
    assert [m.round_ms for m in found.rounds] == pytest.approx([first, second])
    assert [m.gap_ms for m in found.rounds] == pytest.approx([first + prompt, second])


def test_steps_pay_for_the_width_of_every_beam() -> None:
    """Without a chain graph; a staircase for verification, with rows that cost alike."""
    stairs = Curve(
        (1, 4, 5, 8, 9), (0,), ((2.0, 2.0, 5.0, 5.0, 9.0),), ((2.0, 2.0, 5.0, 5.0, 9.0),)
    )
    used = with_chain(0, verify=stairs)
    line = sure_answer(4, max_new_tokens=4, finish_reason="length")
    found = one(line, "eagle2:nodes=4,depth=2,top_k=2", used)
    (only,) = found.rounds
    own = used.costs
    assert (only.calls, only.nodes, only.tokens) == ((1, 2), 4, 3)
    expected = ms(own.draft_first, 1) + ms(own.draft_step, 2) + 0.02 + 5.0 + 0.1 + 3 * 0.01
    assert only.round_ms == pytest.approx(expected)
    assert one(line, "eagle2:nodes=3,depth=2,top_k=2", used).rounds[0].round_ms == pytest.approx(
        expected - 3.0
    )


def test_drawing_tokens_costs_at_every_visited_node() -> None:
    warm = sure_answer(4, max_new_tokens=4, finish_reason="length", temperature=1.0)
    cold = {**warm, "temperature": 0.0}
    policy = "eagle2:nodes=2,depth=2,top_k=1"
    drawn, greedy = (one(line, policy, profile()) for line in (warm, cold))
    assert drawn.ttft_ms - greedy.ttft_ms == pytest.approx(0.3)
    assert drawn.rounds[0].round_ms - greedy.rounds[0].round_ms == pytest.approx(3 * 0.3)


def test_a_round_trip_is_paid_by_every_verification() -> None:
    line, policy = sure_answer(8), "eagle2:nodes=3,depth=3,top_k=1"
    here = one(line, policy, profile())
    there = one(line, policy, profile(), network=Network(60.0), ahead=False)
    assert there.ttft_ms - here.ttft_ms == pytest.approx(60.0)
    assert [b.round_ms - a.round_ms for a, b in zip(here.rounds, there.rounds, strict=True)] == (
        pytest.approx([60.0] * len(here.rounds))
    )
    link = Network(60.0, uplink_kbps=8.0)
    thin = one(line, policy, moved(profile(), link), network=link, ahead=False)
    bits = [8 * (40 + 3.6 * moment.nodes) for moment in here.rounds]
    assert [b.round_ms - a.round_ms for a, b in zip(there.rounds, thin.rounds, strict=True)] == (
        pytest.approx([each / 8.0 for each in bits])
    )


@pytest.mark.parametrize("rtt_ms", [0.5, 60.0])
def test_what_is_drafted_while_waiting_takes_no_time(rtt_ms: float) -> None:
    """The draft is always right: behind the first tree, rounds cost the longer of both."""
    line, policy = sure_answer(16), "eagle2:nodes=3,depth=3,top_k=1"
    found = [
        one(line, policy, with_chain(0), network=Network(rtt_ms), ahead=ahead)
        for ahead in (False, True)
    ]
    waiting, ahead = ([m.round_ms for m in replay.rounds] for replay in found)
    assert [m.tokens for m in found[0].rounds] == [m.tokens for m in found[1].rounds]
    table = with_chain(0).costs
    assert table.draft_first and table.draft_step
    drafting = waiting[1] - (rtt_ms + table.verify.at(4, 60) + table.host_round_ms)
    assert drafting > 1.5
    if rtt_ms > drafting:
        assert waiting[1] - ahead[1] == pytest.approx(
            table.draft_first.at(1, 60) + 2 * table.draft_step.at(1, 60), abs=0.2
        )
        assert found[1].rounds[1].calls == ()
    assert all(b <= a + 1e-6 for a, b in zip(waiting, ahead, strict=True))


def test_a_server_takes_over_the_targets_costs() -> None:
    server = replace(
        profile(), costs=replace(costs(), verify=Curve.constant(0.5), vision=Curve.constant(1.0))
    )
    there = moved(profile(), Network(10.0), server)
    assert there.costs.verify.at(5, 300) == pytest.approx(0.5)
    assert with_way(there, Network(10.0)).costs.verify.at(5, 300) == pytest.approx(10.5)
    assert there.costs.vision.at(1) == 1.0 and there.costs.draft_step == costs().draft_step
    with pytest.raises(ConfigError, match=r"--rtt-ms is -1.0; it must be a finite number"):
        Network(-1.0)


def test_noise_scatters_around_the_medians_and_keeps_to_its_seed() -> None:
    line, policy = sure_answer(200), "plain"
    still = one(line, policy, profile())
    noisy = one(line, policy, profile(), noise=True)
    assert noisy == one(line, policy, profile(), noise=True)
    assert noisy != one(line, policy, profile(), noise=True, seed=1)
    ratios = [a.round_ms / b.round_ms for a, b in zip(noisy.rounds, still.rounds, strict=True)]
    assert np.median(ratios) == pytest.approx(1.0, abs=0.02)
    assert np.percentile(ratios, 95) == pytest.approx(1.1, abs=0.03)  # the curve's p95


def test_answers_end_where_they_ended_or_are_cut() -> None:
    policy = "eagle2:nodes=6,depth=6,top_k=1"
    assert one(sure_answer(10), policy, profile()).tokens_after_first == 9
    assert one(sure_answer(10), policy, profile(), max_new_tokens=4).tokens_after_first == 3
    cut = sure_answer(10, max_new_tokens=10, finish_reason="length")
    with pytest.raises(ConfigError, match="was cut off at 10 when it was recorded"):
        one(cut, policy, profile(), max_new_tokens=11)
