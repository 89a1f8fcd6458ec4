"""The suite has power: defects of the loop's own making (see ``test_mutants``). Drafts that pause,
chains in segments, noise that a draft shares with its target, and what sizers are told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from edgespec.sampling import SamplingParams
from edgespec.sizing import Eagle2, Policy, RollingBestN
from edgespec_runtime import decoder
from edgespec_runtime.drafts.ahead import AheadDraft
from edgespec_runtime.drafts.cascade import CascadeDraft
from edgespec_runtime.drafts.feature import FeatureDraft
from edgespec_runtime.drafts.growing import GrowingDraft
from edgespec_runtime.drafts.ngram import NgramDraft
from edgespec_runtime.drafts.vlm import VlmDraft
from edgespec_runtime.verifiers import LocalVerifier
from tests import (
    test_ahead,
    test_cascade,
    test_feature_draft,
    test_feedback,
    test_lossless,
    test_pauses,
    test_segments,
)
from tests.test_mutants import Check, Mutant, calls, check_seen

if TYPE_CHECKING:
    from tests.support.zoo import Zoo


def paused(draft: str) -> Check:
    """Whether a toy draft that paused proposes what one that never did would."""

    def check(zoo: Zoo) -> None:
        test_pauses.check_proposals(draft, test_pauses.INNER[0])

    return check


def paused_head(pauses: str) -> Check:
    """The same of a feature-level draft, against its module."""

    def check(zoo: Zoo) -> None:
        test_feature_draft.test_guesses_after_a_pause_are_the_modules(zoo, "eagle", 0, pauses)

    return check


def coupled(policy: Policy, chain_steps: int = 0) -> Check:
    """Whether a toy draft with the target's weights and noise guesses what the target draws."""

    def check(zoo: Zoo) -> None:
        test_lossless.test_a_coupled_draft_that_is_the_target_ranks_its_draw_first(
            policy, chain_steps
        )

    return check


def ahead(name: str) -> Check:
    """Whether a toy draft that goes ahead proposes what one that waits would."""

    def check(zoo: Zoo) -> None:
        test_ahead.check_fixed(name)

    return check


def long_chains(zoo: Zoo) -> None:
    test_segments.test_chains_of_several_calls_that_are_accepted()


MUTANTS = [
    Mutant(
        "the draft is prepared before every growth",
        decoder, "_round", "if not draft.prepared:", "if True:",
        calls(test_pauses.test_a_draft_is_prepared_once_and_when_it_is_first_asked, 1),
    ),
    Mutant(
        "the draft is never prepared",
        decoder, "_round", "if not draft.prepared:", "if False:",
        calls(test_pauses.test_a_draft_is_prepared_once_and_when_it_is_first_asked, 1),
    ),
    Mutant(
        "the draft is prepared whether or not it is asked",
        decoder, "decode", "draft.begin(first)", "(draft.begin(first), draft.prepare())",
        calls(test_pauses.test_plain_decoding_never_prepares_the_draft),
    ),
    Mutant(
        "a sizer is asked where nothing can be accepted",
        decoder, "_round", "if root.depth_left > 0 else Growth.NONE", "",
        calls(test_pauses.test_an_answer_that_ends_at_once_never_prepares_the_draft, 2, []),
    ),
    Mutant(
        "what was emitted is not counted",
        decoder, "decode", "emitted += len(outcome.tokens)", "pass",
        calls(test_feedback.test_roots_say_where_the_round_stands),
    ),
    Mutant(
        "tokens behind the end are counted",
        decoder, "_round", "emitted=len(emitted)", "emitted=len(verdict.tokens)",
        calls(test_feedback.test_tokens_behind_the_end_are_told_but_not_counted, 2),
    ),
    Mutant(
        "an answer cut off passes for one that ended",
        decoder, "decode", 'reason != "length"', "True",
        calls(test_feedback.test_the_end_is_told_once_whatever_it_is),
    ),
    Mutant(
        "the time for the draft's prompt counts as drafting",
        decoder, "_round", "grown - prepared", "grown - started",
        calls(test_feedback.test_times_are_told_apart),
    ),
    Mutant(
        "the target's tokens are told one row off",
        LocalVerifier, "settle", "tuple(best)", "(*best[1:], best[0])",
        calls(
            test_feedback.test_greedy_decoding_names_the_targets_token_at_every_row,
            SamplingParams(), True,
        ),
    ),
    Mutant(
        "a draft forgets what was said while it paused",
        VlmDraft, "commit", 
        "self._unseen += verdict.tokens[len(kept) :]",
        "self._unseen = list(verdict.tokens[len(kept) :])",
        paused("model"),
    ),
    Mutant(
        "a look-up forgets what was said before it was first asked",
        NgramDraft, "commit", "self._waiting += verdict.tokens", "pass", paused("n-grams"),
    ),
    Mutant(
        "n-grams take in no prompt",
        CascadeDraft, "prepare", "self._ngram.prepare()", "pass",
        calls(test_cascade.test_n_gram_nodes_are_accepted_beside_a_model_that_is_always_wrong),
    ),
    Mutant(
        "a-head-forgets-what-was-said-while-it-paused",
        FeatureDraft, "commit",
        "self._tokens_unseen += verdict.tokens\n    self._features_unseen.append(verdict.features)",
        "self._tokens_unseen, self._features_unseen = [*verdict.tokens], [verdict.features]",
        paused_head("since the first rounds"),
    ),
    Mutant(
        "a-head-mixes-up-the-features-of-a-pause",
        FeatureDraft, "_take_unseen",
        "np.concatenate(features)", "np.concatenate(features[::-1])",
        paused_head("since the first rounds"),
    ),
    Mutant(
        "a-head-does-not-count-rows-before-it-is-prepared",
        FeatureDraft, "commit",
        "self._position += len(verdict.tokens)",
        "self._position += len(verdict.tokens) * self.prepared",
        paused_head("until the end"),
    ),
    Mutant(
        "the tip of a chain is fed one position late",
        GrowingDraft, "_grow_chain", "self._root_position)", "self._root_position + 1)",
        long_chains,
    ),
    Mutant(
        "a chain's pending rows are settled with every segment",
        GrowingDraft, "_grow_chain", "if level == 0:", "if True:", long_chains,
    ),
    Mutant(
        "a segment forgets the rows of those before it",
        GrowingDraft, "_grow_chain", "list(range(level))", "list(range(level % chain.steps))",
        long_chains,
    ),
    Mutant(
        "a chain goes on unasked",
        GrowingDraft, "_grow_chain", " or not sizer.beam(candidates, level, root)", "",
        long_chains,
    ),
    Mutant(
        "a segment is fed the parent of the tip",
        GrowingDraft, "_grow_chain", "candidates, [tip]", "candidates, [parent]",
        long_chains,
    ),
    Mutant(
        "a-third-segment-feeds-on-the-first-one's-output",
        GrowingDraft, "_grow_chain", "self._learn([parent], outputs)",
        "self._learn([parent], [*outputs[:2], self.__dict__.setdefault('o', outputs[2].copy())])",
        lambda zoo: test_segments.test_segments_of_a_feature_draft(
            zoo, "eagle", test_segments.CHAINS[0]
        ),
    ),
    Mutant(
        "a right guess starts the next round one level too deep",
        AheadDraft, "foresee", "start = inner.cached", "start = inner.cached + 1",
        ahead("tree"),
    ),
    Mutant(
        "a wrong guess stays in the text",
        AheadDraft, "commit", "if not hit or not len(self._ahead):", "if False:",
        ahead("tree"),
    ),
    Mutant(
        "what was grown on a wrong guess is proposed",
        AheadDraft, "commit",
        "self._ahead = Candidates()\n        # The last", "# The last",
        ahead("tree"),
    ),
    Mutant(
        "of a wrong guess one token too many is kept",
        AheadDraft, "commit",
        "guess.start + right, said[right:]", "guess.start + right + 1, said[right + 1 :]",
        ahead("tree"),
    ),
    Mutant(
        "going back leaves the rows of the guess",
        VlmDraft, "rewind", "cache.length, cache.pending = cached, 0", "cache.pending = 0",
        ahead("chain"),
    ),
    Mutant(
        "a chain that goes on forgets how deep it is",
        GrowingDraft, "_grow_chain", "0 if unseen else candidates.depths[-1]", "0",
        ahead("chain"),
    ),
    Mutant(
        "the guessed token is ranked with the noise of the leaf",
        AheadDraft, "foresee", "root.context + len(path))", "root.context + len(path) - 1)",
        lambda zoo: test_ahead.check_hits_of_a_coupled_target(),
    ),
    Mutant(
        "levels below the guess take the noise of those above",
        AheadDraft, "foresee", "root.context + gained", "root.context",
        ahead("tree"),
    ),
    Mutant(
        "calls ahead of the round are told as the round's",
        AheadDraft, "foresee",
        "self._ahead = inner.grow(onwards, self._growth, after)",
        "self._ahead = inner.grow(onwards, self._growth, after); self._calls = inner.calls",
        calls(test_ahead.test_a_draft_that_is_always_right_drafts_while_it_waits_only),
    ),
    Mutant(
        "a coupled draft ranks with the noise of the position before",
        GrowingDraft, "_noise", "root.context + depth + 1", "root.context + depth",
        coupled(Eagle2(9, 4, 3)),
    ),
    Mutant(
        "every segment of a coupled chain takes the first one's noise",
        GrowingDraft, "_grow_chain", "range(level, level + chain.steps)", "range(chain.steps)",
        coupled(Eagle2(9, 7, 1), 2),
    ),
    Mutant(
        "nodes of different depths share one position's noise",
        GrowingDraft, "_grow_steps", "depths if len(set(depths)) > 1 else depths[:1]", "depths[:1]",
        coupled(RollingBestN(9, 5, 3, 4)),
    ),
]  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_the_suite_sees(mutant: Mutant, zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    check_seen(mutant, zoo, monkeypatch)
