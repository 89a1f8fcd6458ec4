"""Sizing by measured cost over toy models, which see every wrong bit, against a clock that a
profile moves: the text is plain decoding's whatever is believed, and what it chooses is what pays.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgespec.acceptance import StopRules
from edgespec.errors import ConfigError
from edgespec.latency import Costs, Curve, DeviceProfile
from edgespec.sampling import Noise, SamplingParams, gumbel_noise
from edgespec.sizing import Eagle2, Growth, Policy, Root, Setting, Sized, parse_policy
from edgespec.sizing.budgets import Budget
from edgespec.sizing.calibration import IDENTITY
from edgespec.sizing.experience import Experience
from edgespec.sizing.rates import LEVELS
from edgespec.tree import ROOT, Candidates
from edgespec_runtime.decoder import Round, decode
from edgespec_runtime.drafts import Drafter, NoDraft
from edgespec_runtime.drafts.cascade import CascadeDraft
from edgespec_runtime.drafts.coupling import Coupling
from edgespec_runtime.drafts.ngram import NgramDraft
from tests.support.fakes import ScriptedDraft, ScriptedVerifier, chain, toy_draft, toy_verifier
from tests.support.profiles import costs, curve, profile
from tests.support.street import Street, clocked, drafted
from tests.test_lossless import count_up, samplings, tokens_of

VOCAB, EOS = 10, 9
KINDS = ("model", "ngram", "model+ngram")
GREEDY = SamplingParams()


# --- What it may believe --------------------------------------------------------------------------


def any_curve(rng: np.random.Generator) -> Curve:
    """Positive milliseconds in no order at all."""
    sizes = tuple(sorted({int(n) for n in rng.integers(1, 40, rng.integers(1, 5))}))
    contexts = tuple(sorted({int(n) for n in rng.integers(0, 60, rng.integers(1, 3))}))
    medians = np.exp(rng.uniform(-5, 3, (len(contexts), len(sizes))))
    rows = [tuple(row) for row in medians.tolist()]
    return Curve(sizes, contexts, tuple(rows), tuple(tuple(2 * v for v in row) for row in rows))


def any_profile(rng: np.random.Generator, chain_steps: int) -> DeviceProfile:
    """A device that never was; with the chain's curves, the steps' or both."""
    chained = chain_steps > 0 and rng.random() < 0.7
    stepped = not chained or rng.random() < 0.7
    one = functools.partial(any_curve, rng)
    table = Costs(
        vision=one(), prefill=one(), verify=one(),
        draft_vision=one(), draft_prefill=one(),
        draft_first=one() if stepped else None, draft_step=one() if stepped else None,
        chain_first=one() if chained else None, chain_next=one() if chained else None,
        chain_steps=chain_steps if chained else 0,
        commit_ms=float(rng.exponential(0.1)), pick_ms=float(rng.exponential(0.1)),
        host_round_ms=float(rng.exponential(0.1)), host_token_ms=float(rng.exponential(0.1)),
    )  # fmt: skip
    return dataclasses.replace(profile(), costs=table)


def any_experience(rng: np.random.Generator, setting: Setting) -> Experience:
    """Lessons of nowhere, for the setting's drafter."""
    experience = Experience()
    key = experience.key(setting)
    lesson, asked = experience.lesson(key), experience.questions.ask(setting.question)
    lesson.calibrator.weights = IDENTITY + rng.normal(0, 1.5, len(IDENTITY))
    lesson.calibrator.reliability.nodes = int(rng.integers(0, 2000))
    lesson.allowance_ms = float(rng.exponential(20.0))
    for record in (lesson.record, asked.records.setdefault(key, type(lesson.record)())):
        record.drafted.add(float(rng.exponential(20)), float(rng.exponential(20)), 10)
        record.overall.add(float(rng.exponential(20)), float(rng.exponential(20)), 10)
        record.survival.add(np.cumprod(rng.uniform(0.1, 1, LEVELS)).tolist(), 10)
    asked.lengths.extend(rng.integers(1, 40, rng.integers(0, 5)).tolist())
    for factor in (experience.drift.verify, experience.drift.draft, experience.drift.host):
        factor.log, factor.log_p95 = float(rng.normal()), float(rng.exponential(0.3))
        factor.bins = {size: float(rng.normal()) for size in range(4)}
    return experience


# --- Toy models: every kind of draft, every belief ------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    """One answer of toy models."""

    prompt: tuple[int, ...] = (1, 2, 3)
    kind: str = "model"
    params: SamplingParams = GREEDY
    limit: int = 30
    disagree: float = 0.3
    chain_steps: int = 0
    coupled: bool = False
    policy: Sized = Sized(nodes=12, levels=6, width=4)

    def draft(self) -> Drafter:
        ngram = NgramDraft(self.prompt)
        if self.kind == "ngram":
            return ngram
        noise = Noise(self.params.seed, VOCAB)
        model = toy_draft(
            self.prompt, VOCAB, disagree=self.disagree, chain_steps=self.chain_steps,
            coupling=Coupling(noise, self.params.temperature) if self.coupled else None,
        )  # fmt: skip
        return CascadeDraft(model, ngram) if self.kind == "model+ngram" else model

    def setting(self, **more: Any) -> Setting:
        modelled = self.kind != "ngram"
        return Setting(
            prompt_tokens=len(self.prompt),
            draft_prompt_tokens=len(self.prompt) if modelled else 0,
            max_new_tokens=self.limit,
            temperature=self.params.temperature,
            coupled=self.coupled,
            eos=frozenset([EOS]),
            chain_steps=self.chain_steps if modelled else 0,
            draft=self.kind,
            question=self.prompt,
            **{"profile": profile(), **more},
        )

    def plain(self) -> list[Round]:
        verifier = toy_verifier(self.prompt, VOCAB, self.params)
        sizer = Eagle2().start(Setting())
        return list(decode(verifier, NoDraft(), sizer, StopRules([EOS], self.limit)))

    def run(self, setting: Setting, factor: Callable[[], float] = lambda: 1.0) -> list[Round]:
        verifier = toy_verifier(self.prompt, VOCAB, self.params)
        return clocked(verifier, self.draft(), self.policy, setting, self.limit, factor)[0]

    def check(self, setting: Setting, factor: Callable[[], float] = lambda: 1.0) -> list[Round]:
        """Runs it; the text is plain decoding's."""
        rounds, plain = self.run(setting, factor), self.plain()
        assert tokens_of(rounds) == tokens_of(plain)
        assert rounds[-1].finish_reason == plain[-1].finish_reason
        assert all(r.tree_nodes <= self.policy.nodes for r in rounds)
        return rounds


@st.composite
def cases(draw: st.DrawFn) -> Case:
    params = draw(samplings)
    kind = draw(st.sampled_from(KINDS))
    return Case(
        prompt=tuple(draw(st.lists(st.integers(0, 9), min_size=1, max_size=6))),
        kind=kind,
        params=params,
        limit=draw(st.integers(1, 24)),
        disagree=draw(st.sampled_from([0.0, 0.3, 1.0])),
        chain_steps=draw(st.sampled_from([0, 1, 3])),
        coupled=kind != "ngram" and not params.greedy and draw(st.booleans()),
        policy=draw(
            st.builds(
                Sized,
                nodes=st.integers(1, 12),
                levels=st.integers(1, 6),
                width=st.integers(1, 4),
                top_k=st.integers(1, 4),
                explore=st.sampled_from([0.0, 0.005, 0.9]),
            )
        ),
    )


@settings(max_examples=120)
@given(case=cases(), seed=st.integers(0, 2**32))
def test_the_text_is_plain_decodings_whatever_is_believed(case: Case, seed: int) -> None:
    """Made-up profiles, lessons of nowhere, limits, and times that are anything."""
    rng = np.random.default_rng(seed)
    setting = case.setting(profile=any_profile(rng, case.chain_steps))
    if rng.random() < 0.7:
        setting = dataclasses.replace(setting, experience=any_experience(rng, setting))
    if rng.random() < 0.5:
        limit = float(np.exp(rng.uniform(-3, 4)))
        setting = dataclasses.replace(setting, budget=Budget(ms_per_round=limit))
    case.check(setting, lambda: float(np.exp(rng.normal())))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_lessons_of_other_requests_do_not_change_a_text(kind: str, temperature: float) -> None:
    """One experience for all: other prompts, drafts, seeds and luck."""
    experience, nodes, accepted = Experience(), 0, 0
    for seed in range(12):
        case = Case(
            prompt=(seed % 10, 1, 2, 3, 1, 2),
            kind=kind if seed % 3 else KINDS[seed % 2],
            params=SamplingParams(temperature=temperature, seed=seed),
            disagree=(0.0, 0.3, 1.0)[seed % 3],
            policy=Sized(12, 6, 4, explore=0.9),
        )
        rounds = case.check(case.setting(profile=device(), experience=experience))
        nodes += sum(r.tree_nodes for r in rounds)
        accepted += sum(r.drafted for r in rounds)
    assert nodes > 150 and accepted > 5, "hardly anything was drafted: the test shows little"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_draft_that_is_always_wrong_is_left_alone(temperature: float) -> None:
    case = Case(disagree=1.0, params=SamplingParams(temperature=temperature, seed=1))
    experience, asked = Experience(), list[bool]()
    for seed in range(30):
        rounds = dataclasses.replace(case, prompt=(seed % 10, 1)).check(
            case.setting(experience=experience)
        )
        asked += [drafted(r) for r in rounds[1:]]
    assert all(asked[:2]) and np.mean(asked[-200:]) < 0.2


def test_where_drafts_are_wrong_nothing_is_verified() -> None:
    """n = 0 is one of the sizes, with the draft asked and paid for."""
    street = Street(0.9, lambda number: 0.0)
    steep = dataclasses.replace(
        street.profile.costs, verify=Curve((1, 9), (0,), ((10.0, 50.0),), ((10.0, 50.0),))
    )
    street.profile = dataclasses.replace(street.profile, costs=steep)
    street.run(1500)
    asked = [r for r in street.rounds if drafted(r)]
    assert asked[0].tree_nodes > 0
    assert [r.tree_nodes for r in asked[-3:]] == [0, 0, 0]


def test_nothing_is_drafted_where_nothing_more_may_be_emitted() -> None:
    for limit in range(1, 6):
        rounds = Case(limit=limit).check(Case(limit=limit).setting())
        deepest = [r.feedback.candidates.depths for r in rounds if r.feedback]
        lefts = [r.feedback.root.depth_left for r in rounds if r.feedback]
        assert all(max(d, default=0) <= left for d, left in zip(deepest, lefts, strict=True))


def test_answers_at_the_same_time_share_lessons_and_keep_their_texts() -> None:
    experience = Experience()
    jobs = [
        Case(prompt=(n, 1, 2), params=SamplingParams(temperature=float(n % 2), seed=n))
        for n in range(4)
    ]
    runs = []
    for case in jobs:
        sizer = case.policy.start(case.setting(experience=experience))
        verifier = toy_verifier(case.prompt, VOCAB, case.params)
        runs.append(decode(verifier, case.draft(), sizer, StopRules([EOS], case.limit)))
    rounds: list[list[Round]] = [[] for _ in jobs]
    for turn in itertools.cycle(range(len(jobs))):
        if all(found and found[-1].finish_reason for found in rounds):
            break
        if outcome := next(runs[turn], None):
            rounds[turn].append(outcome)
    assert [tokens_of(r) for r in rounds] == [tokens_of(case.plain()) for case in jobs]


# --- Kinds of growth ------------------------------------------------------------------------------


def device(**changes: Any) -> DeviceProfile:
    """Verifying is dear and nearly flat: drafting pays."""
    wide = Curve((1, 16), (0,), ((20.0, 21.0),), ((20.0, 21.0),))
    return dataclasses.replace(
        profile(), costs=dataclasses.replace(costs(), **{"verify": wide, **changes})
    )


NO_CHAIN = {"chain_first": None, "chain_next": None, "chain_steps": 0}
NO_STEPS = {"draft_first": None, "draft_step": None}
CHEAP_CHAIN = {"chain_first": Curve.constant(0.6), "chain_next": Curve.constant(0.6)}
DEAR_CHAIN = {"chain_first": Curve.constant(30.0), "chain_next": Curve.constant(30.0)}


@pytest.mark.parametrize("kind", ["model", "model+ngram"])
@pytest.mark.parametrize(
    ("chain_steps", "changes", "growth"),
    [
        (0, {}, Growth.STEPS),
        (3, NO_CHAIN, Growth.STEPS),
        (3, NO_STEPS, Growth.CHAIN),
        (3, CHEAP_CHAIN, Growth.CHAIN),
        (3, DEAR_CHAIN, Growth.STEPS),
    ],
)
def test_it_grows_as_the_device_has_it_cheapest(
    kind: str, chain_steps: int, changes: dict[str, Any], growth: Growth
) -> None:
    if changes.get("chain_steps") != 0:
        changes = {**changes, "chain_steps": 3}
    experience, kinds, most = Experience(), set(), 0
    for seed in range(4):
        case = Case(prompt=(seed, 1, 2), kind=kind, chain_steps=chain_steps, disagree=0.1)
        rounds = case.check(case.setting(profile=device(**changes), experience=experience))
        kinds |= {r.feedback.growth for r in rounds if r.feedback and drafted(r)}
        most = max(most, *(len(r.feedback.calls) for r in rounds if r.feedback))
    assert kinds == {growth}
    assert most > 1, "no tree was grown beyond the first call: the test shows little"


def test_a_chain_is_verified_with_its_siblings() -> None:
    """What the chain's calls propose beside the path is free, and a tree."""
    case = Case(chain_steps=3, disagree=0.4)
    rounds = case.check(case.setting(profile=device(**CHEAP_CHAIN, chain_steps=3)))
    trees = [r.feedback for r in rounds if r.feedback and r.tree_nodes]
    assert any(len({f.candidates.parents[i] for i in f.chosen}) < len(f.chosen) for f in trees)


# --- Coupling -------------------------------------------------------------------------------------


def test_a_draft_is_shown_the_noise_that_the_target_draws_with() -> None:
    check_noise()


def check_noise() -> None:
    coupling = Coupling(Noise(11, 300), temperature=0.7)
    positions = [3, 4, 9, 200, 3]
    rows = coupling.rows(positions)
    assert rows.dtype == np.float32 and rows.shape == (5, 300)
    exact = np.stack([gumbel_noise(11, position, 300) for position in positions])
    np.testing.assert_allclose(rows, exact, rtol=1e-3, atol=1e-3)
    ids = np.array([5, 299, 17])
    some = Coupling(Noise(11, 300), 0.7, ids).rows(positions)
    np.testing.assert_array_equal(some, rows[:, ids])


def test_noise_is_the_same_however_often_and_late_it_is_asked_for() -> None:
    noise = Noise(5, 50)
    for position in [*range(200), *range(190, 150, -1)]:
        np.testing.assert_array_equal(noise.at(position), gumbel_noise(5, position, 50))


@pytest.mark.parametrize("policy", [Eagle2(6, 6, 1), Eagle2(12, 4, 3), Sized(12, 6, 4)])
@pytest.mark.parametrize("chain_steps", [0, 3])
def test_a_coupled_draft_that_is_the_target_is_always_right(
    policy: Policy, chain_steps: int
) -> None:
    """Whatever the temperature: it guesses the very tokens that will be drawn."""
    check_coupled(policy, chain_steps)


def check_coupled(policy: Policy, chain_steps: int = 0) -> None:
    accepted = {True: 0, False: 0}
    for seed, temperature in itertools.product(range(4), (0.7, 2.0)):
        params = SamplingParams(temperature=temperature, seed=seed)
        texts = []
        for coupled in (True, False):
            case = Case(
                params=params, disagree=0.0, chain_steps=chain_steps, coupled=coupled, limit=24
            )
            setting = case.setting(profile=device(**CHEAP_CHAIN, chain_steps=3))
            draft, verifier = case.draft(), toy_verifier(case.prompt, VOCAB, params)
            rounds, _ = clocked(verifier, draft, policy, setting, case.limit)
            texts.append(tokens_of(rounds))
            for outcome in rounds[1:]:
                accepted[coupled] += outcome.drafted
                feedback = outcome.feedback
                if coupled and feedback and outcome.finish_reason is None:
                    best = best_path(feedback.candidates, feedback.chosen)
                    assert outcome.drafted == best, "the best path is the text"
        assert texts[0] == texts[1] == tokens_of(case.plain())
    assert accepted[True] > accepted[False] > 0


def best_path(candidates: Candidates, chosen: Sequence[int]) -> int:
    """Nodes of the tree in which everyone is its parent's best child."""
    best: dict[int, int] = {}
    for index, parent in enumerate(candidates.parents):
        best.setdefault(parent, index)
    length, node = 0, best.get(ROOT, ROOT)
    while node in chosen:
        length, node = length + 1, best.get(node, ROOT)
    return length


# --- Asking for it --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sized", Sized()),
        ("sized:nodes=8,levels=4,width=2,top_k=2", Sized(8, 4, 2, 2)),
        ("sized:explore=0.1", Sized(explore=0.1)),
    ],
)
def test_it_is_parsed(text: str, expected: Sized) -> None:
    assert parse_policy(text) == expected
    assert expected.max_nodes == expected.nodes
    assert expected.max_drafted == expected.width * (expected.levels - 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sized:nodes=0", "nodes is 0"),
        ("sized:width=-1", "width is -1"),
        ("sized:levels=0", "levels is 0"),
        ("sized:top_k=0", "top_k is 0"),
        ("sized:explore=1", "explore is 1.0"),
        ("sized:explore=nan", "explore is nan"),
        ("sized:depth=3", "no setting 'depth=3'"),
    ],
)
def test_wrong_settings_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_policy(text)
    assert message in str(error.value)


# --- What it chooses, where that is plain ---------------------------------------------------------


def test_draft_time_that_is_spent_is_no_reason_to_verify_less() -> None:
    """Two devices, one of which drafts slowly: the same candidates, the same rate, one tree."""
    trees = []
    for first in (0.1, 15.0):
        setting = Setting(profile=device(draft_first=Curve.constant(first)), draft="m")
        draft = ScriptedDraft(lambda path, left: chain([1, 2, 3, 4], math.log(0.3)))
        rounds, _ = clocked(ScriptedVerifier(count_up), draft, Sized(), setting, 9)
        trees.append(rounds[1].tree_nodes)
    assert trees[0] == trees[1] > 0


def test_draft_time_that_is_spent_is_no_reason_to_draft_less() -> None:
    calls = []
    for first in (0.1, 15.0):
        table = device(draft_first=Curve.constant(first), **NO_CHAIN)
        setting = Setting(profile=table, draft="m")
        draft = toy_draft([1, 2], VOCAB, disagree=0.0)
        rounds, _ = clocked(toy_verifier([1, 2], VOCAB, GREEDY), draft, Sized(), setting, 30)
        assert rounds[1].feedback
        calls.append(rounds[1].feedback.calls)
    assert calls[0] == calls[1] and len(calls[0]) > 2


def test_the_floor_is_half_of_what_the_cheapest_node_costs() -> None:
    """4 ms for a row, 5 for two, 9 for four: a node costs 1 ms at least, at 1 / 4.11 tokens/ms."""
    table = device(verify=curve((4.0, 5.0, 9.0), sizes=(1, 2, 4)), **NO_CHAIN)
    sizer = Sized().start(Setting(profile=table, draft="m"))
    assert sizer.floor == 0.0, "before the first round anything may pay"
    assert sizer.begin(Root(9, 50, 1, prepared=True, emitted=1)) is not Growth.NONE
    plain_ms = 4.0 + table.costs.host_round_ms + table.costs.host_token_ms
    assert sizer.floor == pytest.approx(0.5 * 1.0 / plain_ms)
    free = device(verify=curve((4.0, 4.0, 9.0), sizes=(1, 2, 4)), **NO_CHAIN)
    sizer = Sized().start(Setting(profile=free, draft="m"))
    sizer.begin(Root(9, 50, 1, prepared=True, emitted=1))
    assert sizer.floor == 0.0, "a node that costs nothing is always worth it"


def test_a_token_that_ends_the_answer_needs_no_node() -> None:
    """The target names it by itself behind its parent; what would follow is never emitted."""
    setting = Setting(profile=device(), draft="m", eos=frozenset([EOS]))
    proposed = chain([100 + 1, EOS, 5, 6], -0.01)
    draft = ScriptedDraft(lambda path, left: proposed)
    rounds, _ = clocked(ScriptedVerifier(count_up), draft, Sized(), setting, 3)
    assert rounds[1].tree_nodes == 1


def test_the_draft_is_not_asked_below_the_end_of_the_answer() -> None:
    """A beam of tokens that end it is empty."""
    setting = Setting(profile=device(), draft="m", eos=frozenset(range(VOCAB)))
    sizer = Sized(12, 6, 4).start(setting)
    rounds = decode(
        toy_verifier([1], VOCAB, GREEDY), toy_draft([1], VOCAB), sizer, StopRules([], 6)
    )
    calls = [len(r.feedback.calls) for r in rounds if r.feedback and drafted(r)]
    assert calls and set(calls) == {1}


def test_what_was_hoped_for_is_compared_with_what_came() -> None:
    """Predicted against realised tokens and milliseconds, over all rounds, plain ones too."""
    street = Street(1.5, lengths=(30, 50)).run(400)
    told = street.experience.as_json()["lessons"][0]["forecast"]
    assert told["rounds"] == len(street.rounds)
    assert told["ms_per_round"] == pytest.approx(street.spent / len(street.rounds))
    assert told["ms_per_round_predicted"] == pytest.approx(told["ms_per_round"], rel=0.01)
    assert told["tokens_per_round"] == pytest.approx(street.tokens / len(street.rounds))
    assert told["tokens_per_round_predicted"] == pytest.approx(told["tokens_per_round"], rel=0.07)


def test_the_last_round_is_worth_one_token() -> None:
    """It has no room for a draft: nothing of the round before is carried over to it."""
    experience = Experience()
    setting = Setting(profile=device(), draft="m", experience=experience)
    for _ in range(5):
        draft = ScriptedDraft(
            lambda path, left: chain([100 + len(path) + i for i in range(4)][:left], -0.01)
        )
        clocked(ScriptedVerifier(count_up), draft, Sized(), setting, 7)
    told = experience.as_json()["lessons"][0]["forecast"]
    assert told["tokens_per_round"] == pytest.approx(3.0)  # 5 and 1, behind the prompt's token
    assert told["tokens_per_round_predicted"] < 3.1
