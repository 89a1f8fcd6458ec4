"""Every exported graph against the torch original, as transformers runs it.

The inputs are random, the tolerance is relative to the values. A step graph is checked end to end:
a prompt with the image's visual tokens inside, and below it a random tree, each node of which must
get the logits of a plain forward over its path. A draft's graphs run twice, the second time with
random noise in the ranking of their candidates.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgespec.bundle import STAND_ALONE, GraphSpec
from edgespec_export.comparing import (
    NOT_CHECKED,
    Graphs,
    check_top_k,
    compared,
    coupled,
    floats,
    named,
    parity_libraries,
    plain_and_coupled,
    random_tree,
    spread,
    text_ids,
)
from edgespec_export.geometry import LlavaGeometry, ModelGeometry
from edgespec_export.original import Original
from edgespec_export.parity_packed import check_packed
from edgespec_runtime.engines import open_engine
from edgespec_runtime.prefill import causal_mask, prefill

if TYPE_CHECKING:
    from edgespec_export.plan import DraftPlan, Model, Plan

Floats = npt.NDArray[np.float32]

TEXT = 6  # tokens before the image, and after it


def require_parity() -> None:
    """Raises MissingDependencyError before anything is written, not after it all."""
    parity_libraries()
    open_engine("ort")


def check_parity(plan: Plan, specs: list[GraphSpec], folder: Path) -> dict[str, Any]:
    """The largest difference of every graph in ``folder`` from its original, by stem.

    Raises EngineError naming the graph and the figures where it is above the tolerance of its
    precision; some precisions are not checked, and say why.
    """
    report: dict[str, Any] = {}
    for flavour in plan.graphs:
        own = [spec for spec in specs if spec.flavour == flavour]
        if flavour.precision in NOT_CHECKED:
            report |= {spec.stem: NOT_CHECKED[flavour.precision] for spec in own}
            continue
        figures = _check_flavour(plan, own, folder)
        report |= {spec.stem: figures[spec.role] for spec in own}
    return report


def _check_flavour(plan: Plan, specs: list[GraphSpec], folder: Path) -> dict[str, Any]:
    """The same of one flavour's graphs, by role."""
    graphs = Graphs(open_engine("ort"), {spec.role: spec for spec in specs}, folder)
    features = plan.draft.features if plan.draft else ()
    report = dict(
        _check_model(graphs, plan.target, "target", "vision", "projector", None, features)
    )
    if "target_packed" in graphs.specs:
        report["target_packed"] = check_packed(graphs, plan.target.geometry)
    if plan.draft and plan.draft.variant in STAND_ALONE:
        report |= _check_stand_alone(graphs, plan.draft)
    elif plan.draft:
        from edgespec_export.parity_heads import check_head

        report |= check_head(graphs, plan.draft, plan.target)
    return report


def _check_stand_alone(graphs: Graphs, draft: DraftPlan) -> Iterator[tuple[str, dict[str, Any]]]:
    vision = "draft_vision" if draft.processor else "vision"
    ids = draft.proposer.ids
    yield from _check_model(graphs, draft.original, "draft", vision, "draft_projector", ids, ())
    if draft.compression:
        yield "compressor", check_compressor(graphs, draft)


def check_compressor(graphs: Graphs, draft: DraftPlan, weights: Any = None) -> dict[str, Any]:
    """The compressor graph on random tokens and questions; ``weights``: its trained module."""
    torch, _ = parity_libraries()
    from edgespec_export.heads.compressors import build_compressor

    assert draft.compression is not None
    inputs = graphs.specs["compressor"].inputs
    tokens, width = (int(axis) for axis in inputs[0].axes[1:])
    module = weights or build_compressor(draft.compression, width, 1)
    rng = np.random.default_rng(0)
    figures: dict[str, Any] = {}
    for _ in range(8 if len(inputs) > 1 else 1):  # a gate has to be asked more than once
        embeds = rng.standard_normal((2, tokens, width), dtype=np.float32)
        question = rng.standard_normal((1, width), dtype=np.float32)
        found = graphs.run("compressor", embeds, *([question] if len(inputs) > 1 else []))
        with torch.no_grad():
            rows = [
                floats(module(torch.from_numpy(image), torch.from_numpy(question[0])))
                for image in embeds
            ]
        against = graphs.against(f"torch {torch.__version__}")
        compared_now = compared("compressor", found, np.stack(rows), against)
        if compared_now["max_abs_diff"] >= figures.get("max_abs_diff", 0.0):
            figures = compared_now
    return figures


def _check_model(
    graphs: Graphs,
    model: Model,
    role: str,
    vision: str,
    projector: str,
    ids: Sequence[int] | None,
    features: Sequence[int],
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (role, figures) for one model's tower, projector and decoder; ``ids``: the tokens it
    may propose, ``features``: hidden states that its step graph hands out."""
    rng = np.random.default_rng(0)
    original = Original(model)
    against = graphs.against(original.against)
    pixels, visual = None, None
    if isinstance(model.geometry, LlavaGeometry):
        side = model.geometry.vision.image_size
        pixels = rng.standard_normal((2, 3, side, side), dtype=np.float32)
        seen = original.features(pixels)
        found = graphs.run(vision, pixels)
        yield vision, compared(vision, found, seen, against)
        embeds = original.project(seen)
        found = graphs.run(projector, seen)
        yield projector, compared(projector, found, embeds, against)
        pixels, visual = pixels[:1], found[0]
    yield (
        role,
        _check_step(graphs, model.geometry, original, role, pixels, visual, rng, ids, features),
    )
    if role == "draft" and "draft_chain" in graphs.specs:
        yield "draft_chain", _check_chain(graphs, model.geometry, original, rng, ids)
    del original
    gc.collect()


def _check_step(
    graphs: Graphs,
    geometry: ModelGeometry,
    original: Original,
    role: str,
    pixels: Floats | None,
    visual: Floats | None,
    rng: np.random.Generator,
    ids: Sequence[int] | None,
    features: Sequence[int],
) -> dict[str, Any]:
    """Prompt and tree through the step graph; every node against a forward over its path."""
    tree = random_tree(geometry, rng)
    room = geometry.text.max_positions - max(tree.depths)
    text = text_ids(geometry, min(2 * TEXT, room), rng)
    table = graphs.table(role)
    middle: list[int] = []
    parts = [table[text[:TEXT]], table[text[TEXT:]]]
    if visual is not None and len(visual) + 2 * TEXT <= room:
        assert geometry.image_token_id is not None
        middle = [geometry.image_token_id] * len(visual)
        parts.insert(1, visual)
    prompt = [*text[:TEXT], *middle, *text[TEXT:]]
    session = graphs.session(role, len(prompt) + len(tree))
    # Row 0 of a tree is the last committed token, whose logits are still wanted.
    prefill(session, np.concatenate(parts)[:-1])
    committed = session.cache.length
    seen = np.ones((len(tree) + 1, committed), dtype=np.bool_)
    step = partial(
        session.step,
        table[[text[-1], *tree.tokens]],
        committed + np.array([0, *tree.depths]),
        np.concatenate([seen, tree.mask()], axis=1),
    )
    wanted, hidden = original.nodes(prompt, tree, pixels if middle else None, features)
    kept = wanted if ids is None else wanted[:, list(ids)]
    names = ("logits", *graphs.wanted(role))

    def check(noise: Floats | None) -> dict[str, Any]:
        found = dict(zip(names, step(noise=noise), strict=True))
        label, against = named(role, noise), graphs.against(original.against)
        figures = compared(label, found["logits"], kept, against)
        figures["argmax_equal"] = bool(np.array_equal(found["logits"].argmax(-1), kept.argmax(-1)))
        if "topk_ids" in found:
            scores = coupled(spread(kept, ids, geometry.text.vocab), ids, noise)
            figures["topk"] = check_top_k(
                label, found["topk_logprobs"], found["topk_ids"], scores, against
            )
        if "hidden" in found:
            figures["hidden"] = compared(f"{label}: hidden", found["hidden"], hidden, against)
        return figures

    if "topk_ids" not in names:
        return check(None)
    return plain_and_coupled(session, kept.shape, check)


def _check_chain(
    graphs: Graphs,
    geometry: ModelGeometry,
    original: Original,
    rng: np.random.Generator,
    allowed: Sequence[int] | None,
) -> dict[str, Any]:
    """The chain graph along its own best tokens; every step against a forward over its path."""
    steps = int(graphs.specs["draft_chain"].meta["steps"])
    text = text_ids(geometry, max(1, min(TEXT, geometry.text.max_positions - steps)), rng)
    table = graphs.table("draft")
    session = graphs.session("draft", len(text) + steps)
    if len(text) > 1:
        prefill(session, table[text[:-1]])
    committed = session.cache.length
    chain = graphs.chain(session)

    def check(noise: Floats | None) -> dict[str, Any]:
        logprobs, ids = chain.step(
            table[[text[-1]]], [committed], causal_mask(committed, 1), noise=noise
        )
        wanted = original.forward([*text, *ids[:-1, 0].tolist()], None)[0][committed:]
        kept = wanted if allowed is None else wanted[:, list(allowed)]
        scores = coupled(spread(kept, allowed, geometry.text.vocab), allowed, noise)
        against = graphs.against(original.against)
        return check_top_k(named("draft_chain", noise), logprobs, ids, scores, against)

    return plain_and_coupled(chain, (steps, graphs.proposed), check)
