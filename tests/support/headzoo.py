"""Small random feature-level drafts, and prompts with pictures for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from edgespec_export.distill.teacher import Sample
from edgespec_export.geometry import Rope, TextGeometry
from edgespec_export.heads.geometry import HeadGeometry
from edgespec_export.heads.modules import Head, build_head

HIDDEN, VOCAB = 32, 40
KV_HEADS, HEADS = 2, 4


def tiny_head(variant: str, *, qkv_bias: bool = False, seed: int = 0, **fields: Any) -> Head:
    """A head with random weights everywhere (norms and biases too)."""
    text = TextGeometry(
        hidden=HIDDEN, intermediate=48, layers=1, heads=HEADS, kv_heads=KV_HEADS,
        head_dim=HIDDEN // HEADS, vocab=VOCAB, max_positions=128, eps=1e-5, rope=Rope(10000.0),
        qkv_bias=qkv_bias, o_bias=False, mlp_bias=False,
    )  # fmt: skip
    defaults: dict[str, Any] = {"feature_size": HIDDEN}
    if variant == "vispec":
        defaults["queries"] = 2
    if variant == "eagle3":
        defaults |= {"feature_size": 3 * HIDDEN, "fc_bias": False, "draft_vocab": VOCAB}
    draw = torch.Generator().manual_seed(seed)
    embedding, table = (torch.randn(VOCAB, HIDDEN, generator=draw) for _ in range(2))
    head = build_head(HeadGeometry(variant, text, **(defaults | fields)), embedding, table)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            noise = torch.randn(parameter.shape, generator=draw)
            norm = "norm" in name
            parameter.copy_(1 + 0.3 * noise if norm else 0.2 * noise)
    return head.eval()


def tiny_sample(
    head: Head, layout: Sequence[int], answers: int = 1, seed: int = 0, prompt: int | None = None
) -> Sample:
    """A sample whose prompt is ``layout``: text tokens, and pictures as negative numbers of
    tokens. After the prompt come ``answers`` + 1 answer tokens. In the head's own precision."""
    draw, kind = torch.Generator().manual_seed(seed), head.embed_tokens.weight.dtype
    length = sum(map(abs, layout)) + answers + 1
    ids = torch.randint(1, VOCAB, (length,), generator=draw)
    embeds = head.embed_tokens(ids).detach().clone()
    spans, at = [], 0
    for count in layout:
        if count < 0:
            embeds[at : at - count] = torch.randn(-count, HIDDEN, generator=draw).to(kind)
            spans.append((at, at - count))
        at += abs(count)
    return Sample(
        ids=ids,
        spans=tuple(spans),
        prompt=at if prompt is None else prompt,
        embeds=embeds,
        features=torch.randn(length, head.geometry.feature_size, generator=draw).to(kind),
        logits=torch.randn(answers, VOCAB, generator=draw).to(kind),
        states=torch.randn(answers, HIDDEN, generator=draw).to(kind),
    )


def plain(head: Head, rows: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Outputs [N, H] of one causal pass over rows [N, D]."""
    causal = torch.ones(len(rows), len(rows), dtype=torch.bool).tril()
    out, _ = head.layer(rows[None], positions[None], causal[None, None])
    return out[0]
