"""Budgets: refused where they cannot be met, and kept where they can."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgespec_runtime
from edgespec.errors import ConfigError
from edgespec.latency import Costs, Curve, DeviceProfile, Memory
from edgespec.sampling import SamplingParams
from edgespec.sizing import (
    Eagle2,
    Feedback,
    Growth,
    Plain,
    Policy,
    Root,
    Setting,
    Sized,
    Sizer,
)
from edgespec.sizing.budgets import Budget
from edgespec.sizing.experience import Experience
from edgespec.sizing.feasible import Load, check_budget, fitted, memory_mb, most_nodes, tail
from edgespec.tree import Candidates
from edgespec_runtime.decoder import Round
from edgespec_runtime.limits import within
from tests.support.fakes import toy_draft, toy_verifier
from tests.support.profiles import costs, curve, profile
from tests.support.street import Street, clocked, drafted

LIMITS = ("ms_per_round", "ttft_ms", "p95_itl_ms", "memory_mb")
LOAD = Load(prompt_tokens=64, images=1, new_tokens=36, draft_prompt_tokens=20)
PICTURE = "Describe this image in detail."


# --- What is no limit -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("value", [0, -1.5, math.nan, True, "20", None])
def test_what_is_no_limit_is_refused_by_the_name_of_its_flag(name: str, value: Any) -> None:
    flag = "--budget-" + name.replace("_", "-")
    with pytest.raises(ConfigError) as error:
        Budget(**{name: value})
    assert str(error.value) == f"{flag} is {value!r}; it must be a number above 0"


def test_budgets_are_optional_each() -> None:
    assert not Budget().limited
    for name in LIMITS:
        assert Budget(**{name: 20}).limited
        assert not Budget(**{name: math.inf}).limited


# --- What cannot be met ---------------------------------------------------------------------------


def least(flag: str, load: Load = LOAD, table: DeviceProfile | None = None) -> float:
    """The nearest budget that the refusal of a hopeless one names."""
    name = flag.removeprefix("--budget-").replace("-", "_")
    with pytest.raises(ConfigError) as error:
        check_budget(Budget(**{name: 1e-6}), table or profile(), load)
    message = str(error.value)
    assert message.startswith(f"{flag} 1e-06 cannot be met on board: ")
    return float(message.rsplit(" ", 1)[1])


def test_a_limit_below_plain_decoding_is_refused_with_the_nearest_that_is_not() -> None:
    """By hand: one row at 100 tokens takes 2.5 x 1.1 and the host 0.11; a picture 8 x 1.1 and the
    prompt 10 x 1.1; 180 MB and 101 rows of the target's cache."""
    assert least("--budget-ms-per-round") == 2.9
    assert least("--budget-p95-itl-ms") == 2.9
    assert least("--budget-ttft-ms") == 20.0
    assert least("--budget-memory-mb") == 190.0
    without = dataclasses.replace(LOAD, images=0)
    assert least("--budget-ttft-ms", without) == 11.0


@pytest.mark.parametrize("flag", ["ms-per-round", "p95-itl-ms", "ttft-ms", "memory-mb"])
@pytest.mark.parametrize("scale", [1.0, 0.013, 0.1, 7.77, 24.0 / 2.86, 1000.0, 12345.678])
def test_the_nearest_budget_is_accepted_and_what_is_below_it_is_not(
    flag: str, scale: float
) -> None:
    check_nearest(flag, scale)


def check_nearest(flag: str, scale: float) -> None:
    device = scaled(scale)
    nearest = least(f"--budget-{flag}", LOAD, device)
    name = flag.replace("-", "_")
    try:
        check_budget(Budget(**{name: nearest}), device, LOAD)
    except ConfigError as error:
        pytest.fail(f"the nearest budget is refused in turn: {error}")
    with pytest.raises(ConfigError, match="cannot be met"):
        check_budget(Budget(**{name: nearest * 0.89}), device, LOAD)


def scaled(scale: float) -> DeviceProfile:
    """The device, everything so many times as long and as large."""

    def longer(one: Curve) -> Curve:
        tables = [
            tuple(tuple(value * scale for value in row) for row in rows)
            for rows in (one.median_ms, one.p95_ms)
        ]
        return Curve(one.sizes, one.contexts, tables[0], tables[1])

    table = costs()
    table = dataclasses.replace(
        table,
        vision=longer(table.vision), prefill=longer(table.prefill), verify=longer(table.verify),
        host_round_ms=0.1 * scale, host_token_ms=0.01 * scale,
    )  # fmt: skip
    memory = Memory(120.0 * scale, 60.0 * scale, 20.0, 12288, 3072)
    return dataclasses.replace(profile(), costs=table, memory=memory)


@given(value=st.floats(1e-3, 1e6))
def test_every_nearest_budget_reads_back_as_one_that_is_met(value: float) -> None:
    """Whatever the device: what is printed is not below what is needed, nor a tenth above it."""
    flat = dataclasses.replace(
        costs(), verify=Curve.constant(value), host_round_ms=0.0, host_token_ms=0.0
    )
    device = dataclasses.replace(profile(), costs=flat)
    nearest = least("--budget-ms-per-round", LOAD, device)
    assert value <= nearest <= 1.11 * value
    check_budget(Budget(ms_per_round=nearest), device, LOAD)


def test_the_tail_is_the_spread_of_the_nearest_point() -> None:
    spread = Curve((1, 4), (0, 100), ((2.0, 4.0), (3.0, 6.0)), ((4.0, 4.4), (3.0, 9.0)))
    assert tail(spread, 1) == 4.0
    assert tail(spread, 4) == pytest.approx(4.4)
    assert tail(spread, 2) == pytest.approx(2.0 * (2.0 + 2.0 / 3.0))
    assert tail(spread, 4, 90) == pytest.approx(5.8 * 1.5)
    assert tail(spread, 1, 400) == pytest.approx(6.0), "beyond the last context: as measured there"


# --- Memory ---------------------------------------------------------------------------------------


def test_memory_is_weights_and_caches() -> None:
    """Megabytes of 2**20 bytes; a cache holds the prompt, the answer, the tree and the root."""
    target = 120.0 + 60.0 + (64 + 36 + 1) * 12288 / 2**20
    assert memory_mb(profile(), LOAD, drafts=False) == pytest.approx(target)
    both = target + 20.0 + (20 + 36 + 1) * 3072 / 2**20
    assert memory_mb(profile(), LOAD, drafts=True) == pytest.approx(both)
    trees = both + 10 * (12288 + 3072) / 2**20
    assert memory_mb(profile(), LOAD, drafts=True, nodes=10) == pytest.approx(trees)


@given(extra=st.floats(-1.0, 1.0))
def test_as_many_nodes_as_there_is_room_for(extra: float) -> None:
    budget = Budget(memory_mb=memory_mb(profile(), LOAD, drafts=True) + extra)
    nodes = most_nodes(budget, profile(), LOAD)
    if nodes is None:
        assert extra < 0
        return
    fits = memory_mb(profile(), LOAD, drafts=True, nodes=nodes)
    assert fits <= budget.memory_mb + 1e-6
    assert memory_mb(profile(), LOAD, drafts=True, nodes=nodes + 1) > budget.memory_mb - 1e-6


def test_a_cache_that_takes_no_memory_is_no_limit() -> None:
    free = dataclasses.replace(profile(), memory=Memory(120.0, 60.0, 20.0, 0, 0))
    assert most_nodes(Budget(memory_mb=200.0), free, LOAD) == 1_000_000


def test_trees_are_fitted_into_the_memory_that_there_is() -> None:
    room = memory_mb(profile(), LOAD, drafts=True)
    five = Budget(memory_mb=room + 5.5 * (12288 + 3072) / 2**20)
    fit = functools.partial(fitted, profile=profile(), load=LOAD)
    assert fit(Sized(), five, drafts=True) == Sized(nodes=5)
    assert fit(Sized(nodes=3), five, drafts=True) == Sized(nodes=3)
    assert fit(Sized(), Budget(memory_mb=room), drafts=True) == Plain(), "no node fits"
    assert fit(Sized(), Budget(memory_mb=room - 1.0), drafts=True) == Plain(), "no draft fits"
    assert fit(Sized(), Budget(memory_mb=room - 1.0), drafts=False) == Sized(), "n-grams"
    assert fit(Eagle2(), five, drafts=True) == Eagle2(), "other policies are what was asked for"


# --- Rounds that keep their limit -----------------------------------------------------------------


class Watched:
    """A sizer, and the tail that it reckoned with in every round."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.policy: Policy = inner.policy
        self.tails: list[float] = []

    @property
    def floor(self) -> float:
        return float(self.inner.floor)

    def begin(self, root: Root) -> Growth:
        growth: Growth = self.inner.begin(root)
        self.tails.append(self.inner._room.tail)
        return growth

    def beam(self, candidates: Candidates, level: int, root: Root) -> list[int]:
        beam: list[int] = self.inner.beam(candidates, level, root)
        return beam

    def choose(self, candidates: Candidates) -> list[int]:
        chosen: list[int] = self.inner.choose(candidates)
        return chosen

    def learn(self, feedback: Feedback) -> None:
        self.inner.learn(feedback)

    def finish(self, emitted: int, ended: bool) -> None:
        self.inner.finish(emitted, ended)


@dataclasses.dataclass(frozen=True)
class Watching:
    """``Sized`` whose sizers are kept."""

    inner: Sized
    sizers: list[Watched]

    @property
    def top_k(self) -> int:
        return self.inner.top_k

    @property
    def levels(self) -> int:
        return self.inner.levels

    @property
    def max_nodes(self) -> int:
        return self.inner.max_nodes

    @property
    def max_drafted(self) -> int:
        return self.inner.max_drafted

    def start(self, setting: Setting) -> Sizer:
        self.sizers.append(Watched(self.inner.start(setting)))
        return self.sizers[-1]


STAIRS = curve((2.0, 2.0, 2.2, 3.5, 3.6, 6.0), sizes=(1, 2, 4, 5, 8, 17))
DEVICES: dict[str, Costs] = {
    "slopes": dataclasses.replace(costs(), pick_ms=0.0, host_round_ms=1e-6, host_token_ms=0.0),
    "stairs": dataclasses.replace(
        costs(), verify=STAIRS, pick_ms=0.0, host_round_ms=1e-6, host_token_ms=0.0,
        chain_first=None, chain_next=None, chain_steps=0,
    ),
}  # fmt: skip
BUDGETS = [2.3, 2.8, 3.2, 3.6, 4.2, 5.0, 6.0, 6.5, 9.0]


def rounds_within(
    device: str, limit: float, noise: float = 0.0, answers: int = 4
) -> list[tuple[Round, float]]:
    """All rounds of some answers behind their first tokens under a per-round budget, with the tail
    reckoned with in each; a draft that is the target, so that there is much to gain."""
    table = DEVICES[device]
    rng, policy = np.random.default_rng(3), Watching(Sized(nodes=16, levels=8, width=4), [])
    experience = Experience()
    found: list[tuple[Round, float]] = []
    for number in range(answers):
        prompt = [number % 10, 1, 2]
        setting = Setting(
            prompt_tokens=3, draft_prompt_tokens=64, chain_steps=table.chain_steps, draft="m",
            profile=dataclasses.replace(profile(), costs=table), experience=experience,
            budget=Budget(ms_per_round=limit),
        )  # fmt: skip
        draft = toy_draft(prompt, 10, disagree=0.1, chain_steps=table.chain_steps)
        rounds, _ = clocked(
            toy_verifier(prompt, 10, SamplingParams()), draft, policy, setting, limit=40,
            factor=lambda: float(np.exp(noise * rng.standard_normal())),
        )  # fmt: skip
        asked = [r for r in rounds[1:] if r.feedback and r.feedback.root.depth_left > 0]
        found += zip(asked, policy.sizers[-1].tails, strict=True)
    return found


@pytest.mark.parametrize("limit", BUDGETS)
@pytest.mark.parametrize("device", DEVICES)
def test_no_round_is_planned_beyond_its_budget(device: str, limit: float) -> None:
    check_limit(device, limit)


def check_limit(device: str, limit: float) -> None:
    """On a device that is exactly its profile: drafting, the draft's prompt where it falls into
    the round, and verifying, by the tail, keep the limit."""
    rounds = rounds_within(device, limit)
    for outcome, by in rounds:
        feedback = outcome.feedback
        assert feedback is not None
        if feedback.growth is not Growth.NONE:
            took = feedback.prepare_ms + feedback.round_ms
            assert took * by <= limit * (1 + 1e-6), (took, by, feedback.calls, outcome.tree_nodes)
    trees = {outcome.tree_nodes for outcome, _ in rounds}
    assert trees == {0} if limit < 2.5 else max(trees) > 0 or limit < 7.0


def test_a_larger_budget_is_made_use_of() -> None:
    """Where nothing fits, rounds are plain; the more fits, the more is drafted."""
    sizes = [
        np.mean([outcome.tree_nodes for outcome, _ in rounds_within("stairs", limit)])
        for limit in (2.3, 7.0, 12.0)
    ]
    assert sizes[0] == 0.0 < sizes[1] < sizes[2]


def test_rounds_of_a_noisy_device_are_late_as_seldom_as_was_asked() -> None:
    """The budget is on the 95th percentile, learnt from this device's own spread."""
    rounds = [r for r, _ in rounds_within("stairs", 12.0, noise=0.1, answers=24) if drafted(r)]
    late = [r.feedback.round_ms + r.feedback.prepare_ms > 12.0 for r in rounds[50:] if r.feedback]
    assert len(late) > 100 and np.mean(late) < 0.08


def test_the_time_between_tokens_is_a_rounds() -> None:
    """Tokens of one round arrive together: the smaller of both limits holds."""
    for budget in (Budget(p95_itl_ms=9.0), Budget(ms_per_round=9.0, p95_itl_ms=1000.0)):
        assert Street(1.5, budget=budget).run(100).drafting() == 0.0
    for budget in (Budget(p95_itl_ms=30.0), Budget(ms_per_round=30.0, p95_itl_ms=1000.0)):
        assert Street(1.5, budget=budget).run(100).drafting() == 1.0


# --- A model with budgets -------------------------------------------------------------------------


def small(**memory: float) -> DeviceProfile:
    figures = {"base_mb": 120.0, "target_mb": 60.0, "draft_mb": 20.0, **memory}
    return dataclasses.replace(profile(), memory=Memory(
        **figures, target_kv_bytes=12288, draft_kv_bytes=3072))  # fmt: skip


@pytest.fixture(scope="module")
def whole(builtin_bundle: Path) -> Any:
    return edgespec_runtime.load(builtin_bundle, threads=1, profile=profile())


def describe(model: Any, image: Any, **given_: Any) -> Any:
    return model.generate(image, PICTURE, temperature=0.0, max_new_tokens=40, **given_)


def test_a_draft_without_room_is_left_out_and_the_text_stays(
    builtin_bundle: Path, whole: Any
) -> None:
    from edgespec_export.family import sample_image

    model = edgespec_runtime.load(
        builtin_bundle, threads=1, profile=small(), budget=Budget(memory_mb=195.0)
    )
    assert not model.has_draft
    assert set(model.steps) == {"target"}
    assert set(model.graphs) == {"vision", "projector"}
    expected = "with it 200 MB are needed before the first token, the budget is 195 MB"
    assert expected in model.draft_left_out
    assert whole.has_draft and whole.draft_left_out == ""
    plain = describe(whole, sample_image(), draft="none")
    for draft in ("auto", "none", "ngram"):
        assert describe(model, sample_image(), draft=draft).token_ids == plain.token_ids
    for draft in ("model", "model+ngram"):
        with pytest.raises(ConfigError, match="the draft is not loaded: with it 200 MB"):
            describe(model, sample_image(), draft=draft)


def test_budgets_leave_the_text_as_it_is(whole: Any) -> None:
    from edgespec_export.family import sample_image

    plain = describe(whole, sample_image(), draft="none")
    room = memory_mb(profile(), Load(plain.prompt_tokens, 1, 40), drafts=True)
    for budget in (
        Budget(ms_per_round=1000.0),
        Budget(ms_per_round=6.0, ttft_ms=1e4),
        Budget(p95_itl_ms=10.0, memory_mb=room + 5.0),
        Budget(memory_mb=room + 0.1),
        Budget(memory_mb=room - 0.1),  # no room for the draft's cache
    ):
        assert describe(whole, sample_image(), budget=budget).token_ids == plain.token_ids


def test_a_budget_that_a_request_cannot_keep_is_refused_before_it_runs(whole: Any) -> None:
    from edgespec_export.family import sample_image

    for budget, flag in (
        (Budget(ms_per_round=0.5), "--budget-ms-per-round 0.5 cannot be met"),
        (Budget(ttft_ms=1.0), "--budget-ttft-ms 1 cannot be met"),
        (Budget(p95_itl_ms=0.5), "--budget-p95-itl-ms 0.5 cannot be met"),
        (Budget(memory_mb=100.0), "--budget-memory-mb 100 cannot be met"),
    ):
        with pytest.raises(ConfigError, match=re.escape(flag)):
            whole.stream(sample_image(), PICTURE, budget=budget)


def test_weights_of_a_loaded_draft_count_where_nothing_is_drafted(whole: Any) -> None:
    """Room for the target and its cache alone is no room while the draft is loaded."""
    alone = memory_mb(profile(), LOAD, drafts=False)
    tight = Budget(memory_mb=alone + 1.0)
    check_budget(tight, profile(), LOAD)
    with pytest.raises(ConfigError, match="new tokens beside the draft's weights takes"):
        check_budget(tight, profile(), LOAD, draft_loaded=True)
    check_budget(Budget(memory_mb=alone + 20.0), profile(), LOAD, draft_loaded=True)
    room = memory_mb(profile(), Load(65, 1, 40), drafts=True)
    for draft in ("auto", "none"):
        with pytest.raises(ConfigError, match="--budget-memory-mb .* beside the draft's weights"):
            whole.generate(
                None, "hello", draft=draft, max_new_tokens=40, budget=Budget(memory_mb=room - 15.0)
            )


def test_budgets_need_a_profile(builtin_bundle: Path) -> None:
    for budget in (Budget(ms_per_round=1e6), Budget(memory_mb=1e6)):
        model = edgespec_runtime.load(builtin_bundle, threads=1, budget=budget)
        for request in (model, edgespec_runtime.load(builtin_bundle, threads=1)):
            with pytest.raises(
                ConfigError, match=r"need a device profile; make one with: edgespec"
            ):
                request.generate(None, "hello", max_new_tokens=4, budget=budget)


def test_a_policy_that_does_not_look_at_the_clock_takes_no_limit_on_rounds() -> None:
    for budget, flag in (
        (Budget(ms_per_round=1e6), "--budget-ms-per-round was asked for"),
        (Budget(p95_itl_ms=1e6), "--budget-p95-itl-ms was asked for"),
    ):
        with pytest.raises(ConfigError, match=flag):
            within(budget, Eagle2(), profile(), LOAD, drafts=True)
        for policy in (Sized(), Plain()):
            assert within(budget, policy, profile(), LOAD, drafts=True) == policy
    assert within(Budget(memory_mb=1e6), Eagle2(), profile(), LOAD, drafts=True) == Eagle2()
