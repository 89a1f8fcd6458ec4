"""The suite has power: defects of sizing by measured cost (see ``test_mutants``).

None of them could change a text; each would cost time, or break a budget, unseen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from edgespec.sizing import Eagle2, feasible, lengths, rule
from edgespec.sizing.calibration import Calibrator, Paths
from edgespec.sizing.costs import RoundCosts
from edgespec.sizing.drift import Away, Factor
from edgespec.sizing.policies import sized
from edgespec.sizing.policies.sized import SizedTrees
from edgespec.sizing.room import Room
from edgespec.sizing.whether import Whether
from edgespec_runtime.drafts.coupling import Coupling
from edgespec_runtime.drafts.growing import GrowingDraft
from tests import (
    test_budgets,
    test_calibration,
    test_costs,
    test_sized_toys,
    test_sizing_network,
    test_sizing_rule,
    test_whether,
)
from tests.test_mutants import Mutant, calls, check_seen

if TYPE_CHECKING:
    from tests.support.zoo import Zoo

MUTANTS = [
    Mutant(
        "a slow network is taken for a slow server",
        RoundCosts, "learn_verify", "measured - away - drawing", "measured - drawing",
        calls(test_sizing_network.test_a_slow_server_is_still_told_from_a_slow_network),
    ),
    Mutant(
        "the way to the target is left out of what trees cost",
        RoundCosts, "verify", "[ms + away for ms in self._corrected]", "self._corrected",
        calls(test_sizing_network.test_a_slow_server_is_still_told_from_a_slow_network),
    ),
    Mutant(
        "the way to the target is left out of the speed that is achieved",
        RoundCosts, "learn_verify", "+ drawing + expected", "+ drawing",
        calls(test_sizing_network.test_trees_grow_with_the_round_trip_and_are_the_best_there_are),
    ),
    Mutant(
        "the last packet tells how far the target is",
        Away, "learn", "statistics.median(self.recent)", "ms",
        calls(
            test_sizing_network
            .test_a_late_packet_is_no_slow_network_and_a_slow_network_is_soon_known
        ),
    ),
    Mutant(
        "jitter is no part of the tail",
        Factor, "learn", "if took or expected:", "if False:",
        calls(test_sizing_network.test_jitter_widens_the_tail_that_budgets_allow_for),
    ),
    Mutant(
        "the device's curve stands for the server's",
        sized, "costs_of", "if remote is None:", "if True:",
        calls(test_sizing_network.test_the_servers_curve_stands_for_the_devices),
    ),
    Mutant(
        "the first call behind ready levels is priced as the root's",
        RoundCosts, "learn_draft", "(0, *calls) if begun else calls", "calls",
        calls(test_sizing_network.test_rounds_that_start_ahead_teach_no_wrong_costs, (2, 3), 2),
    ),
    Mutant(
        "ready levels cost a first call",
        RoundCosts, "_bare_calls", "if calls[0]:", "if True:",
        calls(test_sizing_network.test_levels_that_are_ready_cost_no_time_of_a_budget),
    ),
    Mutant(
        "what was grown ahead is not gone on with",
        SizedTrees, "_decide", "[self._kind] if root.ready else self._growths.kinds",
        "self._growths.kinds",
        calls(test_sizing_network.test_a_growth_begun_ahead_is_gone_on_with),
    ),
    Mutant(
        "plain decoding is no choice",
        rule, "best_count", "value = -rate * verify_ms[0]", "value = -math.inf",
        calls(test_sizing_rule.test_nothing_is_verified_where_nothing_pays),
    ),
    Mutant(
        "the search stops at the first node that loses",
        rule, "best_count",
        "        if gain > value and ms <= limit_ms:\n",
        "        if gain <= value:\n            break\n        if ms <= limit_ms:\n",
        calls(test_sizing_rule.test_a_step_that_loses_is_climbed_where_the_next_ones_win),
    ),
    Mutant(
        "sizes beyond the limit are chosen",
        rule, "best_count", " and ms <= limit_ms", "",
        calls(test_sizing_rule.test_nothing_is_verified_where_nothing_pays),
    ),
    Mutant(
        "verification costs one node less than it does",
        rule, "best_count", "verify_ms[1:]", "verify_ms",
        calls(test_sizing_rule.test_a_step_that_loses_is_climbed_where_the_next_ones_win),
    ),
    Mutant(
        "ties put a child before its parent",
        rule, "tree_order", "-reach[i])", "(-reach[i], -i))",
        calls(test_sizing_rule.test_in_tree_order_parents_come_first_whatever_the_ties),
    ),
    Mutant(
        "nodes to come are free to verify",
        rule, "worth_of_nodes", "gain - price", "gain",
        calls(test_sizing_rule.test_nodes_that_cost_more_than_they_bring_are_worth_nothing),
    ),
    Mutant(
        "time spent on drafting counts against verifying",
        SizedTrees, "choose", "self._verify, self._rate, left",
        "[self._verify[0], *(ms + self._spent for ms in self._verify[1:])], self._rate, left",
        calls(test_sized_toys.test_draft_time_that_is_spent_is_no_reason_to_verify_less),
    ),
    Mutant(
        "time spent on drafting counts against drafting on",
        SizedTrees, "_next_beam", "worth[width - 1] <= 0",
        "worth[width - 1] <= rate * self._spent",
        calls(test_sized_toys.test_draft_time_that_is_spent_is_no_reason_to_draft_less),
    ),
    Mutant(
        "paths are proposed down to what the dearest node costs",
        rule, "cheapest_node", "min(slopes", "max(slopes",
        calls(test_sized_toys.test_the_floor_is_half_of_what_the_cheapest_node_costs),
    ),
    Mutant(
        "a budget forgets the time that drafting took",
        SizedTrees, "choose", "left(self._spent, tokens_most)", "left(0.0, tokens_most)",
        calls(test_budgets.check_limit, "slopes", 6.5),
    ),
    Mutant(
        "a budget forgets the time that drafting took while it drafts on",
        SizedTrees, "_affordable", "self._spent + price", "price",
        calls(test_budgets.check_limit, "stairs", 6.0),
    ),
    Mutant(
        "a budget forgets the draft's prompt",
        SizedTrees, "_least_drafting",
        "return first if root.prepared else first + self._whether.prepare_ms", "return first",
        calls(test_budgets.check_limit, "slopes", 6.5),
    ),
    Mutant(
        "a budget is kept by every other round",
        Room, "holds", "ms * self.tail", "ms",
        calls(test_budgets.check_limit, "slopes", 6.0),
    ),
    Mutant(
        "the nearest budget is not rounded up",
        feasible, "check_budget", "_rounded_up(least)", "least",
        calls(test_budgets.check_nearest, "ms-per-round", 12345.678),
    ),
    Mutant(
        "trees take no room in the target's cache",
        feasible, "most_nodes",
        "(profile.memory.target_kv_bytes + profile.memory.draft_kv_bytes)",
        "profile.memory.draft_kv_bytes",
        calls(test_budgets.test_trees_are_fitted_into_the_memory_that_there_is),
    ),
    Mutant(
        "rows that sampling did not visit are labels",
        Paths, "learn",
        "answers = visited\n", "answers = {**dict.fromkeys(chosen, -1), **visited}\n",
        calls(test_calibration.test_sampling_labels_the_children_of_visited_rows_alone),
    ),
    Mutant(
        "greedy decoding's rows beside the path teach nothing",
        Paths, "learn", "if named is not None:", "if False:",
        calls(test_calibration.test_greedy_decoding_labels_the_children_of_every_row),
    ),
    Mutant(
        "rows beside the path teach as much as those on it",
        Paths, "learn", "1.0 if parent in visited else reach[parent]", "1.0",
        calls(test_calibration.test_greedy_decoding_labels_the_children_of_every_row),
    ),
    Mutant(
        "something follows the end of an answer",
        Paths, "extend", "in eos else", "in () else",
        calls(test_calibration.test_nothing_below_the_end_of_a_text_is_worth_anything),
    ),
    Mutant(
        "a node is as likely as its last edge",
        Paths, "extend", "else up / (1.0", "else 1.0 / (1.0",
        calls(test_calibration.test_before_any_label_acceptance_is_the_drafts_probability),
    ),
    Mutant(
        "nodes that n-grams lift are judged as before",
        Paths, "extend", "if self._scores != scores[: len(reach)]:", "if False:",
        calls(test_calibration.test_nodes_that_a_cascade_lifts_are_judged_anew),
    ),
    Mutant(
        "what was learnt never fades",
        Calibrator, "learn", "0.5 ** (float(weight.sum()) / HALF_LIFE)", "1.0",
        calls(test_calibration.test_what_was_learnt_of_a_node_is_soon_outweighed),
    ),
    Mutant(
        "a draft that became another goes unnoticed",
        Calibrator, "due", "return self.surprised or", "return",
        calls(test_calibration.test_a_draft_that_became_another_is_noticed_and_learnt_anew),
    ),
    Mutant(
        "hiccups are taken for drift",
        Factor, "learn", "off = min(max(off, -OUTLIER), OUTLIER)", "pass",
        calls(test_costs.check_hiccups),
    ),
    Mutant(
        "drift is of all sizes alike",
        Factor, "learn", "own + SLOW * off", "own",
        calls(test_costs.test_sizes_have_factors_of_their_own),
    ),
    Mutant(
        "the root's own row is not counted",
        RoundCosts, "_at", "costs.verify.row(context, self._nodes + 1)[1:]",
        "costs.verify.row(context, self._nodes)",
        calls(test_costs.test_verifying_n_nodes_is_verifying_n_and_the_root),
    ),
    Mutant(
        "drawing tokens passes for drift",
        RoundCosts, "learn_verify", "measured - away - drawing", "measured",
        calls(test_costs.test_drawing_tokens_is_no_part_of_the_curve),
    ),
    Mutant(
        "trials are free",
        Whether, "_on_trial", "self._lesson.allowance_ms -= max(loss, 0.0)", "pass",
        calls(test_whether.check_never_a_loss, 0.6),
    ),
    Mutant(
        "a trial is good for several rounds",
        SizedTrees, "begin", "1 if self._whether.trying else SETTLED", "SETTLED",
        calls(test_whether.check_never_a_loss, 0.3),
    ),
    Mutant(
        "the draft's prompt is free when drafting begins",
        Whether, "_start_after", "self.prepare_ms, plain_ms", "0.0, plain_ms",
        calls(test_whether.check_short_answers),
    ),
    Mutant(
        "the draft's prompt is free when drafting is tried",
        Whether, "_on_trial", "loss += self.prepare_ms", "pass",
        calls(test_whether.check_short_answers),
    ),
    Mutant(
        "an answer's start is weighed without the draft's prompt",
        lengths, "start_after", "(prepare_ms + gain_ms * s)", "(gain_ms * s)",
        calls(test_whether.test_short_answers_are_plain_and_long_ones_are_drafted_at_once),
    ),
    Mutant(
        "noise is that of the position before",
        Coupling, "rows", "self.noise.roughly(position)", "self.noise.roughly(position - 1)",
        calls(test_sized_toys.check_noise),
    ),
    Mutant(
        "a coupled draft ranks at another temperature",
        GrowingDraft, "__init__", "coupling.temperature", "1.0",
        calls(test_sized_toys.check_coupled, Eagle2(6, 6, 1)),
    ),
    Mutant(
        "the tree is grown beyond what may be emitted",
        SizedTrees, "beam", "min(self.policy.levels, root.depth_left)", "self.policy.levels",
        calls(test_sized_toys.test_nothing_is_drafted_where_nothing_more_may_be_emitted),
    ),
]  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_the_suite_sees(mutant: Mutant, zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    check_seen(mutant, zoo, monkeypatch)
