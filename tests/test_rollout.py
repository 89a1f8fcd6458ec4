"""A student's rollout is what drafting does: step j at a row equals the head run token by token
behind that row, its own outputs fed back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from edgespec_export.compression import parse_compression
from edgespec_export.distill.settings import Losses
from edgespec_export.distill.student import HeadStudent, lay_out
from edgespec_export.distill.teacher import Sample
from edgespec_export.heads.modules import Head
from tests.support.headzoo import plain, tiny_head, tiny_sample

STEPS = 4
HEADS: tuple[dict[str, Any], ...] = (
    {"variant": "eagle"},
    {"variant": "eaglevlm"},
    {"variant": "msd"},
    {"variant": "vispec"},
    {"variant": "specvlm", "compression": parse_compression("pool:4")},
    {"variant": "specvlm", "compression": parse_compression("text-only")},
    {"variant": "eagle3"},
    {"variant": "eagle3", "norm_output": True, "norm_before_residual": True},
)


def batch(head: Head) -> list[Sample]:
    """Samples of different lengths, with no, one and two pictures."""
    return [
        tiny_sample(head, [3, -9, 4], answers=6, seed=1),
        tiny_sample(head, [5], answers=3, seed=2),
        tiny_sample(head, [2, -9, 1, -9, 3], answers=1, seed=3),
    ]


def chained(head: Head, sample: Sample, answer: int, steps: int) -> list[torch.Tensor]:
    """Outputs behind answer token ``answer`` and behind each token drafted after it, by plain
    passes over everything before. The drafts are the text's own tokens, as the rollout's are."""
    laid = lay_out(head, [sample])
    length = int(laid.start[0]) + answer + 1
    rows, positions = laid.rows[0, :length], laid.positions[0, :length]
    offset = None if laid.offset is None else laid.offset[0]
    outs = [plain(head, rows, positions)[-1]]
    for step in range(1, steps + 1):
        token = sample.ids[sample.prompt + answer + step]
        embed = head.embed_tokens(token)[None, None]
        row = head.rows(embed, head.feedback(outs[-1])[None, None], offset)[0]
        rows = torch.cat([rows, row])
        positions = torch.cat([positions, positions[-1:] + 1])
        outs.append(plain(head, rows, positions)[-1])
    return outs


@pytest.mark.parametrize("fields", HEADS, ids=lambda f: str(f.get("compression", f["variant"])))
@torch.no_grad()
def test_rollout_equals_drafting_token_by_token(fields: dict[str, Any]) -> None:
    head = tiny_head(**fields).double()  # float32 drifts apart in a chain of steps
    samples = batch(head)
    seen = 0
    for step, (out, valid) in enumerate(HeadStudent(head, Losses()).rollout(samples, STEPS)):
        for i, sample in enumerate(samples):
            assert valid[i].sum() == max(0, sample.answers - step)
            for answer in range(sample.answers - step):
                wanted = chained(head, sample, answer, step)[-1]
                torch.testing.assert_close(out[i, answer], wanted, atol=1e-9, rtol=0)
                seen += 1
    assert seen == 6 + 5 + 4 + 3 + 2 + 3 + 2 + 1 + 1


@torch.no_grad()
def test_rows_of_an_answer_continue_its_tokens() -> None:
    """Answer row a holds the embedding of answer token a and the feature of the token before."""
    head = tiny_head("eagle")
    (sample,) = batch(head)[:1]
    laid = lay_out(head, [sample])
    for answer in range(sample.answers):
        token = sample.prompt + answer
        row = head.rows(sample.embeds[None, token, None], sample.features[None, token - 1, None])
        at = int(laid.start[0]) + answer
        torch.testing.assert_close(laid.rows[0, at], row[0, 0])
        assert int(laid.positions[0, at]) == token - 1


@torch.no_grad()
def test_matches_tell_where_a_greedy_chain_agrees() -> None:
    """Where they hold from the first on, a greedy chain of the draft is the target's text."""
    head = tiny_head("eagle")
    samples = batch(head)
    for i, found in enumerate(HeadStudent(head, Losses()).matches(samples, STEPS)):
        sample = samples[i]
        text = sample.ids[sample.prompt + 1 :]  # what follows each answer token
        assert found.shape == (sample.answers, STEPS)
        for answer in range(sample.answers):
            for step in range(STEPS):
                hit = False
                if answer + step < sample.answers:
                    out = chained(head, sample, answer, step)[-1]
                    hit = bool(head.logits(out).argmax() == text[answer + step])
                assert bool(found[answer, step]) == hit


def test_padding_changes_nothing() -> None:
    """A batch's loss is the mean of its samples' losses, weighted by their rows."""
    head = tiny_head("msd")
    student = HeadStudent(head, Losses(rank=0.1))
    samples = batch(head)
    together, _ = student(samples)
    parts = [student([sample])[0] * sample.answers for sample in samples]
    torch.testing.assert_close(together, torch.stack(parts).sum() / sum(s.answers for s in samples))
