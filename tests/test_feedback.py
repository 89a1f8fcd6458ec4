"""What a sizer is asked and told, round for round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from edgespec.acceptance import StopRules
from edgespec.sampling import SamplingParams
from edgespec.sizing import Eagle2, Growth, Plain, Root, Setting
from edgespec.tree import TokenTree
from edgespec_runtime.decoder import Round, decode
from edgespec_runtime.prefill import causal_mask
from tests.support.fakes import (
    ScriptedDraft,
    ScriptedVerifier,
    chain,
    toy_draft,
    toy_table,
    toy_verifier,
)
from tests.support.sizers import Pausing, PausingSizer
from tests.test_lossless import count_up


def story(
    verifier: Any, draft: Any, policy: Pausing, limit: int, eos: Sequence[int] = (), **more: Any
) -> tuple[list[Round], PausingSizer]:
    sizer = PausingSizer(policy, Setting())
    return list(decode(verifier, draft, sizer, StopRules(eos, limit), **more)), sizer


def half_right(path: Sequence[int], left: int) -> list[tuple[int, int, float]]:
    """Two right tokens and a wrong one, in turn with nothing right at all."""
    good = len(path) % 2
    return chain([100 + len(path) + i + (0 if good and i < 2 else 7) for i in range(3)][:left])


def test_roots_say_where_the_round_stands() -> None:
    draft = ScriptedDraft(half_right)
    rounds, sizer = story(ScriptedVerifier(count_up), draft, Pausing(Eagle2(), 2, 1, 0.3), 20)
    emitted, unseen, prepared = 1, 1, False
    assert len(sizer.told) == len(rounds) - 1
    for outcome, feedback in zip(rounds[1:], sizer.told, strict=True):
        assert outcome.feedback is feedback
        # A scripted target has no prompt: its cache holds all tokens but the last.
        assert feedback.root == Root(20 - emitted - 1, emitted - 1, unseen, prepared, emitted)
        if feedback.growth is Growth.NONE:
            assert feedback.calls == () and len(feedback.candidates) == 0
        else:
            assert feedback.calls == (unseen,) and len(feedback.candidates) > 0
            prepared, unseen = True, 0
        emitted += len(feedback.tokens)
        unseen += len(feedback.tokens)
    assert emitted == 20 and sizer.finished == [(20, False)]
    assert len({feedback.growth for feedback in sizer.told}) > 1


def test_what_was_accepted_is_told() -> None:
    draft = ScriptedDraft(half_right)
    rounds, sizer = story(ScriptedVerifier(count_up), draft, Pausing(Eagle2(), share=0.0), 20)
    for outcome, feedback in zip(rounds[1:], sizer.told, strict=True):
        assert outcome.tokens == feedback.tokens[: feedback.emitted]
        assert outcome.tree_nodes == len(feedback.chosen)
        accepted = [feedback.candidates.tokens[feedback.chosen[row - 1]] for row in feedback.rows]
        assert accepted == list(feedback.tokens[:-1])
        assert feedback.named is None, "a scripted target names visited rows alone"
    assert {len(feedback.rows) for feedback in sizer.told} == {0, 2}


@pytest.mark.parametrize("at", range(1, 6))
def test_tokens_behind_the_end_are_told_but_not_counted(at: int) -> None:
    draft = ScriptedDraft(lambda path, left: chain([100 + len(path) + i for i in range(4)]))
    policy = Pausing(Eagle2(), share=0.0)
    rounds, sizer = story(ScriptedVerifier(count_up), draft, policy, 50, [100 + at])
    last = sizer.told[-1]
    assert len(last.tokens) == 5 and last.emitted == (at - 1) % 5 + 1
    assert last.emitted == len(rounds[-1].tokens)
    assert sizer.finished == [(at + 1, True)]


def test_the_end_is_told_once_whatever_it_is() -> None:
    for limit, eos, expected in (
        (1, [], (1, False)), (7, [], (7, False)), (7, [100], (1, True)), (7, [103], (4, True)),
    ):  # fmt: skip
        sizer = story(ScriptedVerifier(count_up), ScriptedDraft(half_right), Pausing(Plain()),
                      limit, eos)[1]  # fmt: skip
        assert sizer.finished == [expected]


def test_nothing_is_asked_where_nothing_can_be_accepted() -> None:
    """The last token of an answer is a bonus; a sizer hears of its round all the same."""
    draft = ScriptedDraft(half_right)
    _, sizer = story(ScriptedVerifier(count_up), draft, Pausing(Eagle2(), idle=99), 5)
    assert len(sizer.told) == 4 and len(sizer.paused) == 3
    assert sizer.told[-1].root.depth_left == 0


@pytest.mark.parametrize(
    ("params", "known"),
    [
        (SamplingParams(), True),
        (SamplingParams(repetition_penalty=1.2), False),
        (SamplingParams(temperature=1.0), False),
    ],
)
def test_greedy_decoding_names_the_targets_token_at_every_row(
    params: SamplingParams, known: bool
) -> None:
    """Also at rows that the walk did not visit: what sizing learns most from."""
    prompt, vocab = [1, 2, 3], 6
    verifier, draft = toy_verifier(prompt, vocab, params), toy_draft(prompt, vocab, disagree=0.3)
    said, rows = list(prompt), 0
    for outcome in decode(verifier, draft, Eagle2(12, 4, 3).start(Setting()), StopRules((), 20)):
        feedback = outcome.feedback
        if feedback is not None:
            assert (feedback.named is not None) == known
            tree = TokenTree.select(feedback.candidates, feedback.chosen)
            named = [best_after([*said, *tree.path(row)], vocab) for row in range(len(tree) + 1)]
            assert not known or list(feedback.named or ()) == named
            rows += len(tree)
        said += outcome.tokens
    assert rows > 30


def best_after(tokens: Sequence[int], vocab: int) -> int:
    """The toy target's arg-max, by one plain forward."""
    session = toy_verifier(tokens, vocab, SamplingParams())._session
    count = len(tokens)
    rows = toy_table(vocab)[list(tokens)]
    return int(session.step(rows, range(count), causal_mask(0, count), True)[0][0].argmax())


# --- Times ----------------------------------------------------------------------------------------


@dataclass
class Clock:
    """Seconds that pass where a part of the loop says so."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Slow:
    """A part of the loop whose calls take the seconds given for their names."""

    part: Any
    clock: Clock
    takes: dict[str, float] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.part, name)
        if name not in self.takes:
            return found

        def slow(*given: Any) -> Any:
            self.clock.now += self.takes[name]
            return found(*given)

        return slow


def test_times_are_told_apart() -> None:
    clock = Clock()
    verifier: Any = Slow(ScriptedVerifier(count_up), clock, {"begin": 7.0, "verify": 3.0})
    draft: Any = Slow(
        ScriptedDraft(half_right), clock, {"prepare": 100.0, "grow": 0.5, "commit": 0.25}
    )
    sizer: Any = Slow(
        PausingSizer(Pausing(Eagle2(), idle=1, share=0.0), Setting()), clock, {"begin": 0.125}
    )
    rounds = list(decode(verifier, draft, sizer, StopRules((), 9), clock))
    first, idle, prepared, *others = rounds
    assert (first.prepare_ms, first.draft_ms, first.verify_ms) == (0, 0, 7000)
    assert (idle.prepare_ms, idle.verify_ms) == (0, 3000)
    # Asking whether to draft counts as drafting, and so does hearing what came of it.
    assert idle.draft_ms == 125 + 250
    assert prepared.verify_ms == 3000 and others
    assert all((r.prepare_ms, r.verify_ms) == (0, 3000) for r in others)
    assert all(r.draft_ms == 125 + 500 + 250 for r in others[:-1])
    assert prepared.prepare_ms + prepared.draft_ms == 100_000 + 125 + 500 + 250
    assert prepared.prepare_ms >= 100_000
    for outcome in (idle, *others):
        assert outcome.feedback is not None
        assert outcome.feedback.round_ms == outcome.draft_ms + outcome.verify_ms
