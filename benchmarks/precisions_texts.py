"""What ``precisions.py`` finds of texts: how fast they come, and whether speculation keeps them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgespec_export.questions import Question
from edgespec_runtime import Model
from edgespec_runtime.prefill import causal_mask, prefill

POLICIES = ("eagle2:nodes=12,depth=12,top_k=1", "eagle2:nodes=12,depth=4,top_k=3")


def speeds(
    models: Mapping[str, Model], texts: Sequence[Question], repeats: int
) -> dict[str, dict[str, float]]:
    """Tokens per second behind the first ones, plain and speculative: all texts' tokens by the
    sum of their times, each the median over ``repeats`` passes in which all take turns."""
    jobs = [(name, draft) for name in models for draft in ("none", "model")]
    times: dict[tuple[str, str, int], list[float]] = {}
    tokens: dict[tuple[str, str, int], int] = {}
    rng = random.Random(0)
    for _ in range(repeats):
        for at, question in enumerate(texts):
            for name, draft in rng.sample(jobs, len(jobs)):
                said = models[name].generate(question.image, question.prompt, draft=draft)
                tokens[name, draft, at] = len(said.token_ids) - 1
                took = (said.stats.total_ms - said.stats.ttft_ms) / 1e3
                times.setdefault((name, draft, at), []).append(took)
    found: dict[str, dict[str, float]] = {}
    for name, draft in jobs:
        keys = [(name, draft, at) for at in range(len(texts))]
        seconds = sum(float(np.median(times[key])) for key in keys)
        label = "plain_tok_s" if draft == "none" else "speculative_tok_s"
        found.setdefault(name, {})[label] = sum(tokens[key] for key in keys) / seconds
    return found


def equality(model: Model, texts: Sequence[Question], label: str) -> dict[str, Any]:
    """How many speculative texts are the plain ones, and how close the others' tokens were."""
    found: dict[str, Any] = {
        policy + label: {"texts": len(texts), "equal": 0, "gaps": []} for policy in POLICIES
    }
    for question in texts:
        given: dict[str, Any] = {"max_new_tokens": 120, "temperature": 0.0}
        plain = model.generate(question.image, question.prompt, draft="none", **given).token_ids
        for policy in POLICIES:
            given["policy"] = policy
            other = model.generate(question.image, question.prompt, draft="model", **given)
            own = found[policy + label]
            pairs = zip(plain, other.token_ids, strict=False)
            at = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
            if at is None:
                own["equal"] += plain == other.token_ids
            else:
                pair = plain[at], other.token_ids[at]
                own["gaps"].append(round(gap(model, question, plain[:at], pair), 3))
    return found


def gap(model: Model, question: Question, known: Sequence[int], pair: tuple[int, int]) -> float:
    """How far the logits of two tokens are apart, by plain decoding of ``known``."""
    embeds = model.prompt_embeds(question.image, question.prompt)
    session = model.steps["target"].open(len(embeds) + len(known) + 1)
    outputs, _ = prefill(session, embeds)
    for token in known:
        cached = session.cache.length
        outputs = session.step(model.tables["target"][[token]], [cached], causal_mask(cached, 1))
        session.cache.commit([0])
    return abs(float(outputs[0][0, pair[0]] - outputs[0][0, pair[1]]))
