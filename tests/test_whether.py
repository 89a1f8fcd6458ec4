"""Whether to draft at all: what similar questions taught, and never much of a loss."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgespec.latency import Curve
from edgespec.sizing.contract import Root, Setting
from edgespec.sizing.costs import RoundCosts
from edgespec.sizing.experience import Experience
from edgespec.sizing.lengths import start_after
from edgespec.sizing.questions import ANSWERS, REMEMBERED, Asked, Questions
from edgespec.sizing.rates import LEVELS, Rate, Record, Spread, Survival
from edgespec.sizing.whether import Whether
from tests.support.profiles import costs

PLAIN_MS = 10.0
EXPLORE = 0.005


# --- Rates ----------------------------------------------------------------------------------------


def test_a_rate_is_tokens_over_time_and_fades() -> None:
    rate = Rate(half_life=4.0)
    assert rate.value == 0.0
    for _ in range(4):
        rate.add(3.0, 10.0)
    assert rate.value == pytest.approx(0.3)
    for _ in range(4):
        rate.add(1.0, 10.0)
    # What is four rounds old weighs half.
    assert rate.value == pytest.approx((0.5 * 3.0 + 1.0) / (0.5 * 10.0 + 10.0))


def test_rounds_taken_together_count_as_many() -> None:
    one_by_one, together = Rate(half_life=500.0), Rate(half_life=500.0)
    for rate in (one_by_one, together):
        rate.add(5.0, 10.0)
    for _ in range(20):
        one_by_one.add(1.0, 10.0)
    together.add(20.0, 200.0, 20)
    assert together.rounds == pytest.approx(one_by_one.rounds, rel=0.02)
    assert together.value == pytest.approx(one_by_one.value, rel=0.02)


def test_a_lightened_rate_keeps_its_value_and_is_soon_outweighed() -> None:
    rate = Rate(half_life=1000.0)
    for _ in range(300):
        rate.add(1.0, 10.0)
    rate.lighten(8.0)
    assert rate.rounds == pytest.approx(8.0) and rate.value == pytest.approx(0.1)
    for _ in range(8):
        rate.add(3.0, 10.0)
    assert rate.value == pytest.approx(0.2, rel=0.05)
    light = Rate(tokens=2.0, ms=10.0, rounds=2.0)
    light.lighten(8.0)
    assert light.rounds == 2.0, "what is light stays as it is"
    Rate().lighten()  # nothing known: nothing to divide by


def test_a_blend_weighs_by_likeness_and_by_rounds() -> None:
    often, seldom = Rate(tokens=90.0, ms=300.0, rounds=30.0), Rate(tokens=1.0, ms=10.0, rounds=1.0)
    blend = Rate.blended([(0.5, often), (1.0, seldom)])
    assert (blend.tokens, blend.ms, blend.rounds) == (46.0, 160.0, 16.0)
    assert Rate.blended([]).value == 0.0


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=10))
def test_the_spread_of_few_answers_is_their_deviation(rates: list[float]) -> None:
    spread = Spread()
    for rate in rates:
        spread.add(rate)
    assert spread.mean == pytest.approx(np.mean(rates))
    assert spread.hopeful == pytest.approx(np.mean(rates) + np.std(rates), abs=1e-6)


def test_the_spread_forgets() -> None:
    spread = Spread()
    for rate in [0.9] * 50 + [0.1, 0.3] * 100:
        spread.add(rate)
    assert spread.mean == pytest.approx(0.2, abs=0.02)
    assert spread.hopeful == pytest.approx(0.3, abs=0.03)


def test_survival_moves_from_the_prior_to_what_was_seen() -> None:
    survival = Survival(0.02)
    prior = list(survival.levels)
    assert all(a > b for a, b in itertools.pairwise(prior)) and len(prior) == LEVELS
    reached = [0.5**level for level in range(1, LEVELS + 1)]
    survival.add(reached)
    assert all(r < s < p for r, s, p in zip(reached, survival.levels, prior, strict=True))
    for _ in range(300):
        survival.add(reached)
    assert survival.levels == pytest.approx(reached, abs=0.01)


def test_survival_is_blended_by_rounds() -> None:
    deep, flat = Survival(0.02, [0.9] * LEVELS, 30.0), Survival(0.02, [0.1] * LEVELS, 10.0)
    blend = Survival.blended([(1.0, deep), (1.0, flat)])
    assert blend.levels == pytest.approx([0.7] * LEVELS)
    assert Survival.blended([]).levels == Survival(0.1).levels
    assert Survival.blended([(1.0, Survival(0.02))]).rounds == 0.0


def test_plain_rounds_are_no_part_of_draftings_rate() -> None:
    experience = Experience()
    setting = Setting(draft="m", question=(1,), experience=experience)
    view = RoundCosts(costs(), experience.drift, nodes=8, width=4, sampled=False)
    whether = Whether(setting, experience, view)
    whether.learn(True, 3.0, 20.0)
    whether.learn(False, 5.0, 50.0, 5)
    whether.finish(8)
    record = experience.lesson(experience.key(setting)).record
    assert record.drafted.value == pytest.approx(0.15)
    assert record.overall.value == pytest.approx(8.0 / 70.0, rel=0.01)


# --- Questions ------------------------------------------------------------------------------------


def weights_for(questions: Questions, words: Sequence[int]) -> dict[frozenset[int], float]:
    return {asked.words: weight for weight, asked in questions.near(questions.ask(words))}


def test_the_same_question_weighs_one_and_others_less() -> None:
    questions = Questions()
    for words in (
        [1, 2, 3, 4],
        [1, 2, 3, 5],
        [1, 6, 7, 8],
        [9],
        [2, 3, 10],
        [6, 7, 11],
        [6, 7, 12],
    ):
        questions.ask(words)
    weights = weights_for(questions, [4, 3, 2, 1, 1])
    assert len(questions.near(questions.ask([1, 2, 3, 4]))) == 7, "in any order: asked before"
    assert weights[frozenset([1, 2, 3, 4])] == 1.0
    near, far = weights[frozenset([1, 2, 3, 5])], weights[frozenset([1, 6, 7, 8])]
    assert 1.0 > near > far > 0.0


def test_a_rare_word_in_common_weighs_more_than_a_common_one() -> None:
    questions = Questions()
    for other in range(30, 50):
        questions.ask([1, other])  # 1 is the chat template's
    for name in (60, 61, 62):  # 2 is what they ask, the last word what they ask about
        questions.ask([1, 2, name])
    weights = weights_for(questions, [1, 2, 70])
    rare, common = weights[frozenset([1, 2, 60])], weights[frozenset([1, 30])]
    assert 1.0 > rare > 2 * common > 0.0


def test_questions_asked_longest_ago_are_forgotten() -> None:
    questions = Questions()
    first = questions.ask([1, 2])
    for word in range(100, 100 + REMEMBERED - 1):
        questions.ask([1, word])
    assert questions.ask([1, 2]) is first, "asked again: it is young once more"
    questions.ask([1, 999])
    assert questions.ask([1, 2]) is first
    for word in range(200, 200 + REMEMBERED):
        questions.ask([1, word])
    assert questions.ask([1, 2]) is not first
    near = questions.near(questions.ask([1, 2]))
    assert len(near) == REMEMBERED
    counts = Counter(word for _, asked in near for word in asked.words)
    assert {w: n for w, n in questions._in.items() if n} == counts, "their words go with them"


def test_a_question_asked_often_speaks_for_itself() -> None:
    questions = Questions()
    questions.ask([1, 3])
    entry = questions.ask([1, 2])
    entry.lengths.extend(range(ANSWERS - 1))
    assert len(questions.near(entry)) == 2
    entry.lengths.append(5)
    assert questions.near(entry) == [(1.0, entry)]


@given(st.lists(st.lists(st.integers(0, 5), max_size=4), max_size=12))
def test_weights_are_weights_whatever_is_asked(asked: list[list[int]]) -> None:
    questions = Questions()
    for words in asked:
        near = questions.near(questions.ask(words))
        assert all(0.0 < weight <= 1.0 for weight, _ in near)
        assert near[-1][0] == 1.0 and near[-1][1].words == frozenset(words)


# --- When to begin --------------------------------------------------------------------------------


def asked_with(lengths: Sequence[int]) -> Asked:
    asked = Asked(frozenset())
    asked.lengths.extend(lengths)
    return asked


lengths_by_weight = st.lists(
    st.tuples(st.floats(0.01, 1.0), st.lists(st.integers(1, 30), max_size=4)), max_size=4
)


@settings(max_examples=300)
@given(
    known=lengths_by_weight,
    most=st.integers(1, 25),
    prepare=st.floats(0.0, 200.0),
    gain=st.floats(0.01, 20.0),
)
def test_no_other_start_is_expected_to_lose_less(
    known: list[tuple[float, list[int]]], most: int, prepare: float, gain: float
) -> None:
    check_start(known, most, prepare, gain)


def check_start(
    known: list[tuple[float, list[int]]], most: int, prepare: float, gain: float
) -> None:
    pairs = [(weight, min(n, most)) for weight, lengths in known for n in lengths]

    def loss(start: int) -> float:
        return sum(w * (prepare - gain * (n - start)) for w, n in pairs if n > start)

    near = [(weight, asked_with(lengths)) for weight, lengths in known]
    start = start_after(near, most, prepare, gain)
    assert 1 <= start <= most or not pairs
    if pairs:
        assert loss(start) == pytest.approx(min(map(loss, range(1, most + 1))), abs=1e-6)


def test_short_answers_are_plain_and_long_ones_are_drafted_at_once() -> None:
    short, long = asked_with([4, 5, 6]), asked_with([80, 90, 120])
    assert start_after([(1.0, long)], 256, prepare_ms=50.0, gain_ms=4.0) == 1
    assert start_after([(1.0, short)], 256, prepare_ms=50.0, gain_ms=4.0) == 6
    assert start_after([(1.0, long), (0.02, short)], 256, 50.0, 4.0) == 1, "strangers weigh little"


def test_an_answer_that_outlives_all_seen_is_drafted_from_there() -> None:
    near = [(1.0, asked_with([4, 5, 6, 7]))]
    assert start_after(near, 256, prepare_ms=50.0, gain_ms=4.0) == 7
    both = [(1.0, asked_with([4, 5, 6, 7, 200]))]
    assert start_after(both, 256, prepare_ms=500.0, gain_ms=4.0) == 7, "or all but the long ones"


def test_a_start_where_nothing_is_known_or_nothing_gained() -> None:
    assert start_after([], 256, 50.0, 4.0) == 1
    assert start_after([(1.0, asked_with([]))], 256, 50.0, 4.0) == 1
    assert start_after([(1.0, asked_with([90]))], 256, 50.0, 0.0) == 256
    assert start_after([(1.0, asked_with([90]))], 256, 50.0, -1.0) == 256
    assert start_after([(1.0, asked_with([90]))], 256, 0.0, 1.0) == 1


# --- The choice, over simulated answers -----------------------------------------------------------


@dataclass
class Street:
    """Answers one after the other on a device where a plain round takes ``PLAIN_MS``; drafting is
    ``speed`` times as fast (by the number of the round), and taking in its prompt costs extra."""

    speed: Callable[[int], float]
    prepare: float = 0.0
    questions: int = 1
    """Different ones in turn; 0: all are new."""
    lengths: Sequence[int] = (20, 40)
    spent: float = 0.0
    tokens: int = 0
    drafted: list[bool] = field(default_factory=list)
    starts: list[int | None] = field(default_factory=list)
    """Tokens emitted when an answer was first drafted for."""
    losses: list[float] = field(default_factory=list)
    """Milliseconds beyond plain decoding's, up to every round."""

    def __post_init__(self) -> None:
        self.experience = Experience()
        self._rng = np.random.default_rng(1)
        self._costs = dataclasses.replace(
            costs(),
            verify=Curve.constant(PLAIN_MS),
            draft_prefill=Curve.constant(max(self.prepare, 1e-6)),
            draft_vision=None,
            host_round_ms=1e-9,
            host_token_ms=0.0,
        )

    def run(self, rounds: int) -> Street:
        """So many rounds more, and to the end of the answer."""
        end = len(self.drafted) + rounds
        while len(self.drafted) < end:
            self._answer(int(self._rng.integers(self.lengths[0], self.lengths[-1] + 1)))
        return self

    def _answer(self, length: int) -> None:
        number = len(self.starts)
        own = 10 + (number % self.questions if self.questions else 3 * number)
        setting = Setting(
            draft="m",
            question=(1, 2, own),
            draft_prompt_tokens=64 if self.prepare else 0,
            max_new_tokens=512,
            experience=self.experience,
        )
        view = RoundCosts(self._costs, self.experience.drift, nodes=8, width=4, sampled=False)
        whether, emitted, prepared = Whether(setting, self.experience, view), 1, not self.prepare
        lesson = self.experience.lesson(self.experience.key(setting))
        self.starts.append(None)
        while emitted < length:
            root = Root(512 - emitted, 100 + emitted, 1, prepared, emitted)
            drafts = emitted >= whether.wake and whether.drafts(root, PLAIN_MS)
            tokens, ms = 1, PLAIN_MS
            if drafts:
                if self.starts[-1] is None:
                    self.starts[-1] = emitted
                self.spent += 0.0 if prepared else self.prepare
                prepared = True
                tokens = int(self._rng.poisson(2.0)) + 1
                ms = 3.0 * PLAIN_MS / self.speed(len(self.drafted))
            whether.learn(drafts, 3.0 if drafts else 1.0, ms)
            lesson.allowance_ms += EXPLORE * ms
            emitted, self.tokens, self.spent = (
                emitted + tokens,
                self.tokens + tokens,
                self.spent + ms,
            )
            self.drafted.append(drafts)
            self.losses.append(self.spent - PLAIN_MS * self.tokens)
        whether.finish(emitted)

    @property
    def loss(self) -> float:
        """Share of plain decoding's time that was lost; negative: gained."""
        return self.losses[-1] / (PLAIN_MS * self.tokens)


@pytest.mark.parametrize("questions", [1, 6, 0])
@pytest.mark.parametrize("prepare", [0.0, 20.0])
@pytest.mark.parametrize("speed", [0.3, 0.6, 0.9, 0.97])
def test_a_draft_that_never_pays_costs_next_to_nothing(
    speed: float, prepare: float, questions: int
) -> None:
    check_never_a_loss(speed, prepare, questions)


def check_never_a_loss(speed: float, prepare: float, questions: int) -> None:
    """Whether it is hopeless or nearly as good, whether questions come back or not."""
    for lengths in ((5, 12), (40, 80)):
        street = Street(lambda number: speed, prepare, questions, lengths).run(2000)
        assert street.loss < 0.02, lengths
        assert any(street.drafted[500:]), "it is tried again now and then"


def test_a_prompt_that_answers_are_too_short_for_is_not_taken_in_for_nothing() -> None:
    """Drafting itself is faster; its prompt is what an answer does not win back."""
    check_short_answers()


def check_short_answers() -> None:
    for questions in (1, 6, 0):
        street = Street(lambda number: 1.05, 20.0, questions, (6, 9)).run(4000)
        assert street.loss < 0.02
        assert sum(start is not None for start in street.starts) < 0.1 * len(street.starts)


@pytest.mark.parametrize("questions", [1, 6, 0])
@pytest.mark.parametrize("prepare", [0.0, 20.0])
def test_a_draft_that_pays_is_used(prepare: float, questions: int) -> None:
    street = Street(lambda number: 1.5, prepare, questions, (40, 80)).run(1000)
    assert np.mean(street.drafted[100:]) > 0.95
    assert street.loss < -0.2


@pytest.mark.parametrize("prepare", [0.0, 20.0])
def test_a_draft_that_becomes_good_is_found_again(prepare: float) -> None:
    """The calibrator has learnt, or the device has cooled down."""
    street = Street(lambda number: 0.7 if number < 1000 else 2.0, prepare, 6, (40, 80)).run(1000)
    assert np.mean(street.drafted[500:]) < 0.1
    street.run(6000)
    assert np.mean(street.drafted[-500:]) > 0.9


def test_a_draft_that_becomes_bad_is_dropped() -> None:
    street = Street(lambda number: 1.6 if number < 500 else 0.5, 0.0, 6, (40, 80)).run(500)
    before = street.losses[-1]
    street.run(2000)
    assert not any(street.drafted[-100:]) or np.mean(street.drafted[-500:]) < 0.05
    assert street.losses[-1] - before < 0.05 * 2000 * PLAIN_MS


def test_long_answers_to_some_questions_are_drafted_and_short_ones_to_others_are_not() -> None:
    """Two questions: one that is answered in a word, one that is answered at length."""
    street = Street(lambda number: 1.5, 30.0, questions=2)
    for _ in range(12):
        for length in (5, 90):
            street._answer(length)
    short, long = street.starts[12::2], street.starts[13::2]
    assert short.count(None) >= len(short) - 1
    assert long.count(1) == len(long)


def test_a_no_holds_for_a_while_and_is_asked_again_in_time() -> None:
    """Asking costs time: a plain answer is asked for less and less often."""
    experience = Experience()
    setting = Setting(draft="m", question=(1,), experience=experience)
    lesson = experience.lesson(experience.key(setting))
    for record in (lesson.record, experience.questions.ask((1,)).records.setdefault(
        experience.key(setting), Record())):  # fmt: skip
        for _ in range(20):
            record.drafted.add(1.0, 30.0)
    view = RoundCosts(costs(), experience.drift, nodes=8, width=4, sampled=False)
    whether, asked, emitted = Whether(setting, experience, view), [], 1
    while emitted < 400:
        if emitted >= whether.wake:
            asked.append(emitted)
            assert not whether.drafts(Root(500, 100, 1, True, emitted), PLAIN_MS)
            assert whether.wake > emitted
        emitted += 1
    gaps = [b - a for a, b in itertools.pairwise(asked)]
    assert gaps == sorted(gaps) and gaps[0] < gaps[-1] < 100
    assert 5 < len(asked) < 30


def test_nothing_known_means_trying() -> None:
    experience = Experience()
    view = RoundCosts(costs(), experience.drift, nodes=8, width=4, sampled=False)
    for temperature, coupled in ((0.0, False), (1.0, False), (1.0, True)):
        setting = Setting(
            draft="m", temperature=temperature, coupled=coupled, experience=experience
        )
        whether = Whether(setting, experience, view)
        assert whether.drafts(Root(99, 50, 1, True, 1), PLAIN_MS)
        assert whether.rate == 0.0
        for _ in range(30):  # a slow lesson, which is that of this kind of request alone
            whether.learn(True, 1.0, 100.0)
        assert not whether.drafts(Root(99, 50, 1, True, 1), PLAIN_MS)
        assert math.isclose(whether.rate, 0.01)
