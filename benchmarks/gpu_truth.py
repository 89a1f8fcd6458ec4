"""Is it true on this card: trees against plain forwards, texts against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.gpu_peeking import peeked
from benchmarks.gpu_question import Floats, Question, logits_along
from benchmarks.gpu_rig import Rig
from benchmarks.gpu_transformers import flips
from edgespec.sampling import gumbel_noise, process
from edgespec.tree import TokenTree
from edgespec_runtime.model import Model
from edgespec_runtime.prefill import prefill
from tests.support.compare import first_difference

NODES = (6, 26, 63)
POLICIES = ("chain:depth=6", "eagle2:nodes=26,depth=5,top_k=4")
LONGEST = 64
"""Tokens of a text that is compared; behind a flip nothing is."""
SAMPLED = {"temperature": 0.8, "top_p": 0.95, "seed": 7}
TOLERANCE = {"fp32": 1e-3, "fp16": 0.1}
"""Of logits whose standard deviation is 1 to 4. The oracle is held to it; precisions that are not
named are held to that of fp16."""


def oracle(rig: Rig, figures: dict[str, Any]) -> None:
    """Logits of every node of random trees against one plain step after the other over its path."""
    for flavour in rig.usable:
        figures[str(flavour)] = _oracle(rig, rig.model(flavour))


def _oracle(rig: Rig, model: Model) -> dict[str, Any]:
    question = rig.question(model)
    rng = np.random.default_rng(0)
    length, found = len(question.embeds), []
    session = model.steps["target"].open(length + NODES[-1] + 1, ("logits",))
    prefill(session, question.embeds)
    for nodes in NODES:
        rig.clock.need(5)
        tree = random_tree(nodes, rig.geometry.image_token, rng)
        root = int(rng.integers(8, rig.geometry.image_token))
        rows = model.tables["target"][[root, *tree.tokens]]
        mask = np.ones((len(rows), length + len(rows)), dtype=np.bool_)
        tree.write_mask(mask[:, length:])
        positions = [length, *(length + depth for depth in tree.depths)]
        whole = np.array(session.step(rows, positions, mask)[0])
        session.cache.pending = 0
        plain = _plain(session, tree, rows, length)
        found.append(_compared(whole, plain))
    worst = max(each["largest"] for each in found)
    precision = model.manifest.flavours[0].precision
    return {
        "trees": found,
        "largest": worst,
        "argmax_equal": f"{sum(e['equal'] for e in found)} of {sum(e['rows'] for e in found)}",
        "gaps": [gap for each in found for gap in each["gaps"]],
        "within": bool(worst <= TOLERANCE.get(precision, TOLERANCE["fp16"])),
    }


def random_tree(nodes: int, tokens: int, rng: np.random.Generator) -> TokenTree:
    """Every node below any row before it; no token twice."""
    parents = [int(rng.integers(0, row + 1)) for row in range(nodes)]
    drawn = rng.choice(np.arange(8, tokens), nodes, replace=False)
    return TokenTree.build(drawn.tolist(), parents)


def _plain(session: Any, tree: TokenTree, rows: Floats, length: int) -> Floats:
    """[rows, V], every path fed row by row, as plain decoding feeds it."""
    found: dict[int, Floats] = {}
    parents = (0, *tree.parents)
    leaves = sorted(set(range(len(rows))) - set(tree.parents))
    for leaf in leaves:
        path = [leaf]
        while path[-1]:
            path.append(parents[path[-1]])
        session.cache.length, session.cache.pending = length, 0
        for row in path[::-1]:
            at = session.cache.length
            mask = np.ones((1, at + 1), dtype=np.bool_)
            logits = session.step(rows[row : row + 1], [at], mask)[0]
            session.cache.commit([0])
            found.setdefault(row, np.array(logits[0]))
    session.cache.length, session.cache.pending = length, 0
    return np.stack([found[row] for row in range(len(rows))])


def _compared(whole: Floats, plain: Floats) -> dict[str, Any]:
    rows = np.arange(len(plain))
    ours, theirs = whole.argmax(axis=1), plain.argmax(axis=1)
    gaps = plain[rows, theirs] - plain[rows, ours]
    return {
        "rows": len(plain),
        "largest": round(float(np.abs(whole - plain).max()), 5),
        "spread": round(float(plain.std()), 3),
        "equal": int((ours == theirs).sum()),
        "gaps": [round(float(gap), 5) for gap in gaps[ours != theirs]],
    }


def equality(rig: Rig, figures: dict[str, Any]) -> None:
    """Speculative texts against plain ones of the same flavour, greedy and drawn with a seed, and
    plain texts of the flavours against the first one's."""
    first: tuple[str, list[int]] | None = None
    for flavour in rig.usable:
        model = rig.model(flavour)
        question = rig.question(model)
        found: dict[str, Any] = figures.setdefault(str(flavour), {})
        for name, settings in (("greedy", {}), ("sampled", SAMPLED)):
            rig.clock.need(8)
            plain = _tokens(rig, model, question, {**settings, "draft": "none"})
            runs = {p: _tokens(rig, model, question, {**settings, "policy": p}) for p in POLICIES}
            found[name] = {
                policy: difference(model, question, settings, plain, tokens)
                for policy, tokens in runs.items()
            }
            text, accepted = peeked(model, question, plain, settings)
            found[name]["a draft that knows"] = {
                "accepted_length": round(accepted, 2),
                **difference(model, question, settings, plain, text),
            }
            if name == "greedy":
                # One call over all tokens: what many-row kernels say to one-row kernels' text.
                found["many_rows"] = flips(plain, logits_along(model, question, plain))
                if first is None:
                    first = str(flavour), plain
                else:
                    found[f"plain against {first[0]}"] = difference(
                        model, question, {}, first[1], plain
                    )


def _tokens(rig: Rig, model: Model, question: Question, settings: dict[str, Any]) -> list[int]:
    answer = model.generate(
        [question.image], question.text, max_new_tokens=min(rig.new_tokens, LONGEST), **settings
    )
    return list(answer.token_ids)


def difference(
    model: Model,
    question: Question,
    settings: dict[str, Any],
    plain: Sequence[int],
    other: Sequence[int],
) -> dict[str, Any]:
    """Whether two texts are equal; else where they part, and by how much the target's own scores
    (drawn with its noise, where it draws) tell the two tokens apart. Behind that place they are
    texts of different beginnings, and nothing is compared."""
    at = first_difference(plain, other)
    if at is None:
        return {"equal": True, "tokens": len(plain)}
    if at >= min(len(plain), len(other)):
        return {"equal": False, "at": at, "why": "one text ends earlier"}
    scores = np.float64(logits_along(model, question, plain[: at + 1])[at])
    if settings:
        params = replace(model.sampling(**settings))
        noise = gumbel_noise(params.seed, len(question.embeds) + at, len(scores))
        scores = process(scores.astype(np.float32), params) + noise
    gap = abs(float(scores[plain[at]] - scores[other[at]]))
    return {"equal": False, "tokens": len(plain), "at": at, "gap": round(gap, 5)}
