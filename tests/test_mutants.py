"""The suite has power: each planted defect makes a named check fail, and only then does it.

Defects are those of the field (section 14.2 of the project's facts) as far as they apply here. A
mutant is an edit of one function's source; its check is a test of this suite or the body of one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import edgespec_runtime
from edgespec import acceptance, sampling, visual
from edgespec.acceptance import StopRules
from edgespec.sampling import Sampler, SamplingParams
from edgespec.sizing import Eagle2, RollingBestN
from edgespec.tree import Candidates, TokenTree
from edgespec_export import vocabulary
from edgespec_export.distill import evaluate
from edgespec_export.distill.student import HeadStudent
from edgespec_export.distill.trainer import Trainer
from edgespec_export.exporter import ExportRequest, export_bundle
from edgespec_export.graphs import proposer as proposer_graph
from edgespec_runtime import decoder, inputs, prefill
from edgespec_runtime.drafts import cascade
from edgespec_runtime.drafts.cascade import CascadeDraft
from edgespec_runtime.drafts.continuations import Continuations
from edgespec_runtime.drafts.feature import FeatureDraft, FeaturePrompt
from edgespec_runtime.drafts.growing import GrowingDraft
from edgespec_runtime.drafts.ngram import NgramDraft
from edgespec_runtime.drafts.opening import DraftModel
from edgespec_runtime.drafts.vlm import VlmDraft
from edgespec_runtime.engines.ort import OrtStepGraph
from edgespec_runtime.inputs import VisualInputs
from edgespec_runtime.kv import Cache, KVCache
from edgespec_runtime.verifiers import LocalVerifier
from tests import (
    test_acceptance,
    test_against_transformers,
    test_cascade,
    test_distill,
    test_distill_parts,
    test_feature_draft,
    test_frequencies,
    test_heads,
    test_law,
    test_lossless,
    test_ngram,
    test_policies,
    test_rollout,
    test_sampling,
    test_tree,
)
from tests.support.mutants import plant

if TYPE_CHECKING:
    from tests.support.zoo import Zoo

Check = Callable[["Zoo"], None]


# --- Checks: tests of this suite, or their bodies on a few fixed cases ----------------------------


def toy_greedy(zoo: Zoo) -> None:
    for policy in (Eagle2(8, 4, 3), RollingBestN(8, 4, 3, 4)):
        for first in range(4):
            test_lossless.check_toy([first, 1], policy, SamplingParams(), 16, 0.2)


def toy_sampled(zoo: Zoo) -> None:
    for seed in range(40):
        params = SamplingParams(temperature=1.0, seed=seed)
        test_lossless.check_toy([4, 1], Eagle2(16, 4, 4), params, 16, 0.0)


def toy_penalty(zoo: Zoo) -> None:
    for first in range(6):
        params = SamplingParams(repetition_penalty=1.6)
        test_lossless.check_toy([first, 1], Eagle2(10, 4, 4), params, 16, 0.1)


def cache_oracle(zoo: Zoo) -> None:
    test_lossless.test_kv_cache_is_a_fresh_prefill(
        zoo, "gqa", "shared", 0, test_lossless.POLICIES[0], "ort"
    )


def long_prompt_against_transformers(zoo: Zoo) -> None:
    case = test_against_transformers.Case("clip-336", 1, 1023, new=12)
    test_against_transformers.Comparison(zoo).outcome(case)


def two_pictures_against_transformers(zoo: Zoo) -> None:
    case = test_against_transformers.Case("gqa", 2, new=12)
    test_against_transformers.Comparison(zoo).outcome(case)


def drafted_pictures(zoo: Zoo) -> None:
    test_against_transformers.test_the_draft_sees_the_pooled_pictures(zoo, "gqa", "shared")


def exact_law(zoo: Zoo) -> None:
    with pytest.MonkeyPatch.context() as patch:
        test_law.test_law_of_the_real_verifier_and_draft(
            test_law.PROCESSORS[0], Eagle2(6, 3, 3), patch
        )


def processed_law(zoo: Zoo) -> None:
    test_law.test_sampler_draws_the_processed_law(test_law.PROCESSORS[1])


def nucleus_law(zoo: Zoo) -> None:
    test_law.test_sampler_draws_the_processed_law(test_law.PROCESSORS[2])


def cascade_caches(zoo: Zoo) -> None:
    for policy in (test_lossless.POLICIES[2], test_lossless.POLICIES[4]):
        test_cascade.check_caches(zoo, policy)


def guesses(
    variant: str,
    compressor: str = "",
    images: int = 2,
    policies: tuple[str, ...] = test_feature_draft.POLICIES[:2],
) -> Check:
    """Whether a feature-level draft guesses what its module would."""

    def check(zoo: Zoo) -> None:
        for policy in policies:
            test_feature_draft.test_guesses_are_the_modules(
                zoo, variant, compressor, images, policy
            )

    return check


def calls(test: Callable[..., None], *arguments: Any) -> Check:
    """A check that is one test without fixtures."""

    def check(zoo: Zoo) -> None:
        test(*arguments)

    return check


# --- Mutants --------------------------------------------------------------------------------------


@cache
def school_of(zoo: Zoo) -> Any:
    from tests.support.lessons import write_school

    return write_school(zoo.checkpoint("gqa").parent / "school")  # goes with the zoo's folder


def drafted_in_training(zoo: Zoo) -> None:
    with tempfile.TemporaryDirectory() as folder:
        test_distill.check_earned(school_of(zoo), Path(folder), "eaglevlm")


def rolled_out(zoo: Zoo) -> None:
    test_rollout.test_rollout_equals_drafting_token_by_token({"variant": "vispec"})


def resumed_training(zoo: Zoo) -> None:
    with tempfile.TemporaryDirectory() as folder:
        test_distill.check_resumes(school_of(zoo), Path(folder), "eagle")


@dataclass(frozen=True)
class Mutant:
    """``old`` becomes ``new`` in ``owner.function``; ``check`` has to see it."""

    name: str
    owner: Any
    function: str
    old: str
    new: str
    check: Check


MUTANTS = [
    Mutant(
        "ties put a child before its parent",
        Candidates, "ranked", "(-scores[i], depths[i], i)", "(-scores[i], -i)",
        calls(test_tree.test_ties_go_to_the_shallower_and_then_to_the_earlier_node),
    ),
    Mutant(
        "a child may outrank its parent",
        Candidates, "extend", "min(logprob, 0.0)", "logprob",
        calls(test_tree.test_log_probability_above_zero_cannot_lift_a_child_over_its_parent),
    ),
    Mutant(
        "an orphan is hung below the root",
        TokenTree, "select",
        "rows.get(candidates.parents[index])", "rows.get(candidates.parents[index], 0)",
        calls(test_tree.test_orphans_are_refused),
    ),
    Mutant(
        "a token is accepted wherever it is in the tree",
        TokenTree, "child", "self._children.get((row, token))",
        "next((r for (p, t), r in self._children.items() if t == token and r > row), None)",
        calls(test_acceptance.test_a_token_elsewhere_in_the_tree_is_not_accepted),
    ),
    Mutant(
        "a node is judged by its neighbour's row",
        LocalVerifier, "settle", "best[row],", "best[row - 1],",
        toy_greedy,
    ),
    Mutant(
        "a sampled node is judged by its neighbour's row",
        LocalVerifier, "settle", "self._pick(logits[row]", "self._pick(logits[row - 1]",
        toy_sampled,
    ),
    Mutant(
        "the bonus comes from the parent's row",
        acceptance, "walk", "pick(row, tokens)", "pick(rows[-2] if rows[1:] else 0, tokens)",
        toy_greedy,
    ),
    Mutant(
        "tokens behind end-of-sequence are kept",
        decoder, "_cut", "return tokens[:count], reason", "return tokens, reason",
        calls(test_lossless.test_end_of_sequence_inside_the_path, 2),
    ),
    Mutant(
        "end-of-sequence is looked for at the end of a round only",
        decoder, "_cut", "if reason := stop.push(token):",
        "if (reason := stop.push(token)) and count == len(tokens):",
        calls(test_lossless.test_end_of_sequence_inside_the_path, 2),
    ),
    Mutant(
        "one token too many",
        StopRules, "push", "self._left <= 0", "self._left < 0",
        calls(test_lossless.test_length_limit_inside_the_path, 5),
    ),
    Mutant(
        "the tree is grown beyond the length limit",
        decoder, "decode", "stop.tokens_left - 1", "stop.tokens_left",
        calls(test_lossless.test_draft_always_accepted),
    ),
    Mutant(
        "processors are skipped",
        Sampler, "pick", "process(logits, params)", "logits.astype(np.float64)", processed_law,
    ),
    Mutant(
        "the penalty ignores the node's path",
        Sampler, "_penalised", "if path:", "if False:", toy_penalty,
    ),
    Mutant(
        "the penalty remembers paths that were refused",
        Sampler, "_penalised", "seen = seen.copy()", "pass",
        calls(test_sampling.test_penalty_sees_the_prompt_the_text_and_the_path),
    ),
    Mutant(
        "the penalty forgets what was accepted",
        LocalVerifier, "settle", "self._sampler.observe(verdict.tokens)", "pass", toy_penalty,
    ),
    Mutant(
        "the mask is one column off",
        LocalVerifier, "ask", "positions, mask)", "positions, np.roll(mask, 1, axis=1))",
        cache_oracle,
    ),
    Mutant(
        "a node sees its parent's sibling",
        TokenTree, "write_mask", "out[parent]", "out[max(parent - 1, 0)]", toy_greedy,
    ),
    Mutant(
        "the mask has one column too many",
        LocalVerifier, "ask", "cached + asked + spare)", "cached + asked + spare + 1)", toy_greedy,
    ),
    Mutant(
        "a prompt's rows see one row ahead",
        prefill, "causal_mask", "k=cached", "k=cached + 1",
        calls(test_lossless.test_causal_mask),
    ),
    Mutant(
        "nodes sit one position too far",
        LocalVerifier, "ask", "cached + depth for", "cached + depth + 1 for", toy_greedy,
    ),
    Mutant(
        "all positions are one too far, in plain decoding too",
        LocalVerifier, "ask", "positions, mask)", "[x + 1 for x in positions], mask)",
        cache_oracle,
    ),
    Mutant(
        "positions start again in every chunk of a long prompt",
        prefill, "prefill", "where[start:end],", "where[: end - start],",
        long_prompt_against_transformers,
    ),
    Mutant(
        "the draft's nodes sit one position too far",
        VlmDraft, "_beam_rows", "position + depths[i]", "position + 1 + depths[i]", cache_oracle,
    ),
    Mutant(
        "the draft's nodes do not see their own path",
        GrowingDraft, "_expand", "mask[i, [committed + row for row in rows]] = True",
        "mask[i, committed + rows[-1]] = True", cache_oracle,
    ),
    Mutant(
        "commit keeps the rows behind the accepted ones",
        KVCache, "_gather", "start + i for i in kept", "start + i + 1 for i in kept", toy_greedy,
    ),
    Mutant(
        "commit moves nothing",
        Cache, "commit", "if count and", "if False and", toy_greedy,
    ),
    Mutant(
        "commit moves the first layer only",
        KVCache, "_gather",
        "self.rows[..., start : start + count, :] = self.rows[..., source, :]",
        "self.rows[:1, ..., start : start + count, :] = self.rows[:1, ..., source, :]",
        cache_oracle,
    ),
    Mutant(
        "commit moves keys and no values",
        KVCache, "_gather",
        "self.rows[..., start : start + count, :] = self.rows[..., source, :]",
        "self.rows[:, :1, ..., start : start + count, :] = self.rows[:, :1, ..., source, :]",
        cache_oracle,
    ),
    Mutant(
        "the root's row is not committed",
        LocalVerifier, "settle", "kept = [0, *verdict.rows]", "kept = [*verdict.rows]",
        toy_greedy,
    ),
    Mutant(
        "the draft never sees a leaf that was accepted",
        VlmDraft, "commit", "verdict.tokens[len(kept) :]", "verdict.tokens[len(verdict.rows) :]",
        cache_oracle,
    ),
    Mutant(
        "every picture is the first one",
        inputs, "splice", "visual[index]", "visual[0]", two_pictures_against_transformers,
    ),
    Mutant(
        "the pictures never reach the draft",
        DraftModel, "drafter", "visual.draft)", "visual.draft * 0)", drafted_pictures,
    ),
    Mutant(
        "the draft sees the pictures as the target's projector shows them",
        VisualInputs, "_run", "self._graphs[role]", "self._graphs[role.removeprefix('draft_')]",
        drafted_pictures,
    ),
    Mutant(
        "one noise for all positions",
        sampling, "_uniform", "counter=[0, position, 0, 0]", "counter=[0, 0, 0, 0]",
        calls(test_law.test_draws_of_different_seeds_and_neighbouring_positions_are_independent),
    ),
    Mutant(
        "noise streams of neighbouring positions overlap",
        sampling, "_uniform", "counter=[0, position, 0, 0]", "counter=[position, 0, 0, 0]",
        calls(test_sampling.test_streams_of_neighbouring_positions_do_not_overlap),
    ),
    Mutant(
        "noise is keyed by the row in the tree",
        LocalVerifier, "settle", "1 + len(path), path)", "1 + row, path)", toy_sampled,
    ),
    Mutant(
        "two tokens share one position's noise",
        LocalVerifier, "settle", "1 + len(path), path)", "len(path), path)", exact_law,
    ),
    Mutant(
        "all requests draft in one session",
        DraftModel, "sessions",
        "session = self.step.open(capacity, outputs)",
        "session = self.__dict__.setdefault('one', self.step.open(480, outputs))",
        lambda zoo: test_lossless.test_interleaved_requests_are_independent(zoo),
    ),
    Mutant(
        "all requests share one cache",
        OrtStepGraph, "open",
        "cache = cache or KVCache(CacheShape.of(self.spec), capacity)",
        "cache = cache or self.__dict__.setdefault("
        "'one', KVCache(CacheShape.of(self.spec), 480))",
        lambda zoo: test_lossless.test_interleaved_requests_are_independent(zoo),
    ),
    Mutant(
        "top-p keeps the tail",
        sampling, "process", "before >= params.top_p", "before <= 1 - params.top_p",
        calls(test_sampling.test_nucleus_keeps_the_head_and_drops_the_tail),
    ),
    Mutant(
        "top-p drops the token that crosses the line",
        sampling, "process", "before >= params.top_p",
        "(before > 0) & (before + softmax(scores[order]) >= params.top_p)", nucleus_law,
    ),
    Mutant(
        "scores are not cumulative",
        Candidates, "extend", "base + min(logprob, 0.0)", "min(logprob, 0.0)",
        calls(test_policies.test_raw_logits_would_rank_otherwise),
    ),
    Mutant(
        "a rollout step stays at its row's position",
        HeadStudent, "rollout", "where[:, :left] + step", "where[:, :left]", rolled_out,
    ),
    Mutant(
        "a rollout step sees no earlier one of its row",
        HeadStudent, "rollout", "memory.own = [", "memory.own = [] and [", rolled_out,
    ),
    Mutant(
        "the evaluation compares with the token before",
        HeadStudent, "matches", "ids == text[:, step:]", "ids == text[:, : ids.shape[1]]",
        drafted_in_training,
    ),
    Mutant(
        "a round of the evaluation has no bonus token",
        evaluate, "rounds_of", "runs[at] + 1", "(runs[at] or 1)",
        calls(test_distill_parts.test_rounds_of_chains),
    ),
    Mutant(
        "a resumed training forgets its optimiser",
        Trainer, "resume",
        'self._optimizers[name].load_state_dict(saved["optimizers"][name])', "pass",
        resumed_training,
    ),
    Mutant(
        "a look-up matches across pictures",
        Continuations, "learn", "self.context = ()", "pass",
        calls(test_ngram.test_pictures_are_neither_proposed_nor_matched_across),
    ),
    Mutant(
        "a picture's placeholder is learnt",
        Continuations, "learn", "if token == self._barrier:", "if False:",
        calls(test_ngram.test_pictures_are_neither_proposed_nor_matched_across),
    ),
    Mutant(
        "a look-up matches across texts",
        Continuations, "cut", "self.context = ()", "pass",
        calls(test_ngram.test_a_corpus_is_looked_up_but_not_across_its_texts),
    ),
    Mutant(
        "a longer match weighs no more than a short one",
        Continuations, "predict", "+ distinct * p)", ")",
        calls(test_ngram.test_a_longer_match_weighs_more),
    ),
    Mutant(
        "look-ups go deeper than the length limit",
        NgramDraft, "paths", "min(policy.levels, root.depth_left)", "policy.levels",
        calls(test_ngram.test_nothing_is_proposed_where_nothing_matches),
    ),
    Mutant(
        "look-ups forget what was accepted",
        NgramDraft, "commit", "learn(verdict.tokens)", "learn(verdict.tokens[-1:])",
        calls(test_ngram.test_committed_tokens_are_learnt),
    ),
    Mutant(
        "n-grams take the model's indices",
        CascadeDraft, "grow",
        "candidates = self._model.grow(sizer, growth, root)\n"
        "    # Those of n-grams without a floor: beside the model's, paths become likelier.\n"
        "    merge(candidates, self._ngram.paths(sizer.policy, root))",
        "candidates = self._ngram.paths(sizer.policy, root)\n"
        "    merge(candidates, self._model.grow(sizer, growth, root))",
        cascade_caches,
    ),
    Mutant(
        "an accepted n-gram passes for a row of the model's",
        VlmDraft, "commit", "get(chosen[row - 1])", "get(chosen[row - 1], [*kept, len(kept)])",
        cascade_caches,
    ),
    Mutant(
        "n-grams do not hear what was accepted",
        CascadeDraft, "commit", "self._ngram.commit(chosen, verdict)", "pass",
        calls(test_cascade.test_n_gram_nodes_are_accepted_beside_a_model_that_is_always_wrong),
    ),
    Mutant(
        "a node that both propose is there twice",
        cascade, "merge", "known.get((parent, token))", "None",
        calls(test_cascade.test_new_nodes_hang_below_the_matching_path),
    ),
    Mutant(
        "a path is lifted without what hangs below it",
        cascade, "merge", "logprobs[i] + (", "_given_parent(arena)[i] + (",
        calls(test_cascade.test_the_better_estimate_lifts_a_path_and_all_below_it),
    ),
    Mutant(
        "a sure n-gram outranks a sure model",
        cascade, "merge", "min(logprob, left.get(parent, 0.0))", "logprob",
        calls(test_cascade.test_n_grams_do_not_shout_down_a_sure_model),
    ),
    Mutant(
        "a trimmed vocabulary drops the end of text",
        vocabulary, "trimmed", "[*always, *ids]", "[*ids, *always]",
        calls(test_frequencies.test_ends_of_text_are_kept_however_rare),
    ),
    Mutant(
        "guessed-features-stay-in-the-draft's-cache",
        FeatureDraft, "commit", "cache.commit(())", "cache.commit(range(len(verdict.rows)))",
        guesses("eagle", images=0),
    ),
    Mutant(
        "a-node-feeds-on-its-own-output-instead-of-its-parent's",
        FeatureDraft, "_beam_rows", "self._feedback[parents[i]]",
        "next(iter(self._feedback.values()))",
        guesses("eaglevlm", images=0),
    ),
    Mutant(
        "the-engine's-buffer-is-kept-instead-of-a-copy",
        FeatureDraft, "_learn", "outputs[2].copy()", "outputs[2]",
        test_feature_draft.test_what_is_fed_back_outlives_the_engines_buffers,
    ),
    Mutant(
        "the-last-picture's-vector-is-forgotten-while-drafting",
        FeatureDraft, "_embed", "rows + self._offset", "rows", guesses("vispec"),
    ),
    Mutant(
        "every-text-carries-the-first-picture's-vector",
        FeaturePrompt, "rows", "runs.offsets[index]", "runs.offsets[0]", guesses("vispec"),
    ),
    Mutant(
        "image-rows-are-not-one-ahead-of-their-embeddings",
        FeaturePrompt, "rows", "max(start - 1, 0), end - 1", "start, end", guesses("msd", images=1),
    ),
    Mutant(
        "features-of-pictures-are-taken-one-row-late",
        FeaturePrompt, "_runs", "np.arange(start - 1, end - 1)", "np.arange(start, end)",
        guesses("eagle", images=1),
    ),
    Mutant(
        "compressed-rows-close-the-gap",
        visual, "run_positions", "(2 * i + 1) * length // (2 * count)", "i",
        calls(test_heads.test_run_positions_rules),
    ),
    Mutant(
        "features-of-the-root-are-dropped",
        LocalVerifier, "settle", "outputs[-1][kept]", "outputs[-1][[*kept[1:], kept[-1]]]",
        guesses("eagle", images=0),
    ),
]  # fmt: skip
FAILURES = (AssertionError, pytest.fail.Exception, ValueError, IndexError)
"""A defect that Python or numpy stumbles over is seen as well."""


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_the_suite_sees(mutant: Mutant, zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    check_seen(mutant, zoo, monkeypatch)


def check_seen(mutant: Mutant, zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check passes without the mutant and fails with it."""
    mutant.check(zoo)
    plant(monkeypatch, mutant.owner, mutant.function, mutant.old, mutant.new)
    with pytest.raises(FAILURES):
        mutant.check(zoo)


def test_raw_logits_as_scores(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A draft ranked by raw logits cannot change the text; its scores are found out all the same
    (Spec-LLaVA's defect)."""
    target, draft = str(zoo.checkpoint("gqa")), str(zoo.checkpoint("gqa", "shared"))
    sound = zoo.model("gqa")  # exported before the defect is planted
    plant(
        monkeypatch,
        proposer_graph,
        "best",
        'b.node("LogSoftmax", logits, axis=-1)',
        'b.node("Identity", logits)',
    )
    out = tmp_path / "raw"
    export_bundle(ExportRequest(target=target, draft=draft, compressor="pool:4", out=out))
    raw = edgespec_runtime.load(out, threads=1)
    trees = set()
    for prompt in ("one", "another", "the third"):
        plain = sound.generate([], prompt, draft="none", max_new_tokens=24)
        records = list(raw.stream([], prompt, policy="eagle2", max_new_tokens=24))
        assert tuple(r.token for r in records) == plain.token_ids
        trees.add(tuple(r.accepted for r in records))
        trees.add(
            tuple(r.accepted for r in sound.stream([], prompt, policy="eagle2", max_new_tokens=24))
        )
    assert len(trees) > 3, "the ranking did not change"
    test_lossless.check_draft_scores(sound)
    with pytest.raises(AssertionError):
        test_lossless.check_draft_scores(raw)


def test_a_mutant_that_no_longer_fits_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LookupError, match="0 times"):
        plant(monkeypatch, acceptance, "walk", "no such line", "")
