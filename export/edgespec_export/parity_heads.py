"""Every graph of a feature-level draft against its torch module (``heads/modules.py``).

Rows are random pairs of token and hidden state. The step graph is asked for a random tree below a
random prefix, and every node must get what a plain forward over its path gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgespec_export.comparing import (
    Against,
    Graphs,
    check_top_k,
    compared,
    coupled,
    floats,
    named,
    parity_libraries,
    plain_and_coupled,
    random_tree,
    rows_to,
    spread,
    text_ids,
)
from edgespec_export.parity import check_compressor
from edgespec_runtime.prefill import causal_mask, prefill

if TYPE_CHECKING:
    from edgespec_export.plan import DraftPlan, Model

Floats = npt.NDArray[np.float32]
PREFIX = 7


@dataclass(frozen=True)
class _Case:
    """What is compared: the module, its graphs, random rows."""

    graphs: Graphs
    draft: DraftPlan
    target: Model
    head: Any
    rng: np.random.Generator

    @property
    def against(self) -> Against:
        return self.graphs.against(f"torch {parity_libraries()[0].__version__}")

    @property
    def width(self) -> int:
        return int(self.draft.original.geometry.text.hidden)

    def random(self, *shape: int) -> Floats:
        return self.rng.standard_normal(shape, dtype=np.float32)

    def forward(
        self, tokens: Sequence[int], hidden: Floats, offset: Any = None
    ) -> tuple[Floats, Floats]:
        """(logits over all target tokens [S, V], feedback [S, H]) of a plain forward."""
        torch, _ = parity_libraries()
        with torch.no_grad():
            embeds = self.head.embed_tokens(torch.tensor([list(tokens)]))
            rows = self.head.rows(embeds, torch.from_numpy(hidden)[None], offset)
            mask = torch.ones(len(tokens), len(tokens), dtype=torch.bool).tril()[None, None]
            out, _ = self.head.layer(rows, torch.arange(len(tokens))[None], mask)
            logits = floats(self.head.logits(out)[0])
            feedback = floats(self.head.feedback(out)[0])
        kept = self.draft.proposer.rows
        logits = logits if kept is None else logits[:, list(kept)]
        return spread(logits, self.draft.proposer.ids, self.target.geometry.text.vocab), feedback


def check_head(
    graphs: Graphs, draft: DraftPlan, target: Model
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (role, figures). Raises EngineError naming the graph that differs."""
    torch, _ = parity_libraries()
    from edgespec_export.heads.save import load_head

    table = torch.from_numpy(target.checkpoint.tensor("text.embed_tokens.weight"))
    output = torch.from_numpy(target.checkpoint.tensor(f"{target.proposer.name}.weight"))
    head = load_head(draft.original, table, output).eval()
    case = _Case(graphs, draft, target, head, np.random.default_rng(0))
    if "draft_features" in graphs.specs:
        yield "draft_features", _check_encoder(case)
    if "draft_projector" in graphs.specs:
        yield "draft_projector", _check_image_rows(case)
    if draft.original.geometry.queries:
        yield "compressor", _check_adaptor(case)
    elif draft.compression:
        yield "compressor", check_compressor(graphs, draft, getattr(head, "compressor", None))
    yield "draft", _check_step(case)
    if "draft_chain" in graphs.specs:
        yield "draft_chain", _check_chain(case)


def _check_encoder(case: _Case) -> dict[str, Any]:
    torch, _ = parity_libraries()
    features = case.random(5, case.draft.original.geometry.feature_size)
    with torch.no_grad():
        wanted = floats(case.head.encode(torch.from_numpy(features)))
    return compared(
        "draft_features", case.graphs.run("draft_features", features), wanted, case.against
    )


def _check_image_rows(case: _Case) -> dict[str, Any]:
    """The token side of image rows: what a row is made of beside its hidden state."""
    torch, _ = parity_libraries()
    embeds = case.random(2, 9, case.width)
    with torch.no_grad():
        nothing = torch.zeros(2, 9, case.width)
        wanted = floats(case.head.rows(torch.from_numpy(embeds), nothing))[..., : case.width]
    return compared(
        "draft_projector", case.graphs.run("draft_projector", embeds), wanted, case.against
    )


def _check_adaptor(case: _Case) -> dict[str, Any]:
    torch, _ = parity_libraries()
    tokens = int(case.graphs.specs["compressor"].inputs[0].axes[1])
    embeds = case.random(2, tokens, case.width)
    found = case.graphs.outputs("compressor", embeds)
    rows, offsets = [], []
    nothing = torch.zeros(1, 1, case.width)
    with torch.no_grad():
        for image in embeds:
            tokens_, vector = case.head.image_rows(torch.from_numpy(image), nothing, nothing)
            rows.append(floats(tokens_))
            both = (case.head.rows(nothing, nothing, given) for given in (vector, None))
            offsets.append(floats(next(both) - next(both))[0, 0])
    figures = compared("compressor", found["compressed"], np.stack(rows), case.against)
    name = "compressor: offset"
    figures["offset"] = compared(name, found["offset"], np.stack(offsets), case.against)
    return figures


def _check_step(case: _Case) -> dict[str, Any]:
    tree = random_tree(case.target.geometry, case.rng)
    prefix = text_ids(case.target.geometry, PREFIX, case.rng)
    tokens, hidden = [*prefix, *tree.tokens], case.random(PREFIX + len(tree), case.width)
    table = case.graphs.table("draft")
    session = case.graphs.session("draft", len(tokens))
    prefill(session, table[prefix[:-1]], range(PREFIX - 1), hidden[: PREFIX - 1])
    cached = PREFIX - 1
    mask = np.concatenate([np.ones((len(tree) + 1, cached), np.bool_), tree.mask()], axis=1)
    positions = cached + np.array([0, *tree.depths])
    fed = [prefix[-1], *tree.tokens]
    wanted = np.empty((len(fed), case.target.geometry.text.vocab), np.float32)
    states = np.empty((len(fed), case.width), np.float32)
    for leaf in set(range(len(fed))) - set(tree.parents):
        rows = rows_to(tree, leaf)
        path = [*range(cached), *(cached + row for row in rows)]
        plain, fedback = case.forward([tokens[i] for i in path], hidden[path])
        wanted[rows], states[rows] = plain[cached:], fedback[cached:]
    allowed = case.draft.proposer.ids
    kept = wanted if allowed is None else wanted[:, list(allowed)]

    def check(noise: Floats | None) -> dict[str, Any]:
        logits, logprobs, ids, feedback = session.step(
            table[fed], positions, mask, hidden=hidden[cached:], noise=noise
        )
        label = named("draft", noise)
        figures = compared(label, logits, kept, case.against)
        figures["argmax_equal"] = bool(np.array_equal(logits.argmax(-1), kept.argmax(-1)))
        scores = coupled(wanted, allowed, noise)
        figures["topk"] = check_top_k(label, logprobs, ids, scores, case.against)
        figures["feedback"] = compared(f"{label}: feedback", feedback, states, case.against)
        return figures

    return plain_and_coupled(session, kept.shape, check)


def _check_chain(case: _Case) -> dict[str, Any]:
    """The chain graph along its own best tokens and hidden states."""
    torch, _ = parity_libraries()
    steps = int(case.graphs.specs["draft_chain"].meta["steps"])
    prefix = text_ids(case.target.geometry, PREFIX, case.rng)
    hidden = case.random(PREFIX, case.width)
    vector, offset = None, None
    if case.draft.variant == "vispec":  # what the rows behind an image carry
        vector = torch.from_numpy(case.random(case.width))
        nothing = torch.zeros(1, 1, case.width)
        with torch.no_grad():
            offset = floats(
                case.head.rows(nothing, nothing, vector) - case.head.rows(nothing, nothing)
            )[0, 0]
    table = case.graphs.table("draft")
    embeds = table[prefix] if offset is None else table[prefix] + offset
    session = case.graphs.session("draft", PREFIX + steps)
    chain = case.graphs.chain(session)

    def check(noise: Floats | None) -> dict[str, Any]:
        logprobs, ids, last = chain.step(
            embeds, range(PREFIX), causal_mask(0, PREFIX), hidden=hidden, offset=offset, noise=noise
        )
        tokens, states, wanted = list(prefix), hidden, []
        for best in ids[:, 0].tolist():
            logits, feedback = case.forward(tokens, states, vector)
            wanted.append(logits[-1])
            tokens.append(best)
            states = np.concatenate([states, feedback[-1:]])
        label = named("draft_chain", noise)
        scores = coupled(np.stack(wanted), case.draft.proposer.ids, noise)
        figures = check_top_k(label, logprobs, ids, scores, case.against)
        figures["feedback"] = compared(f"{label}: feedback", last, states[-1:], case.against)
        return figures

    return plain_and_coupled(chain, (steps, case.graphs.proposed), check)
