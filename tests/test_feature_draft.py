"""Feature-level drafts in the runtime: lossless whatever they guess, and guessing exactly what
their torch modules would.

Random heads guess badly, so a target that is led along their guesses makes rounds of every length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

import edgespec_runtime
from edgespec.errors import ConfigError, EngineError
from edgespec.sampling import gumbel_noise
from edgespec.sizing import Policy, parse_policy
from edgespec.tree import ROOT, Candidates, TokenTree
from edgespec_export.compression import parse_compression
from edgespec_export.distill.student import lay_out
from edgespec_export.distill.teacher import Sample, spans_of
from edgespec_export.heads.compressors import build_compressor
from edgespec_export.heads.layouts import OpenedHead, open_head
from edgespec_export.heads.modules import Head
from edgespec_export.heads.save import load_head
from edgespec_export.plan import open_model
from edgespec_runtime import Model
from tests.support.checkpoints import GEOMETRIES
from tests.support.compare import assert_same_tokens
from tests.support.fakes import grown_by
from tests.support.random_heads import VARIANTS
from tests.support.sizers import Pausing
from tests.support.zoo import HAS_NATIVE, NATIVE_REASON, Zoo

CASES = [
    *((variant, "") for variant in VARIANTS),
    ("eagle", "pool:4"), ("eaglevlm", "prune:3"), ("eagle3", "stride:2"), ("msd", "text-only"),
    ("specvlm", "elastic:weighted"), ("specvlm", "elastic:concat"), ("specvlm", "conv:3"),
]  # fmt: skip
POLICIES = ("eagle2:nodes=6,depth=4,top_k=1", "eagle2:nodes=12,depth=3,top_k=3", "rolling")
NAME = "gqa"
IMAGE = GEOMETRIES[NAME].image_token_id
EOS = 2
TEMPERATURE, SEED = 1.5, 8


def load(zoo: Zoo, variant: str, compressor: str = "", lowering: str = "ort") -> Model:
    return edgespec_runtime.load(zoo.head_bundle(NAME, variant, compressor, lowering), threads=1)


@pytest.mark.parametrize("variant, compressor", CASES)
def test_text_is_the_targets(zoo: Zoo, variant: str, compressor: str) -> None:
    model = load(zoo, variant, compressor)
    assert model.variant == variant
    for images in (0, 1, 2):
        pictures = [zoo.picture(NAME, i) for i in range(images)]
        for temperature in (0.0, 1.0):
            given = {"temperature": temperature, "seed": 5, "max_new_tokens": 14}
            plain = model.generate(pictures, "say it", draft="none", **given).token_ids
            for policy in POLICIES:
                for draft in ("model", "model+ngram"):
                    ours = model.generate(pictures, "say it", draft=draft, policy=policy, **given)
                    assert_same_tokens(model, pictures, "say it", given, plain, ours.token_ids)


@pytest.mark.skipif(not HAS_NATIVE, reason=NATIVE_REASON)
@pytest.mark.parametrize("variant", VARIANTS)
def test_lowerings_agree(zoo: Zoo, variant: str) -> None:
    picture = zoo.picture(NAME, 3)
    runs = []
    for lowering in ("ort", "native", "portable"):
        request = load(zoo, variant, lowering=lowering).stream(
            [picture], "words", policy=POLICIES[1], max_new_tokens=12, temperature=1.0
        )
        lead(request, 2)
        runs.append([(record.token, record.tree_nodes) for record in request])
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.parametrize("variant, compressor", CASES)
def test_text_is_the_targets_with_pauses(zoo: Zoo, variant: str, compressor: str) -> None:
    model = load(zoo, variant, compressor)
    for images in (0, 1, 2):
        pictures = [zoo.picture(NAME, i) for i in range(images)]
        for temperature in (0.0, 1.0):
            given: dict[str, Any] = {"temperature": temperature, "seed": 6, "max_new_tokens": 14}
            plain = model.generate(pictures, "say it", draft="none", **given).token_ids
            for number, inner in enumerate(POLICIES):
                policy = Pausing(parse_policy(inner), idle=2 * number, seed=images)
                for draft in ("model", "model+ngram"):
                    request = model.stream(pictures, "say it", draft=draft, policy=policy, **given)
                    ours = [record.token for record in request]
                    assert_same_tokens(model, pictures, "say it", given, plain, ours)


@pytest.mark.parametrize("policy", POLICIES[:2])
@pytest.mark.parametrize("images", [0, 1, 2])
@pytest.mark.parametrize("variant, compressor", CASES)
def test_guesses_are_the_modules(
    zoo: Zoo, variant: str, compressor: str, images: int, policy: str
) -> None:
    """After rounds of several lengths, every candidate has the module's log-probability given the
    target's true features of all that is committed."""
    check_guesses(zoo, variant, compressor, images, parse_policy(policy))


PAUSES = {
    "now and then": Pausing(parse_policy(POLICIES[1]), idle=1, seed=6, share=0.4, ends=4),
    "until the end": Pausing(parse_policy(POLICIES[1]), idle=99),
    "since the first rounds": Pausing(parse_policy(POLICIES[1]), share=0.0, ends=2),
}


@pytest.mark.parametrize("pauses", PAUSES)
@pytest.mark.parametrize("images", [0, 2])
@pytest.mark.parametrize("variant", VARIANTS)
def test_guesses_after_a_pause_are_the_modules(
    zoo: Zoo, variant: str, images: int, pauses: str
) -> None:
    """As if it had never paused: it takes in the true features of all that was said meanwhile."""
    # Longer texts of random weights: rounding grows, in a draft that never paused no less.
    sizer = check_guesses(zoo, variant, "", images, PAUSES[pauses], length=12, loose=5)
    assert sizer.paused[-1], "nothing was left to take in: the test shows little"
    assert all(sizer.paused) == (pauses == "until the end")


@pytest.mark.parametrize("variant", VARIANTS)
def test_coupled_guesses_are_the_modules_with_the_targets_noise(zoo: Zoo, variant: str) -> None:
    for policy in POLICIES[:2]:
        check_guesses(zoo, variant, "", 1, parse_policy(policy), coupled=True)


def check_guesses(
    zoo: Zoo,
    variant: str,
    compressor: str,
    images: int,
    policy: Policy,
    *,
    length: int = 10,
    loose: float = 1.0,
    coupled: bool = False,
) -> Any:
    """Candidates after some rounds under ``policy`` against the module; returns the sizer."""
    model = load(zoo, variant, compressor)
    pictures = [zoo.picture(NAME, i) for i in range(images)]
    request: Any = model.stream(
        pictures, "look at this", policy=policy, max_new_tokens=40, temperature=TEMPERATURE,
        coupled=coupled, seed=SEED,
    )  # fmt: skip
    lead(request, 2)
    said = []
    for record in request:
        said.append(record.token)
        if len(said) == length:
            break
    drafter = request._draft
    # A round may still be half handed out: all it committed counts.
    committed = list(drafter.seen)
    context = request._verifier.context
    candidates = grown_by(drafter, getattr(policy, "inner", policy), 20, context=context)
    head, opened = module(zoo, variant, compressor)
    sample = sample_of(zoo, pictures, "look at this", committed, opened.geometry.feature_layers)
    check_candidates(head, sample, candidates, context if coupled else None, loose)
    return request.sizer


def lead(request: Any, stride: int) -> None:
    """Makes the target follow the draft for ``stride`` nodes in every second round, and notes the
    committed tokens as ``request._draft.seen``."""
    verifier, drafter = request._verifier, request._draft
    sampler, verify, begin = verifier._sampler, verifier.verify, verifier.begin
    pick = sampler.pick
    drafter.seen = []
    state: dict[str, Any] = {"tree": TokenTree.build((), ()), "round": 0}

    def led(logits: Any, position: int, path: Sequence[int]) -> int:
        tree, row = state["tree"], 0
        for token in path:
            row = tree.child(row, token) or 0
        children = [t for t, p in zip(tree.tokens, tree.parents, strict=True) if p == row]
        follow = children and len(path) < stride and state["round"] % 2 == 0
        token = int(children[-1]) if follow else int(pick(logits, position, path))
        # Transformers would look for a picture, and the text is to go on.
        return token if token not in (IMAGE, EOS) else IMAGE + 1

    def verified(tree: TokenTree, meanwhile: Any = None) -> Any:
        state["tree"] = tree
        verdict = verify(tree)
        state["round"] += 1
        drafter.seen += verdict.tokens
        return verdict

    def begun() -> Any:
        verdict = begin()
        drafter.seen += verdict.tokens
        return verdict

    sampler.pick, verifier.verify, verifier.begin = led, verified, begun


def module(zoo: Zoo, variant: str, compressor: str) -> tuple[Head, OpenedHead]:
    target = open_model(str(zoo.checkpoint(NAME)))
    folder = zoo.head_checkpoint(NAME, variant, compressor)
    opened = open_head(str(folder), target, variant)
    table = torch.from_numpy(target.checkpoint.tensor("text.embed_tokens.weight"))
    output = torch.from_numpy(target.checkpoint.tensor(f"{target.proposer.name}.weight"))
    head: Any = load_head(opened, table, output).eval()
    if compressor and variant != "specvlm":  # one without weights, which the exporter adds
        compress, rows_of = build_compressor(parse_compression(compressor), 1, 1), head.image_rows
        head.image_rows = lambda *given: (compress(rows_of(*given)[0], given[2]), None)
    return head, opened


def sample_of(
    zoo: Zoo, pictures: Sequence[Any], prompt: str, said: Sequence[int], layers: Sequence[int]
) -> Sample:
    """The target's own forward over prompt and committed text, in transformers."""
    processor, original = zoo.processor(NAME), zoo.torch_model(NAME)
    content = [*({"type": "image"} for _ in pictures), {"type": "text", "text": prompt}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    inputs = processor(images=list(pictures) or None, text=text, return_tensors="pt")
    asked = inputs["input_ids"][0].tolist()
    ids = torch.tensor([[*asked, *said]])
    pixels = {"pixel_values": inputs["pixel_values"]} if pictures else {}
    with torch.no_grad():
        states = original(input_ids=ids, output_hidden_states=True, **pixels).hidden_states
    last = states[-1][0]
    features = torch.cat([states[k][0] for k in layers], -1) if layers else last
    spans = spans_of(ids[0].tolist(), original.config.image_token_id)
    known = last[len(asked) : -1]
    return Sample(ids[0], spans, len(asked), states[0][0], features, known, known)


def check_candidates(
    head: Head, sample: Sample, candidates: Candidates, context: int | None, loose: float
) -> None:
    """Every expanded node's children against a plain forward of the module over its path; behind
    ``context`` rows, ranked with the noise that the target draws with there."""
    # Random heads amplify rounding from step to step; a wrong row is off by whole units.
    within: dict[str, Any] = {"rtol": 1e-3 * loose, "atol": 2e-2 * loose}
    # Rows of a sample end one short of its last token, which is the tree's root here: one more.
    longer = torch.cat([sample.ids, sample.ids[-1:]])
    more = torch.cat([sample.embeds, sample.embeds[-1:]])
    features = torch.cat([sample.features, sample.features[-1:]])
    extended = Sample(
        longer, sample.spans, sample.prompt, more, features, sample.logits, sample.states
    )
    with torch.no_grad():
        laid = lay_out(head, [extended])
        base_rows, base_positions = laid.rows, laid.positions
        for parent in set(candidates.parents):
            path = [] if parent == ROOT else path_to(candidates, parent)
            rows, positions = base_rows, base_positions
            for token in [*path, None]:
                count = rows.shape[1]
                mask = torch.ones(count, count, dtype=torch.bool).tril()[None, None]
                out, _ = head.layer(rows, positions, mask)
                if token is None:
                    break
                embeds = head.embed_tokens(torch.tensor([[token]]))
                following = head.rows(embeds, head.feedback(out[:, -1:]), laid.offset)
                rows = torch.cat([rows, following], 1)
                positions = torch.cat([positions, positions[:, -1:] + 1], 1)
            scores = head.logits(out[0, -1])
            if context is not None:
                noise = gumbel_noise(SEED, context + len(path) + 1, len(scores))
                scores = scores / TEMPERATURE + torch.from_numpy(noise)
            logprobs = torch.log_softmax(scores, -1)
            base = 0.0 if parent == ROOT else candidates.scores[parent]
            children = [i for i, p in enumerate(candidates.parents) if p == parent]
            ours = [candidates.scores[i] - base for i in children]
            theirs = logprobs[[candidates.tokens[i] for i in children]]
            np.testing.assert_allclose(ours, theirs, **within)
            best = logprobs.topk(len(children)).values
            np.testing.assert_allclose(sorted(ours, reverse=True), best, **within)


def path_to(candidates: Candidates, index: int) -> list[int]:
    tokens = []
    while index != ROOT:
        tokens.append(candidates.tokens[index])
        index = candidates.parents[index]
    return tokens[::-1]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_chain_in_one_call_equals_step_by_step(zoo: Zoo, variant: str) -> None:
    model, picture = load(zoo, variant), zoo.picture(NAME, 1)
    seen = []
    for chained in (True, False):
        request: Any = model.stream(
            [picture], "tell me", policy=POLICIES[0], max_new_tokens=20, temperature=1.0
        )
        lead(request, 3)
        assert request._draft._chain is not None
        if not chained:
            request._draft._chain = None
        seen.append([(r.token, r.from_draft, r.accepted, r.tree_nodes) for r in request])
    assert seen[0] == seen[1] and max(row[2] for row in seen[0]) > 2


@pytest.mark.parametrize("variant", ["vispec", "eagle3"])
def test_requests_do_not_share_state(zoo: Zoo, variant: str) -> None:
    """Two requests with different pictures, in turns: the reference keeps this on the module."""
    model = load(zoo, variant)
    pictures = [zoo.picture(NAME, 1), zoo.picture(NAME, 2)]

    def start(picture: Any) -> Any:
        request = model.stream(
            [picture], "go", policy=POLICIES[1], max_new_tokens=15, temperature=1.0, seed=3
        )
        lead(request, 2)
        return request

    alone = [[(r.token, r.accepted, r.tree_nodes) for r in start(p)] for p in pictures]
    first, second = (start(p) for p in pictures)
    turns: tuple[list[Any], list[Any]] = ([], [])
    for a, b in zip(first, second, strict=False):
        for rows, record in zip(turns, (a, b), strict=True):
            rows.append((record.token, record.accepted, record.tree_nodes))
    assert [rows[: len(turn)] for rows, turn in zip(alone, turns, strict=True)] == list(turns)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("policy, limit", [("plain", 9), ("rolling", 2), (POLICIES[0], 1)])
def test_an_answer_without_drafting_does_not_pay_for_a_draft(
    zoo: Zoo, variant: str, policy: str, limit: int
) -> None:
    request: Any = load(zoo, variant).stream(
        [zoo.picture(NAME, 1)], "say it", policy=policy, max_new_tokens=limit
    )
    records, drafter = list(request), request._draft
    assert len(records) == limit and request.stats.prepare_ms == 0
    assert not drafter.prepared and drafter.engine_s == 0 and drafter._session.cache.used == 0


@pytest.mark.parametrize("idle", [0, 2, 4])
@pytest.mark.parametrize("room", [0, 3])
def test_a_full_draft_context_proposes_nothing(zoo: Zoo, room: int, idle: int) -> None:
    """Whether it was filled by drafting or while the draft paused."""
    model = load(zoo, "eaglevlm")
    given: dict[str, Any] = {"max_new_tokens": 20, "temperature": 0.0}
    plain = model.generate(None, "hello there", draft="none", **given).token_ids
    policy = Pausing(parse_policy(POLICIES[1]), idle, share=0.0)
    request: Any = model.stream(None, "hello there", policy=policy, **given)
    request._draft._max_positions = request.prompt_tokens + room
    records = list(request)
    assert tuple(record.token for record in records) == plain
    assert records[-1].tree_nodes == 0 and any(r.tree_nodes for r in records) == (room > idle)


def test_positions_with_a_gap_need_rows_in_the_cache(zoo: Zoo) -> None:
    """GroupQueryAttention counts on from the first position while the cache is empty: a gap there
    is refused instead of being computed wrongly."""
    model = load(zoo, "vispec")
    assert model.draft is not None
    session = model.draft.step.open(16)
    width = int(model.draft.step.spec.meta["hidden"])
    rows = np.zeros((3, width), dtype=np.float32)
    mask = np.tri(3, dtype=np.bool_)
    with pytest.raises(EngineError, match="first gap"):
        session.step(rows, [0, 1, 5], mask, hidden=rows)
    session.step(rows, [0, 1, 2], mask, hidden=rows)


def test_policies_that_the_graphs_cannot_serve_are_refused(zoo: Zoo) -> None:
    policy: Policy = parse_policy("eagle2:nodes=20,depth=2,top_k=40")
    with pytest.raises(ConfigError, match="top_k=40"):
        load(zoo, "eagle").stream(None, "x", policy=policy)


def test_what_is_fed_back_outlives_the_engines_buffers(zoo: Zoo) -> None:
    """An older node may be expanded later: its parent's output must not be overwritten by then."""
    policy = "rolling:nodes=24,steps=6,top_k=4,width=2"
    request: Any = load(zoo, "eagle").stream(None, "x", policy=policy, max_new_tokens=20)
    next(request)
    next(request)
    drafter = request._draft
    grown_by(drafter, parse_policy(policy), 10)
    buffers = list(drafter._session._buffers._arrays.values())
    assert len(drafter._feedback) > 6
    for kept in drafter._feedback.values():
        assert not any(np.shares_memory(kept, buffer) for buffer in buffers)
