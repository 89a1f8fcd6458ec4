"""Speed at accepted lengths that somebody really had: real rounds, scripted verdicts.

Random weights accept nothing. So every round here drafts with the draft model, verifies a tree of
the size given in one call of the target, and walks, commits and streams as any round does, all in
the product's own loop; what is scripted is the target's word at as many nodes of the tree's first
path as the accepted length asks for. Plain decoding beside it is the same loop with an empty tree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np

from benchmarks.gpu_question import Question
from benchmarks.gpu_rig import Rig
from edgespec.sizing import Policy, Setting, Sizer, parse_policy
from edgespec.tree import ROOT, Candidates, TokenTree
from edgespec_runtime.model import Model
from edgespec_runtime.request import Request

AIM = 3.28
"""What Spec-LLaVA's authors report for LLaVA-1.5-7B; at which accepted length could not be read."""
WANTED = np.float32(1e30)
SAID = (
    "Wall-clock of real rounds of this engine with scripted verdicts: random weights accept "
    "nothing, so the target's word is scripted at as many nodes as the accepted length asks for; "
    "drafting, verification, commit and host are real, and so is plain decoding beside them."
)


@dataclass(frozen=True)
class Report:
    """An accepted length (bonus token counted) with the tree it was reached with."""

    name: str
    accepted: float
    policy: str
    reported: float
    """Their speedup, on their machine."""


REPORTS = (
    # SpecVLM (arXiv 2509.11815), tables 1 and 7, and EagleVLM there: LLaVA-1.5-7B, T = 0, trees of
    # 60 rows, depth 7, top-k 10, MI250.
    Report("SpecVLM, 1 epoch, mean of six sets", 3.67, "eagle2:nodes=59,depth=7,top_k=10", 2.11),
    Report("SpecVLM, 5 epochs, LLaVA-Wild", 5.27, "eagle2:nodes=59,depth=7,top_k=10", 2.66),
    # ViSpec (arXiv 2509.15235), its README's table for LLaVA-1.6-7B, T = 0, mean and COCO captions;
    # it counts without the bonus token. The tree is that of MMSpec's scripts.
    Report("ViSpec, mean of eight sets", 3.98, "eagle2:nodes=29,depth=4,top_k=8", 2.58),
    Report("ViSpec, COCO captions", 4.30, "eagle2:nodes=29,depth=4,top_k=8", 3.22),
    # MSD, MMSpec's rerun on LLaVA-1.5-7B: mean accepted tokens, time in total.
    Report("MSD, MMSpec's rerun", 4.75, "eagle2:nodes=59,depth=5,top_k=10", 2.11),
)
CHAIN = "chain:depth=12"
SHAPES = (
    CHAIN,
    "chain:depth=6",
    "rolling:nodes=127,steps=7,top_k=16,width=16",
    "eagle2:nodes=59,depth=7,top_k=10",
    "eagle2:nodes=26,depth=6,top_k=4,beam_width=1",
)
"""Trees for which it is told how far they have to be accepted for the aim; the third is
Spec-LLaVA's, as far as a draft graph hands out children (16 of 31)."""


def replay(rig: Rig, figures: dict[str, Any]) -> None:
    """Every report's accepted length in its own tree, the built-in family's recorded rounds, and
    what would have to be accepted for the aim."""
    flavour = rig.best
    model = rig.model(flavour)
    question = rig.question(model)
    figures |= {"said": SAID, "flavour": str(flavour), "reports": {}}
    for report in REPORTS:
        rig.clock.need(10)
        even = partial(evenly, report.accepted - 1)
        found = _clocked(model, question, report.policy, even, 2 * rig.new_tokens)
        figures["reports"][report.name] = {
            "policy": report.policy, "reported_speedup": report.reported, **found
        }  # fmt: skip
    trace = rig.report.get("builtin", {}).get("figures", {}).get("trace")
    if trace:
        accepted = [tokens - 1 for tokens in trace]
        figures["builtin_trace"] = {
            "policy": CHAIN,
            **_clocked(model, question, CHAIN, partial(cycle, accepted), 1 + sum(trace)),
        }
    figures["needed"] = {}
    for policy in SHAPES:
        rig.clock.need(10)
        found = _clocked(model, question, policy, partial(evenly, 3.0), rig.new_tokens)
        figures["needed"][policy] = {
            "round_ms": found["round_ms"],
            f"accepted_length_for_{AIM}": round(
                AIM * found["round_ms"] / found["plain_ms_per_token"], 2
            ),
        }


def evenly(mean: float) -> Iterator[int]:
    """Whole numbers with that mean, as even as they can be."""
    total, given = 0.0, 0
    while True:
        total += mean
        yield int(total + 1e-9) - given
        given = int(total + 1e-9)


def _clocked(
    model: Model, question: Question, policy: str, levels: Callable[[], Iterator[int]], new: int
) -> dict[str, Any]:
    """Plain and scripted runs in turn; the second of each counts."""
    deep = Deep(parse_policy(policy))
    for _ in range(2):
        ask = partial(model.stream, [question.image], question.text, max_new_tokens=new)
        plain = _run(ask(draft="none"))
        request = ask(policy=deep)
        script(request, levels())
        drafted = _run(request)
    rounds = drafted.rounds
    decode = drafted.total_ms - drafted.ttft_ms - drafted.prepare_ms
    return {
        "accepted_length": round(drafted.accepted_length, 3),
        "rounds": rounds,
        "draft_ms": round(drafted.draft_ms / rounds, 3),
        "verify_ms": round(drafted.verify_ms / rounds, 3),
        "host_ms": round(drafted.host_ms / rounds, 3),
        "round_ms": round(decode / rounds, 3),
        "draft_prompt_ms": round(drafted.prepare_ms, 2),
        "plain_ms_per_token": round(1e3 / plain.tokens_per_s, 3),
        "tokens_per_s": round(drafted.tokens_per_s, 1),
        "speedup_decode": round(drafted.tokens_per_s / plain.tokens_per_s, 3),
        "speedup_end_to_end": round(_ms_per_token(plain) / _ms_per_token(drafted), 3),
    }


def _ms_per_token(stats: Any) -> float:
    """Picture and prompt included."""
    return float(stats.total_ms / (stats.accepted_length * stats.rounds + 1))


def _run(request: Request) -> Any:
    for _ in request:
        pass
    return request.stats


def script(request: Request, levels: Iterator[int]) -> None:
    """Has the request's own verifier find its target's word scripted, round by round."""
    verifier: Any = request._verifier
    settle = verifier.settle

    def scripted(tree: TokenTree, outputs: Sequence[Any]) -> Any:
        if len(tree):
            say(outputs[0], downwards(tree, next(levels)))
        return settle(tree, outputs)

    verifier.settle = scripted


def say(answer: Any, wanted: dict[int, int]) -> None:
    """Writes ``wanted`` (row to token) into logits [rows, V], or into the ids of the best ones."""
    for row, token in wanted.items():
        if answer.dtype.kind == "f":
            answer[row, token] = WANTED
        else:
            answer.reshape(-1)[row] = token


def downwards(tree: TokenTree, levels: int) -> dict[int, int]:
    """Rows, and the tokens to name there, to accept so many nodes on the way to a deepest one."""
    if not len(tree):
        return {}
    row = max(range(1, len(tree) + 1), key=lambda row: (tree.depths[row - 1], -row))
    path = [row]
    while path[-1]:
        path.append(tree.parents[path[-1] - 1])
    path.reverse()
    return {at: tree.tokens[to - 1] for at, to in list(zip(path, path[1:], strict=False))[:levels]}


@dataclass(frozen=True)
class Deep:
    """A policy whose trees always hold a path as deep as was grown. A trained draft's do; a random
    one is sure of nothing, so that its best nodes would all be near the root."""

    inner: Policy

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def start(self, setting: Setting) -> Sizer:
        sizer: Any = self.inner.start(setting)
        choose = sizer.choose

        def deeper(candidates: Candidates) -> list[int]:
            chosen: list[int] = choose(candidates)
            if not chosen:
                return chosen
            node = max(range(len(candidates)), key=lambda i: (candidates.depths[i], -i))
            path = []
            while node != ROOT:
                path.append(node)
                node = candidates.parents[node]
            rest = [i for i in chosen if i not in path]
            return candidates.ranked([*path, *rest[: max(len(chosen) - len(path), 0)]])

        sizer.choose = deeper
        return sizer  # type: ignore[no-any-return]
