"""Whether to draft at all: what similar questions taught, and never much of a loss."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgespec.sizing.contract import Root, Setting
from edgespec.sizing.costs import RoundCosts
from edgespec.sizing.experience import Experience
from edgespec.sizing.lengths import start_after
from edgespec.sizing.questions import ANSWERS, REMEMBERED, Asked, Questions
from edgespec.sizing.rates import LEVELS, Rate, Spread, Survival
from edgespec.sizing.whether import Whether
from tests.support.profiles import costs
from tests.support.street import PLAIN_MS, Street

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


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=5))
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
    together = Survival(0.02)
    together.add(reached, 300)
    assert together.levels == pytest.approx(reached, abs=0.01)


def test_where_drafting_stopped_it_would_have_gone_on_as_before() -> None:
    """Short trees do not teach that nothing survives behind them."""
    survival = Survival(0.1)
    for _ in range(200):
        survival.add([0.9**level for level in range(1, LEVELS + 1)])
    for _ in range(200):
        survival.add([0.5, 0.25])
    assert survival.levels[:2] == pytest.approx([0.5, 0.25], abs=0.01)
    kept = [b / a for a, b in itertools.pairwise(survival.levels[1:])]
    assert kept == pytest.approx([0.9] * len(kept), abs=0.02)


@given(
    st.lists(st.floats(0.01, 1.0), min_size=LEVELS, max_size=LEVELS),
    st.integers(1, LEVELS + 8),
    st.integers(1, 8),
)
def test_beyond_a_level_survives_what_got_there(kept: list[float], level: int, count: int) -> None:
    levels = np.cumprod(kept).tolist()
    beyond = Survival(0.1, levels).beyond(level, count)
    assert len(beyond) == count
    assert all(1.0 >= a >= b >= 0.0 for a, b in itertools.pairwise([1.0, *beyond]))
    for ahead, value in enumerate(beyond, start=1):
        if level + ahead <= LEVELS and levels[level - 1] > 1e-9:
            assert value == pytest.approx(levels[level + ahead - 1] / levels[level - 1])


def test_survival_is_blended_by_rounds() -> None:
    deep, flat = Survival(0.02, [0.9] * LEVELS, 30.0), Survival(0.02, [0.1] * LEVELS, 10.0)
    blend = Survival.blended([(1.0, deep), (1.0, flat)])
    assert blend.levels == pytest.approx([0.7] * LEVELS)
    assert Survival.blended([]).levels == Survival(0.1).levels
    assert Survival.blended([(1.0, Survival(0.02))]).rounds == 0.0


# --- Questions ------------------------------------------------------------------------------------


def weights_for(questions: Questions, words: Sequence[int]) -> dict[frozenset[int], float]:
    return {asked.words: weight for weight, asked in questions.near(questions.ask(words))}


def kinds_of_questions() -> Questions:
    """1 and 2 are the chat template's; 3 asks for a list, 4 for a colour, 5 for both; from 100 on
    are names."""
    questions = Questions()
    for kind, count in ((3, 12), (4, 12), (5, 5)):
        for number in range(count):
            questions.ask([1, 2, *((3, 4) if kind == 5 else (kind,)), 100 * kind + number])
    return questions


def test_the_same_question_weighs_one_in_whatever_order() -> None:
    questions = kinds_of_questions()
    own = questions.ask([1, 2, 3, 300])
    assert questions.ask([300, 3, 3, 2, 1]) is own
    assert (1.0, own) in questions.near(own)
    assert len(questions.near(own)) == 29


def test_similar_questions_weigh_more() -> None:
    """By what is asked, not by what it is asked about."""
    weights = weights_for(kinds_of_questions(), [1, 2, 3, 999])
    alike, half, other = (weights[frozenset(words)] for words in (
        [1, 2, 3, 300], [1, 2, 3, 4, 500], [1, 2, 4, 400]))  # fmt: skip
    assert 1.0 >= alike > half > other > 0.0, weights
    assert other < 0.05 * alike
    assert weights[frozenset([1, 2, 3, 311])] == alike


def test_a_rare_word_in_common_weighs_more_than_a_common_one() -> None:
    questions = kinds_of_questions()
    for number in range(4):
        questions.ask([1, 2, 3, 6, 600 + number])  # 6 is asked seldom, 3 often
    weights = weights_for(questions, [1, 2, 3, 6, 999])
    assert weights[frozenset([1, 2, 3, 6, 600])] > 2 * weights[frozenset([1, 2, 3, 300])]


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
        [own] = [weight for weight, entry in near if entry.words == frozenset(words)]
        assert own == 1.0


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


# --- The choice, in answers decoded against a clock -----------------------------------------------


@pytest.mark.parametrize(
    ("speed", "prepare", "questions"),
    [(0.3, 0.0, 1), (0.3, 20.0, 0), (0.6, 0.0, 6), (0.6, 20.0, 1), (0.9, 0.0, 0), (0.9, 20.0, 6)],
)
def test_a_draft_that_never_pays_costs_next_to_nothing(
    speed: float, prepare: float, questions: int
) -> None:
    check_never_a_loss(speed, prepare, questions)


def check_never_a_loss(speed: float, prepare: float = 0.0, questions: int = 1) -> None:
    """Hopeless or nearly good, whether questions come back or not, however short the answers."""
    for lengths in ((5, 12), (40, 80)):
        street = Street(speed, prepare=prepare, questions=questions, lengths=lengths).run(2000)
        assert street.loss < 0.02, lengths
        assert street.drafting(500) > 0.0, "it is tried again now and then"


def test_a_prompt_that_answers_are_too_short_for_is_not_taken_in_for_nothing() -> None:
    """Drafting itself is faster; its prompt is what an answer does not win back."""
    check_short_answers()


def check_short_answers() -> None:
    for questions in (1, 0):
        street = Street(1.4, prepare=30.0, questions=questions, lengths=(6, 9)).run(2000)
        assert street.loss < 0.03
        assert np.mean([start is not None for start in street.starts]) < 0.1


def test_a_draft_that_pays_is_used() -> None:
    for prepare, questions in ((0.0, 1), (20.0, 0)):
        street = Street(1.6, prepare=prepare, questions=questions).run(600)
        assert street.drafting(100) > 0.95
        assert street.loss < -0.2


def test_a_draft_that_becomes_good_is_found_again() -> None:
    """It was adapted to its task, say; nobody says so but the trials."""
    street = Street(1.0, lambda number: 0.1 if number < 1000 else 0.9, questions=6).run(1000)
    assert street.drafting(500) < 0.1
    street.run(4000)
    assert street.drafting(-500) > 0.9


def test_a_draft_that_becomes_bad_is_dropped() -> None:
    street = Street(1.3, lambda number: 0.8 if number < 500 else 0.0, questions=6).run(500)
    assert street.drafting(100) > 0.95
    spent, tokens = street.spent, street.tokens
    street.run(1000)
    assert street.drafting(-500) < 0.05
    assert (street.spent - spent) / (PLAIN_MS * (street.tokens - tokens)) - 1.0 < 0.08


def test_questions_that_are_answered_at_length_are_drafted_and_those_in_a_word_are_not() -> None:
    street = Street(1.6, prepare=60.0, questions=2)
    for _ in range(12):
        for length in (5, 90):
            street.answer(length)
    in_a_word, at_length = street.starts[12::2], street.starts[13::2]
    assert in_a_word == [None] * 6
    assert at_length == [1] * 6


def test_an_answer_that_goes_on_and_on_is_drafted_in_the_end() -> None:
    """The same question, which used to be answered in a word."""
    street = Street(1.6, prepare=60.0)
    for _ in range(10):
        street.answer(6)
    street.answer(120)
    start = street.starts[-1]
    assert start is not None and 5 < start < 60


# --- The choice alone -----------------------------------------------------------------------------


def whether_of(setting: Setting) -> Whether:
    assert setting.experience is not None
    drift = setting.experience.drift
    view = RoundCosts(costs(), drift, nodes=8, width=4, sampled=setting.temperature > 0)
    return Whether(setting, setting.experience, view)


def taught(setting: Setting, tokens: float, ms: float) -> None:
    """An answer of 30 rounds that drafted."""
    whether = whether_of(setting)
    for _ in range(30):
        whether.learn(True, tokens, ms)
    whether.finish(60)


def root_at(emitted: int, prepared: bool = True) -> Root:
    return Root(500, 100 + emitted, 1, prepared, emitted)


def test_a_no_holds_for_a_while_and_is_asked_again_in_time() -> None:
    """Asking costs time: a plain answer is asked for less and less often."""
    setting = Setting(draft="m", question=(1,), experience=Experience())
    taught(setting, 1.0, 30.0)
    whether, asked = whether_of(setting), list[int]()
    for emitted in range(1, 400):
        if emitted >= whether.wake:
            asked.append(emitted)
            assert not whether.drafts(root_at(emitted), PLAIN_MS)
            assert whether.wake > emitted
    gaps = [b - a for a, b in itertools.pairwise(asked)]
    assert gaps == sorted(gaps) and gaps[0] < gaps[-1] < 100
    assert 5 < len(asked) < 30


def test_what_is_learnt_holds_for_requests_of_its_kind_alone() -> None:
    experience = Experience()
    slow = Setting(draft="m", experience=experience)
    taught(slow, 1.0, 100.0)
    assert not whether_of(slow).drafts(root_at(1), PLAIN_MS)
    assert whether_of(slow).rate == pytest.approx(0.01)
    for other in (
        Setting(draft="n", experience=experience),
        Setting(draft="m", temperature=1.0, experience=experience),
        Setting(draft="m", temperature=1.0, coupled=True, experience=experience),
    ):
        assert whether_of(other).rate == 0.0
        assert whether_of(other).drafts(root_at(1), PLAIN_MS), "nothing known: it is tried"
        taught(other, 3.0, 10.0)
        assert whether_of(other).drafts(root_at(1), PLAIN_MS)
    assert not whether_of(slow).drafts(root_at(1), PLAIN_MS)


def test_similar_questions_decide() -> None:
    """A draft that is good at one kind of question and bad at another."""
    experience = Experience()

    def asking(*words: int) -> Setting:
        return Setting(draft="m", question=words, experience=experience)

    for number in range(6):
        taught(asking(1, 2, 10, 11, 20 + number), 3.0, 10.0)
        taught(asking(1, 2, 12, 13, 30 + number), 1.0, 40.0)
    assert whether_of(asking(1, 2, 10, 11, 50)).drafts(root_at(1), PLAIN_MS)
    assert not whether_of(asking(1, 2, 12, 13, 50)).drafts(root_at(1), PLAIN_MS)


def test_trials_are_paid_from_the_allowance_and_are_good_for_one_round() -> None:
    setting = Setting(draft="m", experience=Experience())
    taught(setting, 1.0, 30.0)
    assert setting.experience is not None
    lesson = setting.experience.lesson(setting.experience.key(setting))
    lesson.allowance_ms = 45.0
    whether = whether_of(setting)
    yes = [whether.drafts(root_at(n), PLAIN_MS) for n in range(5)]
    # Each is expected to lose 20 ms against a plain round.
    assert yes == [True, True, False, False, False]
    assert lesson.allowance_ms == pytest.approx(5.0)
    assert whether_of(setting).trying is False
    taught(setting, 100.0, 10.0)
    sure = whether_of(setting)
    assert sure.drafts(root_at(1), PLAIN_MS) and not sure.trying
    assert lesson.allowance_ms == pytest.approx(5.0), "what pays is free"
